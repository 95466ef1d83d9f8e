"""The only loop of the data path: ready? step, publish, ring; else idle. The same for a source, a transform and a sink.

| state | becomes | when |
|---|---|---|
| starting | running | the stage is open and holds its tables |
| running | finished | capture: the source has ended and all of it is published |
| running, finished | draining | SIGTERM or SIGINT |
| draining | stopped | everything that was ready then is published; the process exits 0 |
| any | (gone) | a block is not what was announced (DamagedError): the process ends for good, its lane stands still and says so |
| any | (gone) | an exception leaves the stage: the process ends, and whoever watches starts it again at its cursor |
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from broker.core import layout, log
from broker.core.batch import Batch
from broker.core.doorbell import PARK_LIMIT_MS, Doorbell
from broker.core.errors import DamagedError, PipelineError, WorkerRunningError
from broker.core.generations import read_generation
from broker.core.metrics import index
from broker.core.model import Lane
from broker.core.ring import Atomics, Ring
from broker.core.shm import LaneMemory, Pipeline
from broker.core.stage import Context, Reader, Source, Stage

_BUSY, _STARVED, _BLOCKED = index("", "busy_ns"), index("", "starved_ns"), index("", "blocked_ns")
_PARKS, _BELLS = index("", "parks"), index("", "bells")
_HEARTBEAT = layout.words(layout.WORKER)["heartbeat_ns"]
_WANTED = layout.words(layout.PIPELINE)["generation"]
_SEQ, _GENERATION, _N_PACKETS = (layout.words(layout.BLOCK)[name] for name in ("seq", "generation", "n_packets"))
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2): type, whence, start, length, pid
AGAIN_MS = 1
SOON_S, SOON_TIMES = 50e-6, 20
"""A neighbour on another core needs tens of microseconds to do what a block waits for (its numbers): so long it is asked often."""


class Runner:
    """One worker of one stage, in the process that calls `run`."""

    def __init__(self, pipeline: Pipeline, lane: Lane, stage: Stage, worker: int, atomics: Atomics) -> None:
        """PipelineError in words when there is no such worker, WorkerRunningError when it is running already."""
        if not 0 <= lane.number < len(pipeline.lanes):
            raise PipelineError(f"pipeline {pipeline.name!r} has lanes 0 to {len(pipeline.lanes) - 1}, not {lane.number}")
        memory = pipeline.lanes[lane.number]
        self.kind = stage.KIND
        self.lane = lane
        if not 0 <= worker < memory.geometry.count(self.kind):
            raise PipelineError(f"lane {lane.number} has {self.kind} workers 0 to {memory.geometry.count(self.kind) - 1}, not {worker}")
        self._lock = _only_one(memory, self.kind, worker)
        self.pipeline, self.memory, self.stage, self.worker = pipeline, memory, stage, worker
        self.ring = Ring(memory, self.kind, worker, atomics)
        self.row = self.ring.row
        self.live = memory.live[self.ring.row_index]
        # The loop sees its words as plain integers: a numpy scalar costs ten times as much, several times a block.
        self._words, self._live = self.row.reshape(1).view(np.int64).data, self.live.data
        self._pipeline_words = pipeline.header.view(np.int64).data
        self.log = log.get(pipeline=pipeline.name, lane=lane.number, stage=self.kind, worker=worker)
        self.generation = 0
        self._source: Source | None = stage if self.kind == "capture" else None  # type: ignore[assignment]
        self._reader: Reader | None = stage if self.kind == "flows" else None  # type: ignore[assignment]
        self._stop_asked = False
        self._stop_at = -1  # the block before which a drain ends

    def run(self) -> None:
        """Work until told to stop. Returns when drained."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload is the supervisor's
        row, directory = self.row, self.pipeline.directory
        row["pid"], row["error"] = os.getpid(), 0
        row["epoch"] += 1
        row["state"] = layout.STATE_STARTING
        row["heartbeat_ns"] = time.monotonic_ns()
        self.ring.unpark()  # the one before me may have died in its sleep
        self.bell = Doorbell(directory, self.memory.number, self.kind, self.worker)
        self.bell.wake_on_signals()
        self._ring_neighbours()
        first = self._first_generation()
        generation = read_generation(directory, first, rules=False)
        self.stage.open(self._context())
        self.stage.load(generation)
        self.generation = row["generation"] = first
        row["heartbeat_ns"] = time.monotonic_ns()  # opening may have taken longer than who runs may be silent
        row["state"] = layout.STATE_RUNNING
        self.log.info("worker_started", pid=os.getpid(), epoch=int(row["epoch"]), seq=self.ring.seq, generation=first)
        try:
            self._loop()
        finally:
            self.stage.close()
            self.bell.close()
        row["state"] = layout.STATE_STOPPED
        self.log.info("worker_stopped", seq=self.ring.seq)

    def _ring_neighbours(self) -> None:
        """The one before me may have died between its cursor, with which it took back that somebody sleeps, and the bell."""
        for kind, worker in self.ring.neighbours():
            self.bell.ring(kind, worker)

    def _context(self) -> Context:
        memory, ring, pipeline = self.memory, self.ring, self.pipeline
        return Context(
            directory=pipeline.directory,
            lane=self.lane,
            worker=self.worker,
            n_workers=memory.geometry.count(self.kind),
            geometry=memory.geometry,
            epoch=int(self.row["epoch"]),
            counters=ring.counters,
            counters_at=ring.counters_at,
            live=self.live,
            live_at=int(self.live.ctypes.data),
            tool_sequence_at=pipeline.tool_sequence_at,
            tickets_at=memory.tickets_at,
            progress_at=ring.progress_at,
            lanes_total=len(pipeline.lanes),
            ring_fill=self._ring_fill,
            tool_state=pipeline.tool_state,
            cursor=ring.seq,
        )

    def _ring_fill(self) -> float:
        g = self.memory.geometry
        if self._reader is not None:
            return (self.ring.backlog() - self.ring.seq) / g.n_blocks
        # Only what is on its way: who reads beside the path is not helped by anything that is done to it.
        cursors, first_send = self.memory.workers["cursor"], g.row("send", 0)
        return float(int(cursors[0]) - int(cursors[first_send : first_send + g.n_send].min())) / g.n_blocks

    def _loop(self) -> None:
        ring, words, live = self.ring, self._words, self._live
        clock = time.monotonic_ns
        step: Callable[[Any], int] = self.stage.step
        source = self._source
        now, in_vain = clock(), 0
        while True:
            words[_HEARTBEAT] = now
            if self._stop_asked and self._drained():
                if self._reader is None or not self._reader.flush():
                    return
                now = self._idle(now, _STARVED, AGAIN_MS)
                continue
            if not ring.ready():
                if self._reader is not None:
                    self._reader.tick()
                now = self._idle(now, _BLOCKED if source else _STARVED)
                continue
            batch = ring.batch()
            if source is None:
                self._check(batch)
            self._follow(batch.head)
            n = step(batch)
            before, now = now, clock()
            live[_BUSY] += now - before
            if n > 0 or (n == 0 and source is None):
                in_vain = 0
                if source:
                    batch.head[_SEQ] = ring.seq + 1
                self._publish()
            elif source is None:
                in_vain += 1
                now = self._idle(now, _STARVED, AGAIN_MS) if in_vain > SOON_TIMES else self._nap(now)
            else:
                if source.finished:
                    self._finish()
                now = self._await_source(now, source)

    def _publish(self) -> None:
        for kind, worker in self.ring.publish():
            self._live[_BELLS] += 1
            self.bell.ring(kind, worker)

    def _check(self, batch: Batch) -> None:
        """DamagedError if this is not the block that was announced. What its rows say is checked by who uses them, row by row."""
        stamped, n_packets = batch.head[_SEQ] - 1, batch.head[_N_PACKETS]
        if stamped != self.ring.seq or not 0 <= n_packets <= batch.max_packets:
            raise DamagedError(
                f"shared memory of lane {self.lane.number} is damaged: where block {self.ring.seq} should be lies one that says it is "
                f"{stamped} and has {n_packets} packets (at most {batch.max_packets})"
            )

    def _follow(self, head: Any) -> None:
        """Hold the tables of the generation that this block is handled by. Capture stamps it; all others read the stamp."""
        number = self._generation_wanted() if self._source else head[_GENERATION]
        if number != self.generation:
            self.stage.load(read_generation(self.pipeline.directory, number, rules=False))
            self.generation = self.row["generation"] = number
            self.log.info("generation_loaded", generation=number, seq=self.ring.seq)
        if self._source:
            head[_GENERATION] = number

    def _first_generation(self) -> int:
        """That of the next block, as far as it can be known: begun with a later one, the stage would have to go back."""
        if not self._source and self.ring.ready():
            return int(self.ring.batch().head[_GENERATION])
        # The blocks that are still upstream are of this one or later; of a worker's first start none are.
        held = 0 if self._source else int(self.row["generation"])
        return held or self._generation_wanted()

    def _generation_wanted(self) -> int:
        return self._pipeline_words[_WANTED]

    def _idle(self, since: int, account: int, limit_ms: int = PARK_LIMIT_MS) -> int:
        """Sleep until rung, at most `limit_ms`; the time goes to `account`. Returns the time now."""
        if limit_ms == AGAIN_MS:
            self.bell.wait(limit_ms)
        elif self.ring.park():
            self._live[_PARKS] += 1
            self.bell.wait(limit_ms)
            self.ring.unpark()
        now = time.monotonic_ns()
        self._live[account] += now - since
        return now

    def _nap(self, since: int) -> int:
        time.sleep(SOON_S)
        now = time.monotonic_ns()
        self._live[_STARVED] += now - since
        return now

    def _await_source(self, since: int, source: Source) -> int:
        """Nothing has come: wait for the source, not for a neighbour (the slot is free)."""
        limit_ms, fd = PARK_LIMIT_MS, -1
        if not source.finished:
            fd = source.wait_fd
            if source.due_ns:
                limit_ms = min(limit_ms, max(0, -((since - source.due_ns) // 1_000_000)))  # rounded up: rounded down it would spin
        self._live[_PARKS] += 1
        self.bell.wait(limit_ms, fd)
        now = time.monotonic_ns()
        self._live[_STARVED] += now - since
        return now

    def _finish(self) -> None:
        if self.row["state"] != layout.STATE_FINISHED:
            self.row["state"] = layout.STATE_FINISHED
            self.log.info("source_finished", blocks=self.ring.seq)

    def _ask_stop(self, _number: int, _frame: Any) -> None:
        self._stop_asked = True

    def _drained(self) -> bool:
        """Called once a stop is asked for: is everything done that was there to do at that moment?"""
        if self._stop_at < 0:
            self.row["state"] = layout.STATE_DRAINING
            if self._source:
                self._source.stop()
                self._stop_at = 0
            else:
                self._stop_at = self.ring.backlog()
        return self._source.finished if self._source else self.ring.seq >= self._stop_at


def _only_one(memory: LaneMemory, kind: str, worker: int) -> int:
    """A lock that dies with the process: two writers of one cursor would corrupt the ring.

    It is on the memory itself, one byte for each row, so that whoever can write there has to hold it: a file beside it could be removed and
    made anew, under a worker that is stopped and goes on later. Of the open file and not of the process (F_OFD_SETLK): closing another
    descriptor of the file leaves it.
    """
    fd = os.open(memory.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    one_byte = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, memory.geometry.row(kind, worker), 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, one_byte)
    except (BlockingIOError, PermissionError):
        os.close(fd)
        raise WorkerRunningError(f"{kind} worker {worker} of lane {memory.number} is running already") from None
    return fd
