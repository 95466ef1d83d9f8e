"""Run as a process by test_ring_stress.py: a pipeline whose blocks carry checksums, whose workers are killed while they work.

Every worker is forked from here, so that one is back within milliseconds. Capture fills a block with bytes that nobody can guess, and their
number, length and checksum; each stage checks what those before it wrote, once it has the block and once more before it gives it up, and
adds a checksum of its own column. In between it stalls: at random, by giving its core away.

Prints one JSON line. A worker that finds anything wrong raises, and its exit status is reported.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import sys
import time
import traceback
import zlib
from typing import ClassVar

import numpy as np

from broker.core import layout, log
from broker.core.batch import Batch
from broker.core.generations import write_generation
from broker.core.layout import Geometry
from broker.core.metrics import index
from broker.core.model import Config, Input, Lane
from broker.core.ring import read_counters
from broker.core.runner import Runner
from broker.core.shm import Pipeline, create_pipeline, open_pipeline, remove_pipeline
from broker.core.stage import Context, Generation
from stages import atomics

GEOMETRY = Geometry(n_blocks=4, max_packets=16, max_frames=32, header_bytes=2048, data_bytes=8192, n_filter=2, n_encapsulate=2, n_flows=1)
COUNTED = {
    "capture": index("capture", "captured_packets"),
    "filter": index("filter", "judged_packets"),
    "encapsulate": index("encapsulate", "framed_frames"),
    "send": index("send", "delivered_frames"),
    "flows": index("flows", "metered_packets"),
}
HEAD_BYTES = 24  # of a block's data: number, length and checksum of what follows
STALL_YIELDS = 20
PATIENCE_S = 120.0
_PR_SET_PDEATHSIG = 1


class Checking:
    """A stage of any kind."""

    KIND: ClassVar[str]
    wait_fd = -1
    due_ns = 0

    def __init__(self, last: int, log_fd: int) -> None:
        self.last, self.log_fd, self.stopped = last, log_fd, False
        self.random = random.Random()

    def open(self, context: Context) -> None:
        self.counters, self.cursor = context.counters, context.cursor

    def load(self, generation: Generation) -> None:
        pass

    def step(self, batch: Batch) -> int:
        n_packets = 1 + batch.seq % batch.max_packets
        if self.KIND == "capture":
            if self.finished:
                return 0
            self._fill(batch, n_packets)
            self.cursor = batch.seq + 1
        else:
            self._check(batch, n_packets)
            self._stall()
            if self.KIND in ("filter", "encapsulate"):
                self._write_column(batch)
            self._stall()
            self._check(batch, n_packets)
            if self.KIND == "send":
                os.write(self.log_fd, f"{batch.seq}\n".encode())
        self.counters[COUNTED[self.KIND]] += n_packets
        return n_packets

    def _fill(self, batch: Batch, n_packets: int) -> None:
        size = self.random.randrange(batch.data_bytes - HEAD_BYTES)
        payload, head = os.urandom(size), batch.data[:HEAD_BYTES].view(np.int64)
        half = size // 2
        batch.data[HEAD_BYTES : HEAD_BYTES + half] = np.frombuffer(payload[:half], np.uint8)
        self._stall()
        batch.data[HEAD_BYTES + half : HEAD_BYTES + size] = np.frombuffer(payload[half:], np.uint8)
        head[:] = batch.seq, size, zlib.crc32(payload)
        batch.block["n_packets"] = n_packets

    def _check(self, batch: Batch, n_packets: int) -> None:
        seq, size, checksum = (int(word) for word in batch.data[:HEAD_BYTES].view(np.int64))
        assert (seq, int(batch.head[layout.words(layout.BLOCK)["n_packets"]])) == (batch.seq, n_packets), (seq, batch.seq)
        assert zlib.crc32(batch.data[HEAD_BYTES : HEAD_BYTES + size].data) == checksum, f"block {seq} is not what capture wrote"
        if self.KIND in ("encapsulate", "send"):
            self._check_column(batch, batch.verdicts.view(np.uint8), checksum)
        if self.KIND == "send":
            self._check_column(batch, batch.headers, checksum + 1)

    def _check_column(self, batch: Batch, column: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], expected: int) -> None:
        found = column[:16].view(np.int64)
        assert tuple(found) == (batch.seq, expected), (tuple(found), batch.seq, expected)

    def _write_column(self, batch: Batch) -> None:
        checksum = int(batch.data[:HEAD_BYTES].view(np.int64)[2])
        column, value = (batch.verdicts.view(np.uint8), checksum) if self.KIND == "filter" else (batch.headers, checksum + 1)
        column[:8].view(np.int64)[0] = batch.seq
        self._stall()
        column[8:16].view(np.int64)[0] = value

    def _stall(self) -> None:
        if self.random.random() < 0.2:
            for _ in range(self.random.randrange(STALL_YIELDS)):
                os.sched_yield()

    def tick(self) -> None:
        pass

    def flush(self) -> bool:
        return False

    @property
    def finished(self) -> bool:
        return self.stopped or self.cursor >= self.last

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        pass


class Herd:
    """All workers of a pipeline, forked from this process."""

    def __init__(self, pipeline: Pipeline, last: int, log_fd: int) -> None:
        self.pipeline, self.last, self.log_fd = pipeline, last, log_fd
        self.workers = pipeline.lanes[0].geometry.workers
        self.pids: dict[tuple[str, int], int] = {}

    def start(self, kind: str, worker: int) -> None:
        pid = os.fork()
        if pid:
            self.pids[kind, worker] = pid
            return
        status = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            Checking.KIND = kind
            stage = Checking(self.last, self.log_fd)
            Runner(open_pipeline(self.pipeline.name), Lane(0, (Input("in", "pcap"),)), stage, worker, atomics).run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def kill(self, kind: str, worker: int, number: int) -> int:
        """How it ended: a signal's number is negative."""
        pid = self.pids.pop((kind, worker))
        os.kill(pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def cursors(self) -> list[int]:
        return [int(row["cursor"]) for row in self.pipeline.lanes[0].workers]

    def wait(self, block: int) -> None:
        """Until every worker is past `block`. RuntimeError when one has ended, or nothing moves."""
        end, before = time.monotonic() + PATIENCE_S, self.cursors()
        while min(before) < block:
            select.select([], [], [], 0.001)
            if ended := [of for of, pid in self.pids.items() if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)]:
                raise RuntimeError(f"{ended} ended by themselves")
            now = self.cursors()
            if now != before:
                end, before = time.monotonic() + PATIENCE_S, now
            if time.monotonic() > end:
                raise RuntimeError(f"nothing moves: {before}, {self.pipeline.lanes[0].workers['parked']}")


