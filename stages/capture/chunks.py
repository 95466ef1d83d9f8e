"""A capture file as a window of bytes: read() into a private buffer, which costs half of what mapping the file does."""

from __future__ import annotations

import os
import select
import stat
from typing import Any

import numpy as np

from stages.capture.errors import SourceError
from stages.capture.walk import MAX_BLOCK_BYTES

CHUNK_BYTES = 256 * 1024
READY, END, LATER = range(3)
"""What `want` answers: the bytes are there; the file ends before; a pipe has none now."""


def can_be_read_again(path: str) -> bool:
    """It is no pipe, socket or terminal. SourceError when it is not there or is a directory."""
    try:
        status = os.fstat(0) if path == "-" else os.stat(path)
    except OSError as error:
        raise SourceError(path, None, f"cannot be opened: {os.strerror(error.errno or 0)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise SourceError(path, None, "is a directory")
    return stat.S_ISREG(status.st_mode)


class Chunks:
    """`walk["at"]` to `walk["end"]` are the bytes not yet used; the file's offset of `at` is `position`."""

    def __init__(self, path: str, walk: Any) -> None:
        """SourceError when it cannot be opened. `-` is standard input; pipes are read as they fill and never block."""
        self.path, self.walk = path, walk
        try:
            if path == "-":
                self.fd = os.dup(0)
            else:
                self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(path, None, f"cannot be opened: {os.strerror(error.errno or 0)}") from None
        status = os.fstat(self.fd)
        self.regular = stat.S_ISREG(status.st_mode)
        self.size = status.st_size
        if self.regular:
            os.lseek(self.fd, 0, os.SEEK_SET)  # standard input may have been read before
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)
        self._take(np.zeros(CHUNK_BYTES, np.uint8))
        self._base = 0  # the file's offset of the buffer's first byte
        walk["at"] = walk["end"] = 0

    def _take(self, buffer: Any) -> None:
        self.buffer, self._bytes = buffer, memoryview(buffer)
        self.buffer_at = int(buffer.ctypes.data)

    @property
    def position(self) -> int:
        return self._base + int(self.walk["at"])

    def seek(self, offset: int) -> None:
        """Only for a regular file."""
        os.lseek(self.fd, offset, os.SEEK_SET)
        self._base = offset
        self.walk["at"] = self.walk["end"] = 0

    def peek(self, n: int) -> bytes:
        """The next n bytes, fewer if not so many are there."""
        at = int(self.walk["at"])
        return bytes(self._bytes[at : min(at + n, int(self.walk["end"]))])

    def want(self, n: int) -> int:
        """Have n bytes (at most MAX_BLOCK_BYTES) from `at` on: READY, END or LATER. SourceError when reading fails."""
        at, end = int(self.walk["at"]), int(self.walk["end"])
        if end - at >= n:
            return READY
        kept = end - at
        target = self.buffer
        if n > len(target):
            target = np.zeros(min(-(-n // CHUNK_BYTES) * CHUNK_BYTES, MAX_BLOCK_BYTES), np.uint8)
        target[:kept] = self.buffer[at:end]
        if target is not self.buffer:
            self._take(target)
        self._base += at
        self.walk["at"], self.walk["end"] = 0, kept
        while kept < n:
            if not self.regular and not self._poll.poll(0):
                return LATER
            try:
                got = os.readv(self.fd, [self._bytes[kept:]])
            except BlockingIOError:
                return LATER
            except OSError as error:
                raise SourceError(self.path, self._base + kept, f"cannot be read: {os.strerror(error.errno or 0)}") from None
            if got == 0:
                return END
            kept += got
            self.walk["end"] = kept
        return READY

    def close(self) -> None:
        os.close(self.fd)
