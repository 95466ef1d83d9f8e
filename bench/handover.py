"""``python -m bench.handover WORK_NS N_BLOCKS N_CORES``: what it costs to hand a block on, with the real ring, doorbell and loop.

Four processes as in a lane, one of each stage, pass blocks that are empty. In each of them a stage is busy for as long as WORK_NS says
(capture, filter, encapsulate, send, with commas between), for how often a neighbour is found asleep depends on that. What they use beyond
this is the hand-over. Prints one JSON line: ns of CPU time for each block and stage; sleeps and rings for each block.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from bench import programs
from broker.cli.common import quiet_logs
from broker.core import layout, log
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


def measure(work_ns: Sequence[int], n_blocks: int, n_cores: int) -> dict[str, float]:
    """Of two runs the difference, so that coming up and going down does not count."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-n_cores:])
    few = max(1, n_blocks // 5)
    first, second = _pass(work_ns, few), _pass(work_ns, few + n_blocks)
    return {what: (second[what] - first[what]) / n_blocks / len(PATH) for what in first}


def _pass(work_ns: Sequence[int], n_blocks: int) -> dict[str, float]:
    """In all: ns that were not work, sleeps, rings."""
    name = f"bench-handover-{os.getpid()}"
    pipeline = create_pipeline(name, [_GEOMETRY])
    children: dict[str, int] = {}
    try:
        write_generation(pipeline.directory, 1, Config("bench", (), (), ()), b"\0")
        pipeline.header[0]["generation"] = 1
        for kind, ns in reversed(list(zip(PATH, work_ns, strict=True))):
            children[kind] = _fork(pipeline, Busy(kind, ns, n_blocks), pipeline.directory / f"spent-{kind}")
        _await(pipeline, n_blocks)
        found = {"ns": float(programs.cpu_ns(children.values())), **{what: float(_live(pipeline, what)) for what in ("parks", "bells")}}
        for pid in children.values():
            os.kill(pid, signal.SIGTERM)
        for pid in children.values():
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                raise RuntimeError("a worker ended with an error")
        found["ns"] -= sum(int((pipeline.directory / f"spent-{kind}").read_text()) for kind in PATH)
        return found
    finally:
        remove_pipeline(name)


def _fork(pipeline: Pipeline, stage: Busy, report: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        made: Any = stage
        Runner(pipeline, Lane(0, ()), made, 0, atomics).run()
        report.write_text(str(stage.spent_ns))
        status = 0
    finally:
        os._exit(status)


def _await(pipeline: Pipeline, n_blocks: int) -> None:
    memory = pipeline.lanes[0]
    end = time.monotonic() + _PATIENCE_S
    while int(memory.workers[-1]["cursor"]) < n_blocks:
        if time.monotonic() > end:
            raise RuntimeError(f"{int(memory.workers[-1]['cursor'])} of {n_blocks} blocks were passed in {_PATIENCE_S} s")
        time.sleep(0.005)


def _live(pipeline: Pipeline, name: str) -> int:
    return int(pipeline.lanes[0].live[: len(layout.PATH), index("", name)].sum())


if __name__ == "__main__":
    quiet_logs()
    log.configure()
    print(json.dumps(measure([int(word) for word in sys.argv[1].split(",")], int(sys.argv[2]), int(sys.argv[3]))))
