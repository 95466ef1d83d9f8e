"""The exporter's end of the spool: what the store has not taken yet lies on disk, within bounds. The files are described in `segments`.

| state of a row | becomes | when |
|---|---|---|
| in `flows-L` | appended, and then released there | written whole to the open segment |
| in `flows-L` | dropped, counted, and then released there | the spool is full, the disk refuses it, or only room to store with is left |
| appended | closed | its segment is large or old enough, and all its rows are released |
| closed | stored | the store has acknowledged the segment, which is removed then |

A segment is closed only when the ring has no row of it any more. So what an exporter that died had appended and not released is in an
open file, and the next exporter finds there which numbers not to append again.

Where the store writes to the same disk (`keeps_room`), as many bytes as the largest segment has, and ROOM_BYTES, stay free: only a segment
that is stored makes room, and that takes room first.

fdatasync and rename happen in a thread of their own, in order: a slow disk must not hold up who reads the rings.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core import log
from broker.core.errors import TapmeshError
from broker.flows import segments
from broker.flows.segments import Header, SegmentError

EVENTS = {
    "spool_refused": "rows are dropped: the spool is full, or the disk refuses them; once, until it takes some again",
    "spool_resumed": "the spool takes rows again",
    "spool_sync_failed": "the disk would not say that it has a segment; it may be lost in a power cut",
    "segment_set_aside": "a file of the spool could not be understood and lies in its directory `damaged` now",
}

SEGMENT_BYTES = 16 * 1024 * 1024
"""A store takes a segment at once, and needs memory in proportion."""
LOOK_S = 1.0
"""How often it is looked what the store has removed, when nothing presses."""
ROOM_BYTES = 64 * 1024
"""What a few rows take in a file of their own, and directories."""
_HOPELESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(slots=True)
class _Open:
    path: Path
    fd: int
    header: Header
    n_rows: int
    n_bytes: int
    since_ns: int  # monotonic


class Spool:
    """`row` is an EXPORT row: dropped_*, refusing and waiting_records are kept here, all other columns belong to the store process.

    TapmeshError when the directory cannot be used, now or later; OSError when that may pass."""

    def __init__(self, directory: Path, header: Header, row: Any, *, flush_s: float, max_bytes: int, keeps_room: bool = False) -> None:
        self.directory, self._row = directory, row
        self._header = header  # `kind` is that of the segment
        self._flush_ns = int(flush_s * 0.7e9)  # the store wants some of that time too
        self._max_bytes, self._keeps_room = max_bytes, keeps_room
        self._segment_bytes = max(1 << 20, min(SEGMENT_BYTES, max_bytes // 8))
        self._log = log.get(spool=str(directory))
        self._refused = ""
        self._lock = occupy(directory, "exporter")
        self._thread = ThreadPoolExecutor(1, "spool")
        self._tasks: deque[tuple[Future[None], int]] = deque()  # and how many records are in the segment
        self._open: dict[str, _Open] = {}
        self._numbers: dict[int, int] = {}
        self._id = self._waiting = self._used = self._largest = 0
        self._pressed = False  # the open segments take the room that is missing
        row["refusing"] = 0
        self._take_over()
        self._look()

    def next_number(self, lane: int) -> int:
        """Records of this run below it may be in the spool already, if the exporter before was killed; all others are not."""
        return self._numbers.get(lane, 0)

    def append(self, kind: str, rows: NDArray[np.void]) -> bool:
        """All rows or none of them; none: they are counted as dropped."""
        if not len(rows):
            return True
        reason = self._write(kind, rows)
        if reason:
            if kind == "flows":
                self._row["dropped_records"] += len(rows)
                self._row["dropped_packets"] += int(rows["packets"].sum())
                self._row["dropped_bytes"] += int(rows["bytes"].sum())
            if not self._refused:
                self._log.error("spool_refused", reason=reason, kind=kind, rows=len(rows))
            self._refused = reason
        elif self._refused:
            self._log.info("spool_resumed", dropped_records=int(self._row["dropped_records"]))
            self._refused = ""
        self._row["refusing"] = bool(reason)
        self._tell()
        return not reason

    def tick(self, inputs: dict[int, str]) -> None:
        """Call often, and only when every row that was appended is released. `inputs`: slot -> name, of the rows that will come."""
        now_ns = time.monotonic_ns()
        self._header = Header("flows", self._header.node, self._header.run, inputs)
        for kind, one in list(self._open.items()):
            if one.n_rows and (
                one.n_bytes >= self._segment_bytes
                or now_ns - one.since_ns >= self._flush_ns
                or one.header.inputs != inputs
                or self._pressed
            ):
                self._close(kind)
        self._pressed = False
        while self._tasks and self._tasks[0][0].done():
            self._judge(self._tasks.popleft()[0])
        if now_ns - self._looked_ns >= LOOK_S * 1e9:
            self._look()

    def close(self) -> None:
        """Hand over to the store what is there. Every row that was appended must be released."""
        for kind in list(self._open):
            self._close(kind)
        self._thread.shutdown(wait=True)
        while self._tasks:
            self._judge(self._tasks.popleft()[0])
        self._look()
        self._row["refusing"] = 0
        release(self._lock)

    def _write(self, kind: str, rows: NDArray[np.void]) -> str:
        """Why not, in words; empty: written."""
        if self._used + rows.nbytes > self._max_bytes:
            self._look()
        if reason := self._no_room(kind, rows.nbytes):
            self._pressed = True
            return reason
        try:
            one = self._open.get(kind) or self._begin(kind)
        except OSError as error:
            return str(error)
        view, at = np.ascontiguousarray(rows).view(np.uint8).data, 0
        try:
            while at < len(view):
                at += os.pwrite(one.fd, view[at:], one.n_bytes + at)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(one.fd, one.n_bytes)
            return f"{one.path}: {error.strerror}"
        if not one.n_rows:
            one.since_ns = time.monotonic_ns()
        one.n_rows += len(rows)
        one.n_bytes += len(view)
        self._used += len(view)
        return ""

    def _no_room(self, kind: str, n_bytes: int) -> str:
        """In words, if `n_bytes` more are too many for us, or would leave too little to store a segment."""
        if self._used + n_bytes > self._max_bytes:
            return f"{self._used:,} of {self._max_bytes:,} bytes are in use"
        if not self._keeps_room:
            return ""
        one = self._open.get(kind)
        needed = max(self._largest, n_bytes + (one.n_bytes if one else 0)) + ROOM_BYTES
        disk = os.statvfs(self.directory)
        free = disk.f_bavail * disk.f_frsize
        return f"{free:,} bytes are free on the disk, and {needed:,} have to stay to store what waits" if free - n_bytes < needed else ""

    def _begin(self, kind: str) -> _Open:
        header = Header(kind, self._header.node, self._header.run, self._header.inputs)
        content = segments.header_bytes(header)
        self._id = max(self._id + 1, time.time_ns())
        path = self.directory / f"{kind}-{header.run}-{self._id}.open"
        scratch = self.directory / f".{path.name}"
        fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.pwrite(fd, content, 0) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch))
            scratch.rename(path)
        except OSError:
            os.close(fd)
            scratch.unlink(missing_ok=True)
            raise
        self._used += len(content)
        self._open[kind] = one = _Open(path, fd, header, 0, len(content), time.monotonic_ns())
        return one

    def _close(self, kind: str) -> None:
        one = self._open.pop(kind)
        self._waiting += one.n_rows if kind == "flows" else 0
        self._largest = max(self._largest, one.n_bytes)
        self._tasks.append((self._thread.submit(_finish, one), one.n_rows if kind == "flows" else 0))

    def _judge(self, task: Future[None]) -> None:
        error = task.exception()
        if error is not None:
            self._log.error("spool_sync_failed", reason=str(error))

    def _look(self) -> None:
        self._looked_ns = time.monotonic_ns()
        self._used = segments.used_bytes(self.directory)
        closing = sum(n_records for task, n_records in self._tasks if not task.done())
        waiting = segments.closed(self.directory)
        self._waiting = closing + sum(s.n_rows for s in waiting if s.kind == "flows")
        if not self._tasks:
            self._largest = max((s.n_rows * segments.KINDS[s.kind].itemsize for s in waiting), default=0)
        if self._refused and not self._no_room("flows", ROOM_BYTES):  # nothing may come for long that would find it
            self._row["refusing"] = 0
        self._tell()

    def _tell(self) -> None:
        one = self._open.get("flows")
        self._row["waiting_records"] = self._waiting + (one.n_rows if one else 0)

    def _take_over(self) -> None:
        """Files that the exporter before has left: the last of this run is gone on with, all others are closed."""
        for scratch in self.directory.glob(".*.open"):
            scratch.unlink(missing_ok=True)
        for path in segments.left_open(self.directory):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                header, header_len = segments.read_header(fd)
                rows = segments.read_rows(fd, header, header_len)
            except SegmentError as error:
                os.close(fd)
                segments.set_aside(path, str(error))
                self._log.error("segment_set_aside", segment=path.name, reason=str(error))
                continue
            n_bytes = header_len + rows.nbytes
            os.ftruncate(fd, n_bytes)  # half a row
            self._id = max(self._id, int(path.stem.split("-")[2]))
            if header.kind in self._open:
                self._close(header.kind)
            self._open[header.kind] = _Open(path, fd, header, len(rows), n_bytes, time.monotonic_ns())
            if header.run != self._header.run or header.node != self._header.node:
                self._close(header.kind)
            elif header.kind == "flows":
                for lane in np.unique(rows["lane"]).tolist():
                    above = int(rows["number"][rows["lane"] == lane].max()) + 1
                    self._numbers[lane] = max(above, self._numbers.get(lane, 0))


def _finish(one: _Open) -> None:
    """In the thread. One without rows is removed."""
    try:
        if not one.n_rows:
            one.path.unlink()
            return
        try:
            os.fdatasync(one.fd)
        finally:  # refused or not: the store can read it
            one.path.rename(one.path.with_name(f"{one.path.stem}-{one.n_rows}.segment"))
            segments.sync_directory(one.path.parent)
    finally:
        os.close(one.fd)


def occupy(directory: Path, who: str) -> int:
    """A lock on a directory that is made if need be; it dies with the process. TapmeshError when another `who` has it, or when it cannot
    be used; OSError when that may pass."""
    path = directory / f".{who}.lock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise TapmeshError(f"{directory}: not a directory") from None
    except OSError as error:
        if error.errno in _HOPELESS:
            raise TapmeshError(f"{error.filename}: {error.strerror}") from None
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise TapmeshError(f"{directory}: another {who} uses it") from None
    return fd


def release(lock: int) -> None:
    """What `occupy` gave."""
    os.close(lock)
