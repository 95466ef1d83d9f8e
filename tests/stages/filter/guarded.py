"""Memory for packets in which one byte too far is the end of the process: each frame has a page, and no page beside it may be touched."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from broker.core.batch import Batch, heap_batch
from broker.core.layout import PAGE, Geometry
from tests.stages.filter.mutations import BLOCK, WIDTH, Frames

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PROT_NONE = 0
assert WIDTH <= PAGE


class Guarded:
    """A batch whose data are pages, every other one of them forbidden, the first and the last too."""

    def __init__(self) -> None:
        size = (2 * BLOCK + 1) * PAGE
        self._mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory = memoryview(self._mapping)
        at = int(np.frombuffer(self._mapping, np.uint8).ctypes.data)
        for page in range(0, 2 * BLOCK + 1, 2):
            if _libc.mprotect(at + page * PAGE, PAGE, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.batch: Batch = heap_batch(Geometry(max_packets=BLOCK, max_frames=BLOCK, data_bytes=PAGE))
        self.batch.data_at, self.batch.data_bytes = at, size
        self.batch._place["data_at"], self.batch._place["data_bytes"] = at, size  # what kernels see

    def put(self, frames: Frames, *, at_end: bool) -> None:
        """Each frame ends with its page, or begins with it."""
        n, batch, memory, data = len(frames), self.batch, self._memory, memoryview(frames.data.ravel())
        places = PAGE * (1 + 2 * np.arange(n)) + (PAGE - frames.lengths if at_end else 0)
        for i, (at, length) in enumerate(zip(places.tolist(), frames.lengths.tolist(), strict=True)):
            memory[at : at + length] = data[i * WIDTH : i * WIDTH + length]
        rows = batch.packets
        rows["ts_ns"][:n], rows["data_at"][:n], rows["caplen"][:n] = frames.times_ns, places, frames.lengths
        rows["wirelen"][:n], rows["input"][:n] = frames.wirelens, frames.inputs
        batch.block["n_packets"] = n
