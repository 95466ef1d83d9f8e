"""A block in which one byte too far is the end of the process: each packet has pages to itself, and so has each part of the block.

No page beside them may be touched. What a stage may use beyond a part (`layout.SLACK`) is there behind headers and shaped packets, and
nowhere else.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from broker.core.batch import heap_batch
from broker.core.layout import PAGE, SLACK, Geometry

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PROT_NONE = 0


def pages(n_bytes: int) -> int:
    return -(-n_bytes // PAGE) * PAGE


class Fenced:
    """Memory that ends with a forbidden page, and begins with one: `forbid` makes more of them. Offsets and sizes in whole pages."""

    def __init__(self, size: int) -> None:
        self._mapping = mmap.mmap(-1, size + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = np.frombuffer(self._mapping, np.uint8)
        self._at = int(whole.ctypes.data)
        self.bytes: NDArray[np.uint8] = whole[PAGE:-PAGE]
        self.at, self.size = self._at + PAGE, size
        self.forbid(-PAGE)
        self.forbid(size)

    def forbid(self, offset: int) -> None:
        if _libc.mprotect(self.at + offset, PAGE, _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def last(self, n_bytes: int) -> NDArray[np.uint8]:
        """The bytes right before the forbidden page."""
        return self.bytes[self.size - n_bytes :]


class FencedBatch:
    """A batch of `geometry.max_packets` packets of up to a page, the first `n_long` of a block of up to `long_bytes`."""

    def __init__(self, geometry: Geometry, *, n_long: int = 0, long_bytes: int = PAGE) -> None:
        self.batch = batch = heap_batch(geometry)
        rooms = [pages(long_bytes)] * n_long + [PAGE] * (geometry.max_packets - n_long)
        ends = np.cumsum(np.array(rooms) + PAGE)
        self.room, self._end = np.array(rooms), ends - PAGE  # packet i may lie in [_end - room, _end)
        shaped = pages(geometry.shaped_bytes + SLACK)
        self._data = Fenced(int(ends[-1]) + shaped)
        for end in self._end.tolist():
            self._data.forbid(end)
        self._parts = []
        for name, slack in (("packets", 0), ("verdicts", 0), ("frames", 0), ("headers", SLACK)):
            old = getattr(batch, name)
            part = Fenced(pages(old.nbytes + slack))
            self._parts.append(part)
            new = part.last(old.nbytes + slack)[: old.nbytes].view(old.dtype)
            setattr(batch, name, new)
            self._say(f"{name}_at", int(new.ctypes.data))
        batch.data = self._data.bytes[: int(ends[-1])]
        self._say("data_at", self._data.at)
        self._say("data_bytes", int(ends[-1]))
        shaped_from = self._data.size - geometry.shaped_bytes - SLACK
        self._say("shaped_from", shaped_from)
        self._say("window_bytes", shaped_from + geometry.shaped_bytes)
        batch.windows = self._data.bytes[: batch.window_bytes]

    def _say(self, name: str, value: int) -> None:
        """To Python and to kernels."""
        setattr(self.batch, name, value)
        self.batch._place[name] = value

    def put(
        self, frames: Sequence[bytes], wirelens: Sequence[int], inputs: Sequence[int], times_ns: Sequence[int], *, at_end: bool
    ) -> None:
        """Each frame ends where its pages end, or begins where they do."""
        n, batch, data = len(frames), self.batch, memoryview(self._data.bytes)
        lengths = np.array([len(frame) for frame in frames], np.int64)
        assert (lengths <= self.room[:n]).all()
        places = self._end[:n] - (lengths if at_end else self.room[:n])
        for at, frame in zip(places.tolist(), frames, strict=True):
            data[at : at + len(frame)] = frame
        rows = batch.packets
        rows["ts_ns"][:n], rows["data_at"][:n], rows["caplen"][:n] = times_ns, places, lengths
        rows["wirelen"][:n], rows["input"][:n] = wirelens, inputs
        batch.block["n_packets"], batch.block["data_used"] = n, batch.data_bytes
