"""``python -m bench.alone CAPTURE CONFIG OUT N_BLOCKS [wait]``: the four stages in one process, one behind the other.

What the pipeline takes beyond it is the price of having four processes. OUT is a file. Each stage does N_BLOCKS blocks before the next
one begins: with as many as a ring has, a block is as cold as it is there. `wait`: it says `ready` when all is open, and goes on with a
line of standard input. Prints one JSON line: packets and frames; CPU and wall time of all, and the time of each stage, in ns.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from broker.cli import check
from broker.cli.common import compiled, quiet_logs
from broker.cli.replay_config import Play, replayed
from broker.core import log
from broker.core.batch import Batch, heap_batch
from broker.core.generations import write_generation
from broker.core.metrics import index
from broker.core.stage import Stage
from stages.only import open_chain
from stages.warm import warm


class Timed:
    """A stage, and the time that it spends in its steps."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage
        self.KIND, self.spent_ns = stage.KIND, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def step(self, batch: Batch) -> int:
        began = time.perf_counter_ns()
        n: int = self._stage.step(batch)
        self.spent_ns += time.perf_counter_ns() - began
        return n


def run(capture: Path, config_path: Path, out: Path, n_blocks: int, ready: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """CPU time from the first block to the last; the stages are open before, and have done some once."""
    config = replayed(check.load(config_path), [Play(str(capture))], out.parent, None)
    config = replace(config, tools=tuple(replace(tool, file=str(out)) for tool in config.tools))
    with tempfile.TemporaryDirectory() as scratch:
        write_generation(Path(scratch), 1, config, compiled(config))
        chain = open_chain("send", Path(scratch))
        batches = [heap_batch(chain.sizes) for _ in range(n_blocks)]
        for batch in batches:
            batch.memory[:] = 0  # pages of it that nobody has touched would be paid for while it is measured
        next(chain.play(batches))  # loads the kernels
        chain.close()
        chain = open_chain("send", Path(scratch))
        timed = [Timed(stage) for stage in chain.stages]
        chain.stages[:] = cast("list[Stage]", timed)
        packets = frames = 0
        ready()
        began, wall_ns = time.process_time_ns(), time.monotonic_ns()
        for batch in chain.play(batches):
            packets += int(batch.block["n_packets"][0])
            frames += int(batch.block["n_frames"][0])
        spent, wall_ns = time.process_time_ns() - began, time.monotonic_ns() - wall_ns
        chain.close()
        delivered = sum(int(chain.contexts[-1].counters[index("send", "delivered_frames") + tool.slot]) for tool in config.tools)
    if delivered != frames:
        raise RuntimeError(f"{delivered} of {frames} frames were delivered")
    stages_ns = {stage.KIND: stage.spent_ns for stage in timed}
    return {"packets": packets, "frames": frames, "cpu_ns": spent, "wall_ns": wall_ns, "stages_ns": stages_ns}


def _wait() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    quiet_logs()
    log.configure()
    warm(lambda line: print(line, file=sys.stderr))
    capture, config, out, n_blocks, *waits = sys.argv[1:]
    print(json.dumps(run(Path(capture), Path(config), Path(out), int(n_blocks), _wait if waits else lambda: None)))
