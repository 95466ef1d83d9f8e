"""What the ring needs between processes, compiled: the `Atomics` that broker/core/ring.py asks for."""

from __future__ import annotations

from broker.core import layout
from broker.core.ring import GROUPS, PLACE
from stages import memory
from stages.jit import kernel
from stages.memory import load64, store64

assert layout.WORKER.fields is not None
assert PLACE.fields is not None
_PARKED = layout.WORKER.fields["parked"][1]
_ROW_BYTES = layout.WORKER.itemsize
_SEQ, _STRIDE, _CURSOR_AT, _COUNTERS_AT, _COUNTER_BYTES, _COMMITTED_AT = (
    PLACE.fields[name][1] for name in ("seq", "stride", "cursor_at", "counters_at", "counter_bytes", "committed_at")
)
_BEFORE_AT, _BEFORE_N, _BEFORE_STRIDE, _BEFORE_SEEN = (PLACE.fields[f"before_{name}"][1] for name in ("at", "n", "stride", "seen"))
_AFTER_AT, _AFTER_N, _AFTER_STRIDE, _BESIDE_AT = (PLACE.fields[name][1] for name in ("after_at", "after_n", "after_stride", "beside_at"))


@kernel
def load_acquire(at: int) -> int:
    return memory.load_acquire(at)


@kernel
def is_ready(place: int, wanted: int) -> int:
    """1 if all workers before that touch block `wanted - 1` have published it, else 0."""
    for group in range(GROUPS):
        rows, n = load64(place + _BEFORE_AT + 8 * group), load64(place + _BEFORE_N + 8 * group)
        if n == 0 or load64(place + _BEFORE_SEEN + 8 * group) >= wanted:
            continue
        stride = load64(place + _BEFORE_STRIDE + 8 * group)
        if stride > 1:
            if wanted > 0 and memory.load_acquire(rows + (wanted - 1) % stride * _ROW_BYTES) < wanted:
                return 0
            continue
        seen = memory.load_acquire(rows)
        for worker in range(1, n):
            seen = min(seen, memory.load_acquire(rows + worker * _ROW_BYTES))
        store64(place + _BEFORE_SEEN + 8 * group, seen)
        if seen < wanted:
            return 0
    return 1


@kernel
def _take_sleeper(row: int, done: int) -> bool:
    """Whoever takes the announcement back rings: one bell for one sleep, however long the sleeper takes to wake."""
    wanted = memory.load_acquire(row + _PARKED)
    return wanted != 0 and wanted <= done + 1 and memory.compare_swap(row + _PARKED, wanted, 0) == wanted


@kernel
def publish(place: int) -> int:
    """Commit counters and cursor by one release store; returns a bit for each neighbour that slept until this block was published: of the
    rows after that look at it, and then of the one beside."""
    done, stride = load64(place + _SEQ), load64(place + _STRIDE)
    cursor = done + stride
    half = cursor // stride & 1
    memory.copy(load64(place + _COMMITTED_AT + 8 * half), load64(place + _COUNTERS_AT), load64(place + _COUNTER_BYTES))
    memory.store_release(load64(place + _CURSOR_AT), cursor)
    memory.fence()  # the other half of it is in `park`: either we see that it sleeps, or it sees our cursor
    store64(place + _SEQ, cursor)
    first, n = load64(place + _AFTER_AT), load64(place + _AFTER_N)
    if load64(place + _AFTER_STRIDE) > 1:
        first += done % load64(place + _AFTER_STRIDE) * _ROW_BYTES
        n = 1
    waiting = 0
    for w in range(n):
        if _take_sleeper(first + w * _ROW_BYTES, done):
            waiting |= 1 << w
    beside = load64(place + _BESIDE_AT)
    if beside != 0 and _take_sleeper(beside, done):
        waiting |= 1 << n
    return waiting


@kernel
def park(parked_at: int, wanted: int) -> None:
    memory.store_release(parked_at, wanted)
    memory.fence()
