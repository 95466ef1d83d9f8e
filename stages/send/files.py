"""Frames into a capture file: bare packets as Ethernet, outer packets as raw IP (`formats.py`).

A regular file begins anew with a pipeline and is exact after a crash: counter ``file_bytes`` says up to where it is whole, is committed
with the cursor, and the file is cut back to it before the block is done again; ``file_inode`` says which file that is. The mode of a
new file is 0666 less the umask. Its directory must be there. With more than one lane, each writes its own: ``name-lane0.pcap``.

| what happens | then |
|---|---|
| it cannot be opened | frames are counted by errno (dropped_disk, dropped_forbidden, else dropped_tool_down); tried again later |
| a write fails or is short | what is not whole is cut off again and counted (dropped_disk); the next block tries again |
| it cannot be cut either | closed; opening it again cuts it |
| a pipe is full for PATIENCE_MS | frames not begun are counted in dropped_full; a record that was begun is finished first next time |
| the same, and the tool waits for its reader | `unsent` says how many rows are left, and `go_on` tries again |
| nobody reads the pipe any more | dropped_tool_down; whoever reads it next gets a beginning of its own |

Pipes, sockets and devices are written as they are: nothing is cut, and after a crash a block may be repeated, behind a record that the
crash has cut. ``-`` is standard output.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np

from broker.core.batch import Batch
from broker.core.model import STDOUT, Tool
from broker.core.stage import Context
from stages.send.egress import (
    DELIVERED_BYTES,
    DELIVERED_FRAMES,
    DISK,
    FILE_BYTES,
    FILE_INODE,
    OPENING,
    Notices,
    Retry,
    Scratch,
    reasons,
)
from stages.send.formats import Format

PATIENCE_MS = 2
LAST_MS = 200
PIPE_BYTES = 1024 * 1024
"""What a pipe is asked to hold; less if the kernel does not allow it (fs.pipe-max-size)."""

WRITING = reasons(DISK)
_OPEN = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC


def file_path(tool: Tool, context: Context) -> Path:
    path = Path(tool.file)
    return path if context.lanes_total == 1 else path.with_name(f"{path.stem}-lane{context.lane.number}{path.suffix}")


def _open_stdout() -> int:
    """Opened once more, so that not blocking is ours alone; a socket cannot be, it is told with every call."""
    try:
        return os.open("/proc/self/fd/1", _OPEN)
    except OSError:
        if not stat.S_ISSOCK(os.fstat(1).st_mode):
            raise
        return os.dup(1)


class FileEgress:
    """One tool's file."""

    def __init__(
        self, tool: Tool, made: Format, context: Context, scratch: Scratch, log: Any, *, overwrite: bool, path: Path | None = None
    ) -> None:
        """`overwrite`: a file that is there already is begun anew, as when a broker starts; a reload goes on behind what is in it.

        `path`: instead of the tool's file, one that nobody else may write: it is locked.
        """
        self.tool = tool
        self._overwrite = overwrite
        self._locked = path is not None
        self.path = path or file_path(tool, context)
        self.format = made
        self._counters = context.counters[tool.slot :]
        self._scratch = scratch
        self._progress = ctypes.c_int64.from_address(context.progress_at)
        self._notices = Notices(log, tool)
        self._retry = Retry()
        self._fd = -1
        self._socket: socket.socket | None = None
        self._regular = True
        self._length = 0  # of a regular file: up to the last whole record
        self._owed = b""  # the rest of a record that a pipe has the beginning of
        self._down = OPENING[0]
        self.unsent = 0  # rows of the block in hand that the reader has no room for yet
        self._rest: tuple[int, int, int] = (0, 0, 0)
        self._takes_over = context.epoch > 1
        self._open()

    @property
    def repeats(self) -> bool:
        return not self._regular

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self._length

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def _open(self) -> bool:
        try:
            self._fd = _open_stdout() if self.tool.file == STDOUT else os.open(self.path, _OPEN, 0o666)
            about = os.fstat(self._fd)
            self._regular = stat.S_ISREG(about.st_mode)
            self._owed = b""
            self._lock_or_widen(about)
            if not (self._regular and self._resume(about)):
                if self._regular and about.st_size and not self._overwrite:
                    self._append(about)
                else:
                    self._begin(about)
        except OSError as error:
            self._down = int(OPENING[error.errno or 0])
            self.close()
            self._retry.failed()
            self._notices.warn("tool_down", error.strerror or str(error), file=str(self.path))
            return False
        self._takes_over = False
        self._retry.worked()
        self._notices.info("tool_opened", file=str(self.path), at=self._length)
        return True

    def _lock_or_widen(self, about: os.stat_result) -> None:
        if self._locked:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EBUSY, "another process is writing it") from None
        if stat.S_ISSOCK(about.st_mode):
            self._socket = socket.socket(fileno=self._fd)
        elif stat.S_ISFIFO(about.st_mode):
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:  # not allowed so much, or not while it is full
                return

    def _resume(self, about: os.stat_result) -> bool:
        """Go on after the last whole record if this is the file that `file_bytes` speaks of. OSError if it holds another link type."""
        known = int(self._counters[FILE_BYTES])
        if not known or about.st_ino != int(self._counters[FILE_INODE]):
            return False
        if about.st_size < known:
            self._notices.warn("file_started_anew", f"{about.st_size} bytes long, {known} were written", file=str(self.path))
            return False
        self._expect_ours()
        os.ftruncate(self._fd, known)
        self._length = known
        return True

    def _append(self, about: os.stat_result) -> None:
        """OSError if it is not a file that we could have written: nothing of somebody else's is overwritten while traffic flows."""
        self._expect_ours()
        self._length = about.st_size
        self._counters[FILE_BYTES], self._counters[FILE_INODE] = self._length, about.st_ino

    def _expect_ours(self) -> None:
        header = self.format.header
        with open("/proc/self/fd/1" if self.tool.file == STDOUT else self.path, "rb") as written:
            if written.read(len(header)) != header:
                raise OSError(errno.EEXIST, "is there already and holds something else")

    def _begin(self, about: os.stat_result) -> None:
        header = self.format.header
        if self._regular:
            os.ftruncate(self._fd, 0)
        elif self._takes_over and about.st_ino == int(self._counters[FILE_INODE]):
            return  # the worker before this one has begun the same pipe, and its reader must not meet a second beginning
        written = 0
        while written < len(header):
            written += self._put(memoryview(header)[written:])
        self._length = len(header)
        self._counters[FILE_BYTES], self._counters[FILE_INODE] = self._length if self._regular else 0, about.st_ino

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        if self._fd < 0 and not (self._retry.due() and self._open()):
            self._counters[self._down] += n_rows
            return
        scratch = self._scratch
        done = self.unsent = 0
        while done < n_rows:
            after = self.format.fill(batch, rows_at, done, n_rows, scratch)
            ends = scratch.ends[: after - done]
            self._progress.value = max(self._progress.value, progress + after)
            size = int(ends[-1])
            written, number = self._write(scratch.buffer[:size])
            whole = after - done if written == size else int(np.searchsorted(ends, written, side="right"))
            whole_bytes = int(ends[whole - 1]) if whole else 0
            if number and not self._regular:
                whole += self._keep_rest(ends, whole, written)
            self._counters[DELIVERED_FRAMES] += whole
            self._counters[DELIVERED_BYTES] += int(scratch.lens[whole - 1]) if whole else 0
            done += whole
            if self._regular:
                self._length += whole_bytes
                self._counters[FILE_BYTES] = self._length
            if number == errno.EAGAIN and self.tool.waits:
                self.unsent = n_rows - done
                self._rest = rows_at + 4 * done, self.unsent, progress + done
                return
            if number:
                self._counters[int(WRITING[number])] += n_rows - done
                self._fail(number)
                return

    def go_on(self, batch: Batch) -> bool:
        """Send what was left of the same block. True: nothing is left."""
        self.send(batch, *self._rest)
        return not self.unsent

    def _put(self, data: memoryview | bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._fd, data)

    def _write(self, records: Any) -> tuple[int, int]:
        """(bytes written, errno of what stopped it or 0)."""
        view = memoryview(records)
        written = 0
        waited = False
        while self._owed or written < len(view):
            try:
                if self._owed:
                    self._owed = self._owed[self._put(self._owed) :]
                else:
                    written += self._put(view[written:])
            except BlockingIOError as error:
                if waited:
                    return written, error.errno or errno.EAGAIN
                waited = True
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                poller.poll(PATIENCE_MS)
            except OSError as error:
                return written, error.errno or errno.EIO
        return written, 0

    def _keep_rest(self, ends: Any, whole: int, written: int) -> int:
        """What has gone into a pipe cannot be taken back: the record that it broke off in will be finished first. 1 if there is one."""
        begun_at = int(ends[whole - 1]) if whole else 0
        if written == begun_at:
            return 0
        self._owed = self._scratch.buffer[written : int(ends[whole])].tobytes()
        return 1

    def _fail(self, number: int) -> None:
        self._notices.warn("file_failed", os.strerror(number), file=str(self.path))
        if not self._regular:
            if number != errno.EAGAIN:  # nobody reads the pipe any more
                self._counters[FILE_INODE] = 0
                self._close_for_now(int(OPENING[number]))
            return
        try:
            os.ftruncate(self._fd, self._length)
        except OSError:
            self._close_for_now(DISK)

    def _close_for_now(self, down: int) -> None:
        self.close()
        self._down = down
        self._retry.failed()

    def close(self) -> None:
        """A pipe gets the rest of a record that it has the beginning of, if its reader goes on within LAST_MS."""
        deadline = time.monotonic() + LAST_MS / 1000
        while self._owed and self._fd >= 0 and time.monotonic() < deadline:
            if self._write(b"")[1] not in (0, errno.EAGAIN):
                break
        self._owed = b""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        elif self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
