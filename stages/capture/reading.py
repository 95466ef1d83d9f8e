"""The kernel's counts of a packet socket, taken over into the live counters so that none is lost, whenever the worker dies.

The kernel sets its counts to zero with each reading (packet(7), PACKET_STATISTICS). So it writes them into shared memory, and what they
are to be added to stands beside them: a sum that was begun is done again by the next worker, to the same end.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.core.shm import map_file

_SOL_PACKET, _STATISTICS, _STATISTICS_BYTES = 263, 6, 12  # linux/if_packet.h struct tpacket_stats_v3
READING = np.dtype(
    [
        ("under_way", "<i8"),  # 1: the counters may lack what stands here
        ("seen", "<i8"),  # the counters before
        ("dropped", "<i8"),
        ("kernel_seen", "<u4"),  # written by the kernel; includes what it dropped
        ("kernel_dropped", "<u4"),
        ("kernel_freezes", "<u4"),
        ("pad", "<u4"),
    ]
)
"""``reading-LANE`` in the pipeline's directory, written by capture."""

_libc = ctypes.CDLL(None, use_errno=True)


class Reading:
    """Of one interface. `live`: int64[N_COUNTERS]; `seen_at` and `dropped_at`: what in it is counted."""

    def __init__(self, directory: Path, lane: int, live: NDArray[np.int64], seen_at: int, dropped_at: int) -> None:
        """PipelineError in words when there is no room for it."""
        path = directory / f"reading-{lane}"
        memory = map_file(path) if path.exists() else map_file(path, size=READING.itemsize, create=True)
        self._row = memory[: READING.itemsize].view(READING)[0]
        self._words = memory.data.cast("q")[:3]
        self._kernel_at = ctypes.c_void_p(int(memory.ctypes.data) + 24)
        self._length = ctypes.c_uint32()
        self._live, self._seen_at, self._dropped_at = live, seen_at, dropped_at
        self._settle()

    def take(self, fd: int) -> bool:
        """One system call. Whether anything had come."""
        words, row = self._words, self._row
        row["kernel_seen"] = row["kernel_dropped"] = 0
        words[1], words[2] = int(self._live[self._seen_at]), int(self._live[self._dropped_at])
        words[0] = 1
        self._length.value = _STATISTICS_BYTES
        _libc.getsockopt(fd, _SOL_PACKET, _STATISTICS, self._kernel_at, ctypes.byref(self._length))
        return self._settle()

    def _settle(self) -> bool:
        words = self._words
        if not words[0]:
            return False
        seen, dropped = int(self._row["kernel_seen"]), int(self._row["kernel_dropped"])
        if seen:
            self._live[self._seen_at], self._live[self._dropped_at] = words[1] + seen, words[2] + dropped
        words[0] = 0
        return bool(seen)