def begin_at(pipeline: Pipeline, first: int) -> None:
    """As if `first` blocks had been done: for what wraps."""
    lane = pipeline.lanes[0]
    for (kind, worker), row in zip(lane.geometry.workers, lane.workers, strict=True):
        row["cursor"] = first + (worker if lane.geometry.count(kind) > 1 and kind != "send" else 0)


def main(name: str, first: int, n_blocks: int, n_kills: int, seed: int, log_path: str) -> None:
    log.configure()
    pipeline = create_pipeline(name, [GEOMETRY])
    write_generation(pipeline.directory, 1, Config("t", (), (), ()), b"x")
    pipeline.header["generation"] = 1
    begin_at(pipeline, first)
    chooser, last = random.Random(seed), first + n_blocks
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    herd = Herd(pipeline, last, log_fd)
    killed: dict[str, int] = {}
    try:
        for kind, worker in reversed(herd.workers):
            herd.start(kind, worker)
        for i in range(n_kills):
            herd.wait(first + n_blocks * i // n_kills + chooser.randrange(1 + n_blocks // n_kills // 2))
            for _ in range(chooser.randrange(400)):
                os.sched_yield()
            kind, worker = chooser.choice(herd.workers)
            assert herd.kill(kind, worker, signal.SIGKILL) == -signal.SIGKILL
            killed[kind] = killed.get(kind, 0) + 1
            herd.start(kind, worker)
        herd.wait(last)
        statuses = [herd.kill(kind, worker, signal.SIGTERM) for kind, worker in herd.workers]
        lane = pipeline.lanes[0]
        counted = dict.fromkeys(COUNTED, 0)
        for i, (kind, _) in enumerate(lane.geometry.workers):
            counted[kind] += int(read_counters(lane, i)[1][COUNTED[kind]])
        sys.stdout.write(json.dumps({"statuses": statuses, "killed": killed, "counted": counted}) + "\n")
    finally:
        for pid in herd.pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        remove_pipeline(name)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
