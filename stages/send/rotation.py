"""Capture files that follow one another in a directory: ``TOOL-20231114T221320.123456789Z-lane0.pcap`` says when, and by which lane.

The file in hand ends in ``.part``; closing it takes that away, and then nobody changes it any more. Wall clock: a file is closed before the
first block with frames that comes in the next multiple of `rotate_s`, or with which it would become longer than `rotate_bytes` (so only a
file with one large block is longer). All that is not the data path's is done by a child with low priority (`tidy.py`).

Exact after a crash, whenever it comes: files change only before anything of a block is written, when all blocks before are committed.

| found by the worker that takes over | because the one before | then |
|---|---|---|
| `file_next_ns` is later than the committed `file_begun_ns` | began that file in the block that is done again | that ``.part`` is removed |
| ``.part`` of `file_begun_ns`, and `file_inode` | died while writing it | it goes on where it is committed |
| another ``.part`` of this tool and lane, not locked | an earlier broker died | the child cuts it to whole records and closes it |
| a closed file not yet compressed | died before, or its child did | the child compresses it |

Only files with exactly such names are ever removed: the oldest, when there are more than `keep_files`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker.core.batch import Batch
from broker.core.model import Rotation, Tool
from broker.core.stage import Context
from stages.send.egress import FILE_BEGUN, FILE_BYTES, FILE_INODE, FILE_NEXT, Notices, Scratch
from stages.send.files import FileEgress
from stages.send.formats import Format
from stages.send.tidy import PART, ZIPPED

_NS = 1_000_000_000
_children: list[subprocess.Popen[bytes]] = []
"""All of this process, so that none becomes a zombie when its tool is gone."""


@dataclass(frozen=True)
class Names:
    """The names of the files of one tool and lane."""

    tool: str
    lane: int
    suffix: str  # .pcap

    def of(self, begun_ns: int) -> str:
        at = datetime.fromtimestamp(begun_ns // _NS, UTC)
        return f"{self.tool}-{at:%Y%m%dT%H%M%S}.{begun_ns % _NS:09}Z-lane{self.lane}{self.suffix}"

    def begun_ns(self, name: str) -> int:
        """When the file `name` was begun, whatever its state; 0: it is none of these."""
        pattern = rf"{re.escape(self.tool)}-(\d{{8}}T\d{{6}})\.(\d{{9}})Z-lane{self.lane}{re.escape(self.suffix)}"
        found = re.fullmatch(rf"{pattern}(?:{PART}|{ZIPPED}|{ZIPPED}{PART})?", name)
        if not found:
            return 0
        try:
            seconds = datetime.strptime(found[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
        except ValueError:
            return 0
        return int(seconds) * _NS + int(found[2])


class RotatingEgress:
    """One tool's files, of one lane."""

    repeats = False

    def __init__(self, tool: Tool, made: Format, context: Context, scratch: Scratch, log: Any) -> None:
        assert tool.rotation is not None
        self.tool = tool
        self._rotation: Rotation = tool.rotation
        self._directory = Path(tool.rotation.directory)
        self._given_to_files = made, context, scratch, log
        self.format = made
        self._names = Names(tool.name, context.lane.number, f".{tool.format}")
        self._counters, self._live = context.counters[tool.slot :], context.live[tool.slot :]
        self._notices = Notices(log, tool)
        self._child: subprocess.Popen[bytes] | None = None
        self._given: set[str] = set()  # names that a child has been told since the last file was begun
        self._begun_ns = int(self._counters[FILE_BEGUN])
        self._since_ns = time.monotonic_ns()
        self._remove_uncommitted()
        self._file = self._resume() or self._begin()
        self._tidy()

    def _part(self, begun_ns: int) -> Path:
        return self._directory / (self._names.of(begun_ns) + PART)

    def _remove_uncommitted(self) -> None:
        begun = int(self._live[FILE_NEXT])
        if begun > self._begun_ns:
            with contextlib.suppress(FileNotFoundError):
                self._part(begun).unlink()

    def _resume(self) -> FileEgress | None:
        """The file that the worker before this one was writing."""
        if not self._begun_ns:
            return None
        path = self._part(self._begun_ns)
        try:
            if path.stat().st_ino != int(self._counters[FILE_INODE]):
                return None  # put aside, and another in its place
        except OSError:
            return None
        return FileEgress(self.tool, *self._given_to_files, overwrite=False, path=path)

    def _begin(self) -> FileEgress:
        newest = max((at for at, _ in self._files()), default=0)
        self._begun_ns = max(time.time_ns(), newest + 1, self._begun_ns + 1)  # clocks go back; names must not
        self._since_ns = time.monotonic_ns()
        self._live[FILE_NEXT] = self._begun_ns  # before it is there, for whoever comes after a crash
        self._counters[FILE_BEGUN], self._counters[FILE_BYTES] = self._begun_ns, 0
        return FileEgress(self.tool, *self._given_to_files, overwrite=True, path=self._part(self._begun_ns))

    def _files(self) -> list[tuple[int, str]]:
        """(begun, name) of what is there of this tool and lane, oldest first."""
        try:
            with os.scandir(self._directory) as entries:
                return sorted((at, e.name) for e in entries if (at := self._names.begun_ns(e.name)) and e.is_file(follow_symlinks=False))
        except OSError:
            return []  # opening the file says why

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        if self._file.is_open and self._is_over(batch, rows_at, n_rows):
            self._finish()
            self._file = self._begin()
            self._given.clear()
            self._tidy()
        elif self._child is not None and self._child.poll() is not None:
            self._tidy()  # there may be more by now
        self._file.send(batch, rows_at, n_rows, progress)

    def _is_over(self, batch: Batch, rows_at: int, n_rows: int) -> bool:
        by_size, period_ns = self._rotation.rotate_bytes, self._rotation.rotate_s * _NS
        if self._file.length <= len(self.format.header):
            return False  # nothing in it yet
        if period_ns and self._is_late(period_ns):
            return True
        return bool(by_size) and self._file.length + self.format.size(batch, rows_at, n_rows) > by_size

    def _is_late(self, period_ns: int) -> bool:
        now_ns = time.time_ns()
        if now_ns < self._begun_ns:  # the clock went back, perhaps by years, or names are ahead of it since it did
            return time.monotonic_ns() - self._since_ns >= period_ns
        return now_ns // period_ns > self._begun_ns // period_ns

    def _finish(self) -> None:
        """Take the `.part` away; a file in which nothing is goes altogether."""
        path = self._file.path
        nothing = self._counters[FILE_BYTES] <= len(self.format.header)
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            if nothing:
                path.unlink()
            else:
                path.rename(path.with_name(path.name.removesuffix(PART)))
                self._notices.info("file_finished", file=str(path).removesuffix(PART))

    def _tidy(self) -> None:
        """Remove what is too old, and have the child do what is left to do with the others."""
        if self._child is not None and self._child.poll() is None:
            return
        self._child = None
        files = self._files()
        begun = sorted({at for at, _ in files})
        old = set(begun[: -self._rotation.keep_files]) if self._rotation.keep_files else set()
        for at, name in files:
            if at in old:
                self._remove(name)
        zips = self._rotation.compress == "gzip"
        plain = [n for at, n in files if at not in old and at != self._begun_ns and not n.endswith((ZIPPED, ZIPPED + PART))]
        work = [name for name in plain if (zips or name.endswith(PART)) and name not in self._given][:100]
        _children[:] = [child for child in _children if child.poll() is None]
        if work:
            self._given.update(work)
            command = [sys.executable, "-I", "-m", "stages.send.tidy", *(["--gzip"] if zips else []), str(self._directory), *work]
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            _children.append(self._child)

    def _remove(self, name: str) -> None:
        try:
            (self._directory / name).unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            self._notices.warn("file_not_removed", error.strerror or "", file=str(self._directory / name))

    def close(self) -> None:
        """All blocks are committed. A child that is at work goes on by itself, and another does what it has not been told."""
        self._finish()
        self._begun_ns = 0
        self._child = None
        self._tidy()

    def abandon(self) -> None:
        """The block in hand is not committed: leave the file to whoever does it again."""
        self._file.close()
