"""Memory for one packet in which one byte too far ends the process when kernels are compiled, and raises when they are plain."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from broker.core.layout import MAX_FRAME_BYTES, PAGE
from stages import memory

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PROT_NONE = 0


class Guarded:
    """Pages with a forbidden one before and behind."""

    def __init__(self, room: int = MAX_FRAME_BYTES) -> None:
        size = -(-room // PAGE) * PAGE
        self._mapping = mmap.mmap(-1, size + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._first = int(np.frombuffer(self._mapping, np.uint8).ctypes.data)
        self._end = self._first + PAGE + size
        for page in (self._first, self._end):
            if _libc.mprotect(page, PAGE, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def put(self, data: bytes, *, at_end: bool = True) -> int:
        """The address of `data`, which ends with the pages or begins with them; plain kernels may touch exactly these bytes."""
        at = self._end - len(data) if at_end else self._first + PAGE
        ctypes.memmove(at, data, len(data))
        memory.allow(at, len(data))
        return at


def read(at: int, n_bytes: int) -> bytes:
    return ctypes.string_at(at, n_bytes)
