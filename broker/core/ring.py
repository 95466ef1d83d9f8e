"""One worker's place in a ring: which block is next, is it ready, and publishing it. The algorithm; the drawing is in `layout`.

A worker owns one cursor: all its blocks below it are published. Block `seq` is *ready* for a worker when the stage before has published
it; for capture, when every send worker, and the flows stage if there is one, has published block `seq - n_blocks`, whose slot it takes.

| who | moves | when | why |
|---|---|---|---|
| worker | its counters -> the other half of `committed` | before its cursor | so that one store commits both |
| worker | its cursor, store-release | after all its writes | readers that see the cursor see the block |
| worker | `parked` = the cursor value it waits for | before it sleeps, then a fence, then it looks again | no wake-up is lost |
| publisher | rings a bell | after its cursor, then a fence, if the neighbour's `parked` is reached | nobody is woken for nothing |
| publisher | rings all its neighbours' bells | when it starts | the one before it may have died between cursor and bell |
| anybody else | writes a cursor | *never* | a cursor has one owner |

What a kill -9 costs is in `broker/README.md`. `ring.pml` is this table as a model, which is checked in every interleaving: change both.
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
    """Operations between processes that Python itself cannot promise; the data path gives compiled ones (`stages/atomics.py`).

    `place_at`: the address of a PLACE.
    """

    def load_acquire(self, at: int) -> int: ...

    def is_ready(self, place_at: int, wanted: int) -> int:
        """1 if all workers before that touch block `wanted - 1` have published it, else 0."""
        ...

    def publish(self, place_at: int) -> int:
        """Copy the counters, release the cursor behind block `seq`, fence; returns a bit for each of the rows after that waits for this
        block, and then one for the row beside. `seq` goes on to the next block of this worker."""
        ...

    def park(self, parked_at: int, wanted: int) -> None:
        """Announce sleep and fence; 0 takes it back."""
        ...


GROUPS = 2  # whom a worker waits for: the stage before, and for capture who reads beside the path

PLACE = np.dtype(
    [
        (name, "<i8", shape)
        for name, shape in (
            ("seq", ()),  # the block in hand
            ("stride", ()),
            ("cursor_at", ()),
            ("counters_at", ()),  # private
            ("counter_bytes", ()),
            ("committed_at", (2,)),  # both halves, by the parity of the cursor
            ("before_at", (GROUPS,)),  # WORKER rows of those waited for, one behind the other
            ("before_n", (GROUPS,)),
            ("before_stride", (GROUPS,)),
            ("before_seen", (GROUPS,)),  # all of them had published what is below this when last looked at; of stride 1 only
            ("after_at", ()),
            ("after_n", ()),
            ("after_stride", ()),
            ("beside_at", ()),  # 0: nobody
        )
    ]
)
"""Where a worker stands in its ring, as kernels want it: private memory. Addresses are of WORKER rows, in whose first words lie the cursor
and `parked`. *Written* by kernels: seq, before_seen."""


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
        # Capture looks for a slot that is free, so it stands a whole ring behind what it waits for.
        self._lag = g.n_blocks if kind == "capture" else 0
        self.counters: NDArray[np.int64] = np.zeros(N_COUNTERS, np.int64)
        self.counters_at = int(self.counters.ctypes.data)
        self.seq = int(self.row["cursor"])
        self.counters[:] = lane.committed[self.row_index, (self.seq // self.stride) & 1]
        self._take_place(lane)

    def _take_place(self, lane: LaneMemory) -> None:
        g = lane.geometry

        def rows_at(kind: str, worker: int = 0) -> int:
            return lane.workers_at + g.row(kind, worker) * layout.WORKER.itemsize

        mine = rows_at(self.kind, self.worker)
        fields = layout.WORKER.fields
        assert fields is not None
        self._parked_at, self.progress_at = mine + fields["parked"][1], mine + fields["progress"][1]
        self._after, *beside = g.after(self.kind)
        self._beside = beside[0] if beside else ""
        self._after_stride, self._n_after = stride(g, self._after), g.count(self._after)
        self._place = place = np.zeros(1, PLACE)
        self._place_at = int(place.ctypes.data)
        row = place[0]
        row["seq"], row["stride"], row["cursor_at"] = self.seq, self.stride, mine + fields["cursor"][1]
        row["counters_at"], row["counter_bytes"] = self.counters_at, 8 * stage_counters(self.kind)
        row["committed_at"] = [lane.committed_at + (self.row_index * 2 + half) * N_COUNTERS * 8 for half in (0, 1)]
        for i, kind in enumerate(g.before(self.kind)):
            row["before_at"][i], row["before_n"][i], row["before_stride"][i] = rows_at(kind), g.count(kind), stride(g, kind)
        row["after_at"], row["after_n"], row["after_stride"] = rows_at(self._after), self._n_after, self._after_stride
        row["beside_at"] = rows_at(self._beside) if self._beside else 0
        self._before_at = [rows_at(kind, worker) for kind in g.before(self.kind) for worker in range(g.count(kind))]

    def batch(self) -> Batch:
        """The block that `seq` lies in."""
        batch = self._batches[self.seq % self.n_blocks]
        batch.seq = self.seq
        return batch

    def ready(self) -> bool:
        """The stage before has passed block `seq` (for capture: its slot is free)."""
        return self._atomics.is_ready(self._place_at, self.seq - self._lag + 1) != 0

    def publish(self) -> list[tuple[str, int]]:
        """Pass block `seq` on and commit the counters with it; returns the workers behind (kind, number) whose bell must be rung."""
        bits = self._atomics.publish(self._place_at)
        done = self.seq
        self.seq = done + self.stride
        if not bits:
            return []
        if self._after_stride > 1:
            woken = [(self._after, done % self._after_stride)] if bits & 1 else []
            bits >>= 1
        else:
            woken = [(self._after, w) for w in range(self._n_after) if bits >> w & 1]
            bits >>= self._n_after
        return [*woken, (self._beside, 0)] if bits else woken

    def neighbours(self) -> list[tuple[str, int]]:
        """All whom this worker may have to wake (kind, number)."""
        beside = [(self._beside, 0)] if self._beside else []
        return [*((self._after, w) for w in range(self._n_after)), *beside]

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
        return max(self.seq, min(self._atomics.load_acquire(at) for at in self._before_at))


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
