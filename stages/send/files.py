"""Frames into a pcap file (draft-ietf-opsawg-pcap, nanosecond magic): bare packets as Ethernet, outer packets as raw IP.

Each record has the time of its packet, and the original length counts what was on the wire: outer header + packet.

A regular file begins anew with a pipeline and is exact after a crash: counter ``file_bytes`` says up to where it is whole, is committed
with the cursor, and the file is cut back to it before the block is done again; ``file_inode`` says which file that is. The mode of a
new file is 0666 less the umask. Its directory must be there. With more than one lane, each writes its own: ``name-lane0.pcap``.

| what happens | then |
|---|---|
| it cannot be opened | frames are counted by errno (dropped_disk, dropped_forbidden, else dropped_tool_down); tried again later |
| a write fails or is short | what is not whole is cut off again and counted (dropped_disk); the next block tries again |
| it cannot be cut either | closed; opening it again cuts it |
| a pipe is full for PATIENCE_MS | frames not begun are counted in dropped_full; a record that was begun is finished first next time |

Pipes and devices are written as they are: nothing is cut, and after a crash a block may be repeated.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np

from broker.core.batch import Batch
from broker.core.layout import MAX_FRAME_BYTES
from broker.core.model import Tool
from broker.core.stage import Context
from stages.send import kernels
from stages.send.egress import (
    BUFFER_BYTES,
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

PATIENCE_MS = 2
NANOSECOND_MAGIC = 0xA1B23C4D
LINKTYPE_ETHERNET, LINKTYPE_RAW = 1, 101  # tcpdump.org/linktypes.html
_FILE_HEADER = struct.Struct("<IHHiIII")

WRITING = reasons(DISK)


def file_header(linktype: int) -> bytes:
    return _FILE_HEADER.pack(NANOSECOND_MAGIC, 2, 4, 0, 0, MAX_FRAME_BYTES, linktype)


def file_path(tool: Tool, context: Context) -> Path:
    path = Path(tool.file)
    return path if context.lanes_total == 1 else path.with_name(f"{path.stem}-lane{context.lane.number}{path.suffix}")


class FileEgress:
    """One tool's file."""

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any, *, overwrite: bool) -> None:
        """`overwrite`: a file that is there already is begun anew, as when a broker starts; a reload goes on behind what is in it."""
        self.tool = tool
        self._overwrite = overwrite
        self.path = file_path(tool, context)
        self._header = file_header(LINKTYPE_RAW if tool.tunnel else LINKTYPE_ETHERNET)
        self._counters = context.counters[tool.slot :]
        self._scratch = scratch
        self._progress = ctypes.c_int64.from_address(context.progress_at)
        self._notices = Notices(log, tool)
        self._retry = Retry()
        self._fd = -1
        self._regular = True
        self._length = 0  # of a regular file: up to the last whole record
        self._owed = b""  # the rest of a record that a pipe has the beginning of
        self._down = OPENING[0]
        self._open()

    @property
    def repeats(self) -> bool:
        return not self._regular

    def _open(self) -> bool:
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            about = os.fstat(self._fd)
            self._regular = stat.S_ISREG(about.st_mode)
            self._owed = b""
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
        self._retry.worked()
        self._notices.info("tool_opened", file=str(self.path), at=self._length)
        return True

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
        with self.path.open("rb") as written:
            if written.read(len(self._header)) != self._header:
                raise OSError(errno.EEXIST, "is there already and holds something else")

    def _begin(self, about: os.stat_result) -> None:
        if self._regular:
            os.ftruncate(self._fd, 0)
        written = 0
        while written < len(self._header):
            written += os.write(self._fd, self._header[written:])
        self._length = len(self._header)
        self._counters[FILE_BYTES], self._counters[FILE_INODE] = (self._length, about.st_ino) if self._regular else (0, 0)

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        if self._fd < 0 and not (self._retry.due() and self._open()):
            self._counters[self._down] += n_rows
            return
        scratch = self._scratch
        done = 0
        while done < n_rows:
            after = kernels.fill_records(
                batch.frames_at, batch.packets_at, batch.headers_at, batch.data_at,
                rows_at, done, n_rows, scratch.buffer_at, BUFFER_BYTES, scratch.ends_at,
            )  # fmt: skip
            ends = scratch.ends[: after - done]
            self._progress.value = max(self._progress.value, progress + after)
            size = int(ends[-1])
            written, number = self._write(scratch.buffer[:size])
            whole = after - done if written == size else int(np.searchsorted(ends, written, side="right"))
            if number and not self._regular:
                whole += self._keep_rest(ends, whole, written)
            whole_bytes = int(ends[whole - 1]) if whole else 0
            self._counters[DELIVERED_FRAMES] += whole
            self._counters[DELIVERED_BYTES] += whole_bytes - whole * kernels.RECORD_HEADER
            done += whole
            if self._regular:
                self._length += whole_bytes
                self._counters[FILE_BYTES] = self._length
            if number:
                self._counters[int(WRITING[number])] += n_rows - done
                self._fail(number)
                return

    def _write(self, records: Any) -> tuple[int, int]:
        """(bytes written, errno of what stopped it or 0)."""
        view = memoryview(records)
        written = 0
        waited = False
        try:
            while self._owed:
                self._owed = self._owed[os.write(self._fd, self._owed) :]
            while written < len(view):
                try:
                    written += os.write(self._fd, view[written:])
                except BlockingIOError:
                    if waited:
                        raise
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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
