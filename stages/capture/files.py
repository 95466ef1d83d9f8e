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

from broker.core import log
from broker.core.batch import Batch
from broker.core.layout import PAGE, SOURCE_FAILED
from broker.core.metrics import index
from broker.core.model import Input
from broker.core.stage import Context, Generation
from stages.capture import walk
from stages.capture.errors import SourceError, report
from stages.capture.pace import Pace
from stages.capture.pcap import Format, Pcap, matches
from stages.capture.pcapng import MAGIC, Pcapng
from stages.capture.window import Window, can_be_read_again

EVENTS = {"file_failed": "a capture file could not be read to its end; what came before is delivered"}

_FILE, _AT = index("capture", "source_file"), index("capture", "source_at")
_STATE_A, _STATE_B = index("capture", "source_state_a"), index("capture", "source_state_b")
_TROUBLE = index("capture", "source_trouble")
_READS_PER_STEP = 256  # a file may hold gigabytes of blocks without packets, and a worker must show signs of life
_GZIP = b"\x1f\x8b"


class Files:
    """One step: the open file's format fills the batch from its window; the next file follows in the same batch."""

    def __init__(self, context: Context) -> None:
        self._context, self._counters = context, context.counters
        self._log = log.get(lane=context.lane.number, stage="capture")
        self._plays: list[tuple[Input, str]] = [(i, file) for i in context.lane.inputs for file in i.files]
        self._row = walk.Walk()
        self._window: Window | None = None
        self._format: Format | None = None  # None while the header of the open file is not there yet
        self._next = 0  # the file that is open, or the next one
        self._wanted = context.geometry.data_bytes  # to be read for a block: a little more than the last one took
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
            window = Window(path, self._row)
        except SourceError as error:
            return error
        try:
            self._start(window)
        except SourceError as error:
            return error
        finally:
            window.close()
        return None

    def _start(self, window: Window) -> Format | None:
        """Read the header, whatever format it is of; None if it is not there yet."""
        made: Format
        magic = window.peek(4)
        if len(magic) < 4 and not window.ended:
            return None
        if matches(magic):
            made = Pcap(self._row)
        elif magic == MAGIC:
            made = Pcapng(self._row)
        elif not magic:
            raise SourceError(window.path, 0, "is empty")
        elif magic[:2] == _GZIP:
            raise SourceError(window.path, 0, "is compressed; give its content: gunzip -c FILE | tapmesh replay - ...")
        else:
            raise SourceError(window.path, 0, f"is neither pcap nor pcapng: it begins with {magic.hex()}")
        got = len(window.peek(made.header_bytes))
        if got < made.header_bytes:
            if window.ended:
                raise SourceError(window.path, got, "ends in the middle of its header")
            return None
        return made if made.start(window) else None

    def _resume(self, at: int) -> None:
        """Stand where the committed blocks end."""
        _, path = self._plays[self._next]
        window = self._window = Window(path, self._row)
        if not window.regular:
            raise SourceError(path, at, "cannot be resumed: what a pipe has given once is gone")
        if window.size < at:
            raise SourceError(path, at, f"cannot be resumed: the file has only {window.size} bytes now")
        made = self._format = self._start(window)
        assert made is not None  # a regular file has everything at once
        made.resume(window, at, (int(self._counters[_STATE_A]), int(self._counters[_STATE_B])))

    @property
    def finished(self) -> bool:
        return self._stopped or self._next >= len(self._plays)

    def load(self, generation: Generation) -> None:
        """Nothing in a file is sent by us now."""

    @property
    def wait_fd(self) -> int:
        """The pipe that is being read, or -1: a file, or packets that are here and not due. Their pipe is readable all the while."""
        return self._window.fd if self._window is not None and not self._window.regular and not self.due_ns else -1

    def stop(self) -> None:
        self._stopped = True

    def step(self, batch: Batch) -> int:
        """Packets given and dropped. A block without packets carries the counters and the position of those dropped."""
        row = self._row
        row.n_packets = row.data_used = row.looked = row.headers = 0
        row.data_bytes = batch.data_bytes
        if self._window is not None:
            self._window.seek(self._window.position)  # in the last block the rest of what was read is of no use
        self.due_ns = 0
        for _ in range(_READS_PER_STEP):
            if self.finished or not self._advance(batch):
                break
        else:
            self.due_ns = 1  # there is more, at once
        looked: int = row.looked
        if row.n_packets:
            self._wanted = max(row.data_used * 17 // 16, PAGE)
        if looked:
            block = batch.block[0]
            block["n_packets"], block["data_used"] = row.n_packets, row.data_used
            self._note_position()
        return looked

    def _note_position(self) -> None:
        counters, open_ = self._counters, self._format
        counters[_FILE] = self._next
        counters[_AT] = self._window.position if self._window is not None and open_ is not None else 0
        counters[_STATE_A], counters[_STATE_B] = open_.state() if open_ is not None else (0, 0)

    def _advance(self, batch: Batch) -> bool:
        """Go on with the open file, or to the next; False: this step is over."""
        try:
            return self._play(batch)
        except SourceError as error:
            report(self._context.directory, error)
            self._log.error("file_failed", reason=str(error))
            self._context.live[_TROUBLE + self._plays[self._next][0].slot] = SOURCE_FAILED
            self._next_file()
            return True

    def _next_file(self) -> None:
        if self._window is not None:
            self._window.close()
        self._window = self._format = None
        self._next += 1

    def _play(self, batch: Batch) -> bool:
        input_, path = self._plays[self._next]
        pace, row = self._paces[input_.slot], self._row
        if self._window is None:
            self._window = Window(path, row)
            pace.begin()
        window = self._window
        if self._format is None:
            self._format = self._start(window)
            if self._format is None:
                return False
        now_ns, before = time.monotonic_ns(), row.n_packets
        row.input = input_.slot
        row.max_packets = min(batch.max_packets, before + pace.allowed(now_ns))
        row.ts_limit = pace.ts_limit(now_ns)
        status = self._format.run(window, batch, self._context.counters_at)
        pace.give(row.n_packets - before)
        if status == walk.NEED:
            return self._more(window, batch)
        if status == walk.BAD:
            reason = walk.REASONS[row.reason].format(value=row.value)
            raise SourceError(path, window.position, reason)
        if status == walk.ENOUGH:
            self.due_ns = 1
            return False
        if status == walk.PACED and pace.awaits_first:
            pace.anchor(row.ts_next, now_ns)
            return True
        if status == walk.PACED or (status == walk.FULL and row.max_packets < batch.max_packets):
            self.due_ns = pace.due_ns(row.ts_next)
        return False

    def _more(self, window: Window, batch: Batch) -> bool:
        """Read what the format needs to go on, behind the last packet of the block; False: it is full, or a pipe has nothing now."""
        row = self._row
        need, used = row.need, row.data_used
        if used and used + need > batch.data_bytes:
            return False
        if window.fill(batch.data, used, need, used or self._wanted):
            return True
        if not window.ended:
            return False
        got = row.end - row.at
        if got:
            raise SourceError(window.path, window.position, f"ends in the middle of a record: {got} of {need} bytes are there")
        self._next_file()
        return True

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None
