"""The part of a capture file that lies in the block being filled: the kernel's copy into it is the only one that its packets see."""

from __future__ import annotations

import os
import select
import stat
from typing import Any

from stages.capture.errors import SourceError
from stages.capture.walk import Walk

_PIPE_BYTES = 64 * 1024  # what a pipe holds


def can_be_read_again(path: str) -> bool:
    """It is no pipe, socket or terminal. SourceError when it is not there or is a directory."""
    try:
        status = os.fstat(0) if path == "-" else os.stat(path)
    except OSError as error:
        raise SourceError(path, None, f"cannot be opened: {os.strerror(error.errno or 0)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise SourceError(path, None, "is a directory")
    return stat.S_ISREG(status.st_mode)


class _Regular:
    """Any part of it, as often as wanted."""

    ended = True  # a read that is short has met the end

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(self, target: memoryview, offset: int) -> int:
        """Fill `target` from `offset` on; returns how many bytes were there."""
        done = 0
        while done < len(target) and (got := os.preadv(self._fd, [target[done:]], offset + done)):
            done += got
        return done


class _Pipe:
    """As if it were a file: holds what it has given until an offset behind it is read. Never waits."""

    def __init__(self, fd: int) -> None:
        self._fd, self.ended = fd, False
        self._held, self._offset = bytearray(), 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read_into(self, target: memoryview, offset: int) -> int:
        held = self._held
        del held[: offset - self._offset]
        self._offset = offset
        while len(held) < len(target) and (more := self._take()):
            held += more
        got = min(len(held), len(target))
        with memoryview(held) as view:
            target[:got] = view[:got]
        return got

    def _take(self) -> bytes:
        if not self._poll.poll(0):
            return b""
        try:
            more = os.read(self._fd, _PIPE_BYTES)
        except BlockingIOError:
            return b""
        self.ended = not more
        return more


class Window:
    """`walk.at` to `walk.end` are the bytes not yet used, as offsets in the block's data; the file's offset of `at` is `position`.

    What a block has no room for is not kept: it is read again, from `position` on, into the next one.
    """

    def __init__(self, path: str, walk: Walk) -> None:
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
        self.regular, self.size = stat.S_ISREG(status.st_mode), status.st_size
        self._source = _Regular(self.fd) if self.regular else _Pipe(self.fd)
        self.seek(0)

    @property
    def position(self) -> int:
        return self._base + self.walk.at

    @property
    def ended(self) -> bool:
        """What was missing in the last read will never come: the file ends there. Otherwise a pipe has no more now."""
        return self._source.ended

    def seek(self, offset: int) -> None:
        """Stand at `offset` with nothing read; forward only in a pipe."""
        self._base = offset
        self.walk.at = self.walk.end = 0

    def _read_into(self, target: memoryview, offset: int) -> int:
        try:
            return self._source.read_into(target, offset)
        except OSError as error:
            raise SourceError(self.path, offset, f"cannot be read: {os.strerror(error.errno or 0)}") from None

    def peek(self, n: int) -> bytes:
        """A copy of the n bytes at `position`, fewer if not so many are there."""
        target = bytearray(n)
        return bytes(target[: self._read_into(memoryview(target), self.position)])

    def fill(self, data: Any, begin: int, need: int, wanted: int) -> bool:
        """Have `need` bytes from `position` on in `data` (uint8[]), at `begin`; about `wanted` are read. SourceError when reading fails.

        More than `data` can hold (`begin` must be 0 then): as much as fits is there, `walk.last` has the last four bytes, and
        `walk.end` says that the others are there too.
        """
        row, position = self.walk, self.position
        got = self._read_into(memoryview(data[begin : begin + max(need, wanted)]), position)
        if begin + need > len(data):
            record = self.peek(need)
            got, row.last = len(record), int.from_bytes(record[-4:], "little")
        self._base, row.at, row.end = position - begin, begin, begin + got
        return got >= need

    def close(self) -> None:
        os.close(self.fd)
