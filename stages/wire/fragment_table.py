"""The memory of fragmented datagrams: what lies where, and how much of it there is.

    TABLE header | bucket[mask + 1] of WAYS entries each

One table a filter worker, in its own memory: a worker that is started again, and another worker of the same lane, know nothing of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.core.layout import LINE

BUCKETS = 1 << 12  # 2 MiB in all; untouched pages cost nothing
WAYS = 4
RUNS = 6

TABLE = np.dtype(
    [
        ("mask", "<i8"),  # buckets - 1
        ("seed_a", "<i8"),
        ("seed_b", "<i8"),
        ("wanted", "<i8", (6,)),  # key of the datagram in hand
        ("pad", "<i8", (7,)),
    ]
)
assert TABLE.itemsize == 2 * LINE

RUN = np.dtype(
    [
        ("start", "<u2"),  # in 8 bytes
        ("length", "<u2"),  # bytes of each of the fragments that it is made of; 0: of several lengths, no longer known which
        ("end", "<u4"),  # bytes
    ]
)
"""Fragments side by side."""

ENTRY = np.dtype(
    [
        ("key", "<i8", (6,)),  # source, destination, {identification, protocol, family, input}, outer two VLANs
        ("time", "<i8"),  # of its first-come fragment, in TICK
        ("end", "<u4"),  # of the datagram, from its last fragment; 0: not known
        ("reach", "<u4"),  # where the farthest fragment ends
        ("covered", "<u4"),  # bytes
        ("source_port", "<u2"),
        ("destination_port", "<u2"),
        ("detail", "<u2"),
        ("source_state", "u1"),
        ("destination_state", "u1"),
        ("state", "u1"),  # ENTRY_*
        ("n_runs", "u1"),
        ("protocol", "<u2"),  # as its first-come fragment names it, + 1
        ("runs", RUN, (RUNS,)),
    ]
)
assert ENTRY.itemsize == 2 * LINE

ENTRY_FREE = 0
ENTRY_WAITING = 1  # for its first fragment
ENTRY_KNOWN = 2  # the first fragment has shown its ports and detail
ENTRY_TINY = 3  # it has come and was too short to
ENTRY_CONFLICT = 4

TICK_BITS = 20  # a tick is 2 ** 20 ns, about a millisecond: differences of any two times stay within 64 bits
LIFETIME = 60_000_000_000 >> TICK_BITS
COMPLETE_LIFETIME = 1_000_000_000 >> TICK_BITS


class FragmentTable:
    """The memory behind TABLE. The seed decides which datagrams share a bucket: the same seed and packets, the same answers."""

    def __init__(self, seed: int, *, buckets: int = BUCKETS) -> None:
        size = TABLE.itemsize + buckets * WAYS * ENTRY.itemsize
        raw = np.zeros(size + LINE, np.uint8)
        self.memory: NDArray[np.uint8] = raw[-int(raw.ctypes.data) % LINE :][:size]
        self.at = int(self.memory.ctypes.data)
        self.entries = self.memory[TABLE.itemsize :].view(ENTRY)
        header = self.memory[: TABLE.itemsize].view(TABLE)
        header["mask"] = buckets - 1
        header["seed_a"], header["seed_b"] = np.random.default_rng(seed).integers(-(1 << 63), 1 << 63, 2)
