"""What the ring needs between processes, compiled: the `Atomics` that broker/core/ring.py asks for."""

from __future__ import annotations

from broker.core import layout
from stages import memory
from stages.jit import kernel

assert layout.WORKER.fields is not None
_PARKED = layout.WORKER.fields["parked"][1]
_ROW_BYTES = layout.WORKER.itemsize


@kernel
def load_acquire(at: int) -> int:
    return memory.load_acquire(at)


@kernel
def _take_sleeper(row: int, done: int) -> bool:
    """Whoever takes the announcement back rings: one bell for one sleep, however long the sleeper takes to wake."""
    wanted = memory.load_acquire(row + _PARKED)
    return wanted != 0 and wanted <= done + 1 and memory.compare_swap(row + _PARKED, wanted, 0) == wanted


@kernel
def publish(
    counters_at: int, committed_at: int, n_bytes: int, cursor_at: int, cursor: int, done: int, first_row: int, n_rows: int, beside_row: int
) -> int:
    """Commit counters and cursor by one release store; returns a bit for each neighbour that slept until block `done` was published.

    The one in `beside_row` (0: none) has the bit behind those of the `n_rows`.
    """
    memory.copy(committed_at, counters_at, n_bytes)
    memory.store_release(cursor_at, cursor)
    memory.fence()  # the other half of it is in `park`: either we see that it sleeps, or it sees our cursor
    waiting = 0
    for w in range(n_rows):
        if _take_sleeper(first_row + w * _ROW_BYTES, done):
            waiting |= 1 << w
    if beside_row != 0 and _take_sleeper(beside_row, done):
        waiting |= 1 << n_rows
    return waiting


@kernel
def park(parked_at: int, wanted: int) -> None:
    memory.store_release(parked_at, wanted)
    memory.fence()
