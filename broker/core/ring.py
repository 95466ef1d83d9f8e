"""One worker's place in a ring: which block is next, is it ready, and publishing it. The algorithm; the drawing is in `layout`.

A worker owns one cursor: all its blocks below it are published. Block `seq` is *ready* for a worker when the stage before has published
it; for capture, when every send worker, and the flows stage if there is one, has published block `seq - n_blocks`, whose slot it takes.

| who | moves | when | why |
|---|---|---|---|
| worker | its counters -> the other half of `committed` | before its cursor | so that one store commits both |
| worker | its cursor, store-release | after all its writes | readers that see the cursor see the block |
| worker | `parked` = the cursor value it waits for | before it sleeps, then a fence, then it looks again | no wake-up is lost |
| publisher | rings a bell | after its cursor, then a fence, if the neighbour's `parked` is reached | nobody is woken for nothing |
| anybody else | writes a cursor | *never* | a cursor has one owner |

What a kill -9 costs is in `broker/README.md`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from broker.core import layout
from broker.core.batch import Batch
from broker.core.metrics import N_COUNTERS, stage_counters
from broker.core.shm import LaneMemory, stride


class Atomics(Protocol):
    """Operations between processes that Python itself cannot promise; the data path gives compiled ones (`stages/atomics.py`)."""

    def load_acquire(self, at: int) -> int: ...

    def publish(
        self,
        counters_at: int,
        committed_at: int,
        n_bytes: int,
        cursor_at: int,
        cursor: int,
        done: int,
        first_row: int,
        n_rows: int,
        beside_row: int,
    ) -> int:
        """Copy the counters, release the cursor, fence; returns a bit for each of the `n_rows` WORKER rows that waits for block `done`,
        and then one for `beside_row` (0: there is none)."""
        ...

    def park(self, parked_at: int, wanted: int) -> None:
        """Announce sleep and fence; 0 takes it back."""
        ...


class Ring:
    """The view of worker (kind, worker) on its lane. One process only; `seq` is the block it does next."""

    def __init__(self, lane: LaneMemory, kind: str, worker: int, atomics: Atomics) -> None:
        g = lane.geometry
        self.lane, self.kind, self.worker = lane, kind, worker
        self.row_index = g.row(kind, worker)
        self.row = lane.workers[self.row_index]
        self.n_blocks = g.n_blocks
        self.stride = stride(g, kind)
        self._atomics = atomics
        self._batches = [lane.batch(slot) for slot in range(g.n_blocks)]

        def row_at(of_kind: str, of_worker: int) -> int:
            return lane.workers_at + g.row(of_kind, of_worker) * layout.WORKER.itemsize

        mine = row_at(kind, worker)
        fields = layout.WORKER.fields
        assert fields is not None
        self._cursor_at, self._parked_at = mine + fields["cursor"][1], mine + fields["parked"][1]
        self.progress_at = mine + fields["progress"][1]
        self._before = [([row_at(k, w) for w in range(g.count(k))], stride(g, k)) for k in g.before(kind)]
        self._after, *beside = g.after(kind)
        self._after_at = [row_at(self._after, w) for w in range(g.count(self._after))]
        self._after_stride = stride(g, self._after)
        self._beside, self._beside_at = (beside[0], row_at(beside[0], 0)) if beside else ("", 0)
        # Capture looks for a slot that is free, so it stands a whole ring behind what it waits for.
        self._lag = g.n_blocks if kind == "capture" else 0
        self._seen = {at: 0 for rows, _ in self._before for at in rows}

        self.counters: NDArray[np.int64] = np.zeros(N_COUNTERS, np.int64)
        self.counters_at = int(self.counters.ctypes.data)
        self._counter_bytes = 8 * stage_counters(kind)
        self._half_at = [lane.committed_at + (self.row_index * 2 + half) * N_COUNTERS * 8 for half in (0, 1)]
        self.seq = int(self.row["cursor"])
        self.counters[:] = lane.committed[self.row_index, (self.seq // self.stride) & 1]

    def batch(self) -> Batch:
        """The block that `seq` lies in."""
        batch = self._batches[self.seq % self.n_blocks]
        batch.seq = self.seq
        return batch

    def ready(self) -> bool:
        """The stage before has passed block `seq` (for capture: its slot is free)."""
        return self._reached(self.seq - self._lag + 1)

    def _reached(self, wanted: int) -> bool:
        """All workers before that touch block `wanted - 1` have published it."""
        for rows, step in self._before:
            for at in rows if step == 1 else (rows[(wanted - 1) % step],):
                if self._seen[at] < wanted:
                    self._seen[at] = self._atomics.load_acquire(at)
                    if self._seen[at] < wanted:
                        return False
        return True

    def publish(self) -> list[tuple[str, int]]:
        """Pass block `seq` on and commit the counters with it; returns the workers behind (kind, number) whose bell must be rung."""
        done = self.seq
        self.seq = done + self.stride
        chosen = done % self._after_stride
        rows = self._after_at if self._after_stride == 1 else self._after_at[chosen : chosen + 1]
        first, n = rows[0], len(rows)
        half = self._half_at[(self.seq // self.stride) & 1]
        bits = self._atomics.publish(
            self.counters_at, half, self._counter_bytes, self._cursor_at, self.seq, done, first, n, self._beside_at
        )
        if not bits:
            return []
        woken = [(self._after, chosen + w if self._after_stride > 1 else w) for w in range(n) if bits >> w & 1]
        return [*woken, (self._beside, 0)] if bits >> n & 1 else woken

    def park(self) -> bool:
        """Announce that this worker goes to sleep; False if there is work after all (and it is announced no more).

        Capture asks to be woken only when half the ring is free: one wake-up for many blocks instead of one each.
        """
        wanted = self.seq - self._lag + 1
        if self.kind == "capture":
            wanted += self.n_blocks // 2
        self._atomics.park(self._parked_at, max(wanted, 1))
        if self.ready():
            self.unpark()
            return False
        return True

    def unpark(self) -> None:
        self._atomics.park(self._parked_at, 0)

    def backlog(self) -> int:
        """One past the newest block that the stage before has published with all before it; at least `seq`."""
        return max(self.seq, min(self._atomics.load_acquire(at) for rows, _ in self._before for at in rows))


def read_counters(lane: LaneMemory, row_index: int) -> tuple[int, NDArray[np.int64]]:
    """A worker's cursor and the counters that were committed with it, consistent although the worker goes on.

    The half that a cursor names is rewritten only after the cursor has moved once more: if it stands where it stood, the copy is whole.
    """
    kind, _ = lane.geometry.workers[row_index]
    step = stride(lane.geometry, kind)
    while True:
        cursor = int(lane.workers[row_index]["cursor"])
        copied = lane.committed[row_index, (cursor // step) & 1].copy()
        if int(lane.workers[row_index]["cursor"]) == cursor:
            return cursor, copied
