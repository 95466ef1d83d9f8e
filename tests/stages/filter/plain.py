"""Run by test_plain.py with NUMBA_DISABLE_JIT=1: the same kernels as plain Python, every access checked, one packet at a time.

Allowed is what one block may be touched at: its header, one PACKET and VERDICT row, and exactly the packet's bytes. Prints the verdicts.
"""

from __future__ import annotations

import json
import sys

from broker.core import layout
from broker.core.batch import BATCH
from stages import memory
from stages.jit import PLAIN
from stages.memory import plain
from tests.stages.filter import traffic, tunnel_traffic
from tests.stages.filter.expressions import batches
from tests.stages.filter.judging import Frame, Judge, one_map_each
from tests.stages.filter.own_expressions import own_batches


def work() -> list[tuple[tuple[str, ...], list[Frame]]]:
    """(expressions, frames for them)"""
    frames = traffic.some(150, seed=21) + traffic.every_cut(seed=22, n=3)
    tunnelled = tunnel_traffic.some(250, seed=23) + tunnel_traffic.every_cut(4, seed=24)
    return [(texts[::5], frames) for texts in batches()] + [(texts[::3], tunnelled) for texts in own_batches()]


def found_by(undetermined: str) -> list[list[tuple[int, int, int]]]:
    found = []
    for texts, frames in work():
        judge = Judge(one_map_each(texts, undetermined=undetermined), memo_buckets=64)
        if not PLAIN:
            found.append([answer for f in frames for answer in judge.judge([f])])
            continue
        memory.forbid_all()
        batch, state = judge.batch, judge.stage.state
        for at, size in (
            (batch.at, BATCH.itemsize),
            (batch.block_at, layout.BLOCK.itemsize),
            (batch.packets_at, layout.PACKET.itemsize),
            (batch.verdicts_at, layout.VERDICT.itemsize),
            (int(judge.image.ctypes.data), len(judge.image)),
            (state.at, len(state.memory)),
            (state.fragments.at, len(state.fragments.memory)),
            (int(judge.counters.ctypes.data), judge.counters.nbytes),
            *judge.stage.rule_counts.regions,
        ):
            memory.allow(at, size)
        n_always = len(plain._regions)
        answers = []
        for f in frames:
            del plain._regions[n_always:]
            memory.allow(batch.data_at, len(f.data))
            answers += judge.judge([f])
        found.append(answers)
    return found


if __name__ == "__main__":
    assert PLAIN
    json.dump({name: found_by(name) for name in ("deliver", "libpcap")}, sys.stdout)
