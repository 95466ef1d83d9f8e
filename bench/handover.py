"""``python -m bench.handover WORK_NS N_BLOCKS N_CORES WORKERS``: what it costs to hand a block on, with the real ring, doorbell and loop.

Processes as in a lane, WORKERS of each stage, pass blocks that are empty. In each of them a stage is busy for as long as WORK_NS says, for
how often a neighbour is found asleep depends on that (both: capture, filter, encapsulate, send, with commas between). What they use
beyond this is the hand-over. Prints one JSON line: ns of CPU time for each block and stage; sleeps and rings for each block.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from bench import programs
from broker.cli.common import quiet_logs
from broker.core import log
from broker.core.batch import Batch
from broker.core.generations import write_generation
from broker.core.layout import PATH, Geometry
from broker.core.metrics import index
from broker.core.model import Config, Lane
from broker.core.runner import Runner
from broker.core.shm import Pipeline, create_pipeline, remove_pipeline
from broker.core.stage import Context, Generation
from stages import atomics

_PATIENCE_S = 60.0
_GEOMETRY = Geometry(max_packets=1, max_frames=1, header_bytes=64)
Workers = Sequence[int]


class Busy:
    """A stage that does nothing for a while, `n_blocks` times; as a source it ends then."""

    KIND: ClassVar[str] = ""
    wait_fd, due_ns = -1, 0

    def __init__(self, kind: str, work_ns: int, n_blocks: int) -> None:
        self.KIND = kind  # type: ignore[misc]
        self._work_ns, self._left = work_ns, n_blocks
        self.spent_ns = 0

    def open(self, context: Context) -> None:
        """It needs nothing."""

    def load(self, generation: Generation) -> None:
        """It judges nothing."""

    @property
    def finished(self) -> bool:
        return not self._left

    def stop(self) -> None:
        self._left = 0

    def step(self, batch: Batch) -> int:
        if not self._left:
            return 0
        self._left -= 1
        began = time.thread_time_ns()
        while time.thread_time_ns() - began < self._work_ns:
            pass
        self.spent_ns += time.thread_time_ns() - began
        if self.KIND == "capture":
            batch.block["n_packets"] = 1
        return 1

    def close(self) -> None:
        """It holds nothing."""


def measure(work_ns: Sequence[int], n_blocks: int, n_cores: int, workers: Workers) -> dict[str, float]:
    """Of two runs the difference, so that coming up and going down does not count."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-n_cores:])
    few = max(1, n_blocks // 5)
    first, second = _pass(work_ns, few, workers), _pass(work_ns, few + n_blocks, workers)
    return {what: (second[what] - first[what]) / n_blocks / len(PATH) for what in first}


def _pass(work_ns: Sequence[int], n_blocks: int, workers: Workers) -> dict[str, float]:
    """In all: ns that were not work, sleeps, rings."""
    name = f"bench-handover-{os.getpid()}"
    _, n_filter, n_encapsulate, n_send = workers
    pipeline = create_pipeline(name, [replace(_GEOMETRY, n_filter=n_filter, n_encapsulate=n_encapsulate, n_send=n_send)])
    work = dict(zip(PATH, work_ns, strict=True))
    children: dict[tuple[str, int], int] = {}
    try:
        write_generation(pipeline.directory, 1, Config("bench", (), (), ()), b"\0")
        pipeline.header[0]["generation"] = 1
        for kind, worker in reversed(pipeline.lanes[0].geometry.workers):
            children[kind, worker] = _fork(pipeline, Busy(kind, work[kind], n_blocks), worker)
        _await(pipeline, n_blocks)
        found = {"ns": float(programs.cpu_ns(children.values())), **{what: float(_live(pipeline, what)) for what in ("parks", "bells")}}
        for pid in children.values():
            os.kill(pid, signal.SIGTERM)
        for pid in children.values():
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                raise RuntimeError("a worker ended with an error")
        found["ns"] -= sum(int(path.read_text()) for path in pipeline.directory.glob("spent-*"))
        return found
    finally:
        remove_pipeline(name)


def _fork(pipeline: Pipeline, stage: Busy, worker: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        made: Any = stage
        Runner(pipeline, Lane(0, ()), made, worker, atomics).run()
        (pipeline.directory / f"spent-{stage.KIND}-{worker}").write_text(str(stage.spent_ns))
        status = 0
    finally:
        os._exit(status)


def _await(pipeline: Pipeline, n_blocks: int) -> None:
    memory = pipeline.lanes[0]
    end = time.monotonic() + _PATIENCE_S
    send = memory.workers[memory.geometry.row("send", 0) :][: memory.geometry.n_send]
    while (passed := int(send["cursor"].min())) < n_blocks:
        if time.monotonic() > end:
            raise RuntimeError(f"{passed} of {n_blocks} blocks were passed in {_PATIENCE_S} s")
        time.sleep(0.005)


def _live(pipeline: Pipeline, name: str) -> int:
    return int(pipeline.lanes[0].live[:, index("", name)].sum())


if __name__ == "__main__":
    quiet_logs()
    log.configure()
    work_ns, workers = ([int(word) for word in argument.split(",")] for argument in (sys.argv[1], sys.argv[4]))
    print(json.dumps(measure(work_ns, int(sys.argv[2]), int(sys.argv[3]), workers)))
