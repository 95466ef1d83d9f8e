"""Frames as a capture over TCP or TLS: each connection is a file of its own, which begins with a header and holds whole records.

The kernel holds `buffer_bytes` for a reader, and we at most what was begun (`connection.py`); a reader for which that is not enough misses
records until there is room again. With `listen` there may be several readers: a frame is delivered if one of them has taken it.

| frames that come while | are counted in |
|---|---|
| some reader takes them | delivered_frames; for each reader that is full besides, in reader_missed_frames |
| every reader is full | dropped_full, and reader_missed_frames |
| there is no reader | dropped_tool_down; dialling: by errno (dropped_no_listener, dropped_unreachable) |

What a reader had not taken from us when it went is counted in reader_lost_frames, besides; what the kernel held for it nobody knows.
After a crash every reader has to come again, and one block may be repeated.
"""

from __future__ import annotations

import ctypes
from typing import Any

from broker.core.batch import Batch
from broker.core.model import Tool
from broker.core.stage import Context
from stages.send.connection import Connection, GoneError
from stages.send.egress import DELIVERED_BYTES, DELIVERED_FRAMES, FULL, READER_LOST, READER_MISSED, Notices, Scratch
from stages.send.formats import Format
from stages.send.usher import Usher


class StreamEgress:
    """One tool's readers."""

    repeats = True

    def __init__(self, tool: Tool, made: Format, context: Context, scratch: Scratch, log: Any) -> None:
        self.tool = tool
        self.format = made
        self._counters = context.counters[tool.slot :]
        self._scratch = scratch
        self._progress = ctypes.c_int64.from_address(context.progress_at)
        self._notices = Notices(log, tool)
        self._readers: list[Connection] = []
        self._n_full = 0  # with the usher, until they have room
        self._usher = Usher(tool, made.header, context.lane.number, log)
        self._known: set[Connection] = set()

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        self._meet()
        self._counters[READER_MISSED] += n_rows * self._n_full
        scratch = self._scratch
        done = 0
        while done < n_rows and self._readers:
            after = self.format.fill(batch, rows_at, done, n_rows, scratch)
            self._progress.value = max(self._progress.value, progress + after)
            ends = scratch.ends[: after - done]
            records = scratch.buffer.data[: int(ends[-1])]
            taken = max(self._offer(reader, records, ends, n_rows - done) for reader in tuple(self._readers))
            self._counters[DELIVERED_FRAMES] += taken
            self._counters[DELIVERED_BYTES] += int(scratch.lens[taken - 1]) if taken else 0
            done += taken
        if done < n_rows:
            self._counters[FULL if self._n_full else self._usher.down] += n_rows - done
            if self._n_full:
                self._notices.warn("tool_full", "the reader is too slow")

    def _meet(self) -> None:
        """Take over who is new or has room again, and part with who has gone."""
        usher = self._usher
        while usher.gone:
            self._n_full -= 1
            self._lost(usher.gone.popleft())
        while usher.ready:
            reader = usher.ready.popleft()
            self._n_full -= reader in self._known
            self._known.add(reader)
            self._readers.append(reader)
        for reader in tuple(self._readers):
            try:
                reader.look()
            except (OSError, GoneError) as error:
                self._part(reader, error)

    def _offer(self, reader: Connection, records: memoryview, ends: Any, n_rows: int) -> int:
        """How many records it took. `n_rows`: how many there are for it in this block."""
        try:
            taken = reader.offer(records, ends)
        except (OSError, GoneError) as error:
            self._part(reader, error)
            return 0
        if reader.step == "full":
            self._counters[READER_MISSED] += n_rows - taken
            self._readers.remove(reader)
            self._n_full += 1
            self._usher.take_back(reader)
        return taken

    def _part(self, reader: Connection, error: Exception) -> None:
        self._notices.warn("reader_left", str(error), peer=reader.peer)
        self._readers.remove(reader)
        reader.close()
        self._lost(reader)
        self._usher.forget(reader)

    def _lost(self, reader: Connection) -> None:
        self._known.discard(reader)
        self._counters[READER_LOST] += reader.held

    def close(self) -> None:
        for reader in self._readers:
            self._usher.take_back(reader)
        self._readers.clear()
        self._usher.stop()
