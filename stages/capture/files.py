"""Capture files as a source: all files of all inputs of the lane, one after the other.

| what is wrong | what happens |
|---|---|
| a file that cannot be opened, or whose header says that it cannot be read | SourceError from `open`: nothing of any file is played |
| the same of a pipe (or a file that was changed since `open`), or a file that goes bad in the middle | what came before is delivered, \
the reason and the offset are reported (`errors.report`), and the next file is played |

The position after each block is committed with the block, so a worker that is killed resumes where the ring ends: nothing is lost or
repeated. Pipes and standard input cannot be read again: there a worker that died refuses to resume.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from broker.core import log
from broker.core.batch import Batch
from broker.core.metrics import index
from broker.core.model import Input
from broker.core.stage import Context
from stages.capture import walk
from stages.capture.chunks import END, LATER, Chunks, can_be_read_again
from stages.capture.errors import SourceError, report
from stages.capture.pace import Pace
from stages.capture.pcap import Format, Pcap, matches
from stages.capture.pcapng import MAGIC, Pcapng

EVENTS = {"file_failed": "a capture file could not be read to its end; what came before is delivered"}

_FILE, _AT = index("capture", "source_file"), index("capture", "source_at")
_STATE_A, _STATE_B = index("capture", "source_state_a"), index("capture", "source_state_b")
_CHUNKS_PER_STEP = 256  # a file may hold gigabytes of blocks without packets, and a worker must show signs of life
_GZIP = b"\x1f\x8b"


class Files:
    """One step: the open file's format fills the batch from its window; the next file follows in the same batch."""

    def __init__(self, context: Context) -> None:
        self._context, self._counters = context, context.counters
        self._log = log.get(lane=context.lane.number, stage="capture")
        self._plays: list[tuple[Input, str]] = [(i, file) for i in context.lane.inputs for file in i.files]
        self._walk = np.zeros(1, walk.WALK)
        self._row: Any = self._walk[0]
        self._row_at = int(self._walk.ctypes.data)
        self._chunks: Chunks | None = None
        self._format: Format | None = None  # None while the header of the open file is not there yet
        self._next = 0  # the file that is open, or the next one
        self._stopped = False
        self.due_ns = 0

    def open(self) -> None:
        context, counters = self._context, self._counters
        try:
            self._paces = {i.slot: Pace.parse(i.pace) for i in context.lane.inputs}
        except ValueError as error:
            raise SourceError(context.lane.inputs[0].name, None, str(error)) from None
        self._next, at = int(counters[_FILE]), int(counters[_AT])
        wrong = [found for _, path in self._plays[self._next :] if (found := self._try(path))]
        for each in wrong:
            report(context.directory, each)  # all of them; only one can be raised
        if wrong:
            raise wrong[0]
        if at and self._next < len(self._plays):
            self._resume(at)

    def _try(self, path: str) -> SourceError | None:
        """What is wrong with the file's header; of a pipe it cannot be known yet, and its writer would take the close for the end."""
        try:
            if not can_be_read_again(path):
                return None
            chunks = Chunks(path, self._row)
        except SourceError as error:
            return error
        try:
            self._start(chunks)
        except SourceError as error:
            return error
        finally:
            chunks.close()
        return None

    def _start(self, chunks: Chunks) -> Format | None:
        """Read the header, whatever format it is of; None if it is not there yet."""
        made: Format
        if chunks.want(4) == LATER:
            return None
        magic = chunks.peek(4)
        if matches(magic):
            made = Pcap(self._row, self._row_at)
        elif magic == MAGIC:
            made = Pcapng(self._row, self._row_at)
        elif not magic:
            raise SourceError(chunks.path, 0, "is empty")
        elif magic[:2] == _GZIP:
            raise SourceError(chunks.path, 0, "is compressed; give its content: gunzip -c FILE | tapmesh replay - ...")
        else:
            raise SourceError(chunks.path, 0, f"is neither pcap nor pcapng: it begins with {magic.hex()}")
        found = chunks.want(made.header_bytes)
        if found == LATER:
            return None
        if found == END:
            raise SourceError(chunks.path, len(chunks.peek(made.header_bytes)), "ends in the middle of its header")
        return made if made.start(chunks) else None

    def _resume(self, at: int) -> None:
        """Stand where the committed blocks end."""
        _, path = self._plays[self._next]
        chunks = self._chunks = Chunks(path, self._row)
        if not chunks.regular:
            raise SourceError(path, at, "cannot be resumed: what a pipe has given once is gone")
        if chunks.size < at:
            raise SourceError(path, at, f"cannot be resumed: the file has only {chunks.size} bytes now")
        made = self._format = self._start(chunks)
        assert made is not None  # a regular file has everything at once
        made.resume(chunks, at, (int(self._counters[_STATE_A]), int(self._counters[_STATE_B])))

    @property
    def finished(self) -> bool:
        return self._stopped or self._next >= len(self._plays)

    @property
    def wait_fd(self) -> int:
        """The pipe that is being read, or -1: a file, or packets that are here and not due. Their pipe is readable all the while."""
        return self._chunks.fd if self._chunks is not None and not self._chunks.regular and not self.due_ns else -1

    def stop(self) -> None:
        self._stopped = True

    def step(self, batch: Batch) -> int:
        """Packets given and dropped. A block without packets carries the counters and the position of those dropped."""
        row = self._row
        row["n_packets"] = row["data_used"] = row["looked"] = 0
        row["data_bytes"] = batch.data_bytes
        self.due_ns = 0
        for _ in range(_CHUNKS_PER_STEP):
            if self.finished or not self._advance(batch):
                break
        else:
            self.due_ns = 1  # there is more, at once
        looked = int(row["looked"])
        if looked:
            block = batch.block[0]
            block["n_packets"], block["data_used"] = row["n_packets"], row["data_used"]
            self._note_position()
        return looked

    def _note_position(self) -> None:
        counters, open_ = self._counters, self._format
        counters[_FILE] = self._next
        counters[_AT] = self._chunks.position if self._chunks is not None and open_ is not None else 0
        counters[_STATE_A], counters[_STATE_B] = open_.state() if open_ is not None else (0, 0)

    def _advance(self, batch: Batch) -> bool:
        """Go on with the open file, or to the next; False: this step is over."""
        try:
            return self._play(batch)
        except SourceError as error:
            report(self._context.directory, error)
            self._log.error("file_failed", reason=str(error))
            self._next_file()
            return True

    def _next_file(self) -> None:
        if self._chunks is not None:
            self._chunks.close()
        self._chunks = self._format = None
        self._next += 1

    def _play(self, batch: Batch) -> bool:
        input_, path = self._plays[self._next]
        pace, row = self._paces[input_.slot], self._row
        if self._chunks is None:
            self._chunks = Chunks(path, row)
            pace.begin()
        chunks = self._chunks
        if self._format is None:
            self._format = self._start(chunks)
            if self._format is None:
                return False
        now_ns, before = time.monotonic_ns(), int(row["n_packets"])
        row["input"] = input_.slot
        row["max_packets"] = min(batch.max_packets, before + pace.allowed(now_ns))
        row["ts_limit"] = pace.ts_limit(now_ns)
        status = self._format.run(chunks, batch, self._context.counters_at)
        pace.give(int(row["n_packets"]) - before)
        if status == walk.NEED:
            return self._more(chunks)
        if status == walk.BAD:
            reason = walk.REASONS[int(row["reason"])].format(value=int(row["value"]))
            raise SourceError(path, chunks.position, reason)
        if status == walk.PACED and pace.awaits_first:
            pace.anchor(int(row["ts_next"]), now_ns)
            return True
        if status == walk.PACED or row["max_packets"] < batch.max_packets:
            self.due_ns = pace.due_ns(int(row["ts_next"]))
        return False

    def _more(self, chunks: Chunks) -> bool:
        """Get what the format needs to go on; False: a pipe has nothing now."""
        need = int(self._row["need"])
        found = chunks.want(need)
        if found == END:
            got = int(self._row["end"]) - int(self._row["at"])
            if got:
                raise SourceError(chunks.path, chunks.position, f"ends in the middle of a record: {got} of {need} bytes are there")
            self._next_file()
        return found != LATER

    def close(self) -> None:
        if self._chunks is not None:
            self._chunks.close()
            self._chunks = None
