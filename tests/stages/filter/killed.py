"""Run by test_rule_counts.py with NUMBA_DISABLE_JIT=1: a filter worker's counting by rule, killed before each single store.

Two workers share out the blocks of three generations. What is read from outside must be what the published blocks say, after every
publication, after every kill and while the next worker makes up for it. A second kill follows soon: the making up is cut short as well.
Prints how many places there were.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from broker.core.generations import write_generation
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS
from broker.core.model import Config, Lane, Map, Rule
from broker.core.rule_counts import create_rule_counts
from broker.core.shm import Pipeline, create_pipeline
from broker.core.stage import Context
from broker.supervisor.rule_counts import RuleReader
from stages import memory
from stages.filter import rule_counts
from stages.filter.state import RESULT_BITS, RESULT_DROP, RESULT_PASS, RESULT_UNDETERMINED
from stages.jit import PLAIN

GEOMETRY = Geometry(n_blocks=4, max_packets=16, max_frames=16, header_bytes=64, data_bytes=4096, n_filter=2)
EXPRESSIONS = {1: ("a", "b", "a"), 2: ("c", "a", "b", "a"), 3: ("b", "c")}  # by generation; "a" is there twice
GENERATION = (1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3)  # of each block
Work = list[tuple[int, int, int, int]]  # (rule, result, packets, bytes)


def random_work() -> list[Work]:
    """Of each block, as outcomes: a rule may come several times, and not at all."""
    chosen = random.Random(1)
    results = (RESULT_PASS, RESULT_DROP, RESULT_UNDETERMINED)
    return [
        [
            (chosen.randrange(len(EXPRESSIONS[g])), chosen.choice(results), chosen.randrange(1, 9), chosen.randrange(60, 9000))
            for _ in range(n)
        ]
        for g, n in zip(GENERATION, (3, 1, 4, 0, 2, 3, 5, 1, 1, 2, 3, 2), strict=True)
    ]


WORK = random_work()


class KilledError(Exception):
    pass


class Stores:
    """Every store goes through here; at the chosen ones the worker is no more."""

    def __init__(self, *kill_at: int) -> None:
        self.kill_at, self.n = set(kill_at), 0

    def next(self) -> None:
        self.n += 1
        if self.n in self.kill_at:
            raise KilledError

    def store64(self, at: int, value: int) -> None:
        self.next()
        memory.store64(at, value)

    def add64(self, at: int, n: int) -> None:
        self.store64(at, memory.load64(at) + n)

    def copy(self, to: int, from_: int, n: int) -> None:
        for at in range(0, n, 8):
            self.store64(to + at, memory.load64(from_ + at))


class Worker:
    def __init__(self, pipeline: Pipeline, number: int) -> None:
        self.row = pipeline.lanes[0].workers[GEOMETRY.row("filter", number)]
        counters = np.zeros(N_COUNTERS, np.int64)
        self.counting = rule_counts.RuleCounting(
            Context(pipeline.directory, Lane(0, ()), number, 2, GEOMETRY, 1, counters, 0, counters, 0, 0, 0, 0)
        )
        self.generation = 0

    def step(self, stores: Stores) -> None:
        """The next block of this worker, and its publication."""
        seq = int(self.row["cursor"])
        if self.generation != GENERATION[seq]:
            self.generation = GENERATION[seq]
            self.counting.load(self.generation, len(EXPRESSIONS[self.generation]))
        memory.forbid_all()
        for at, size in self.counting.regions:
            memory.allow(at, size)
        rule_counts.begin_counts(self.counting.at, seq)
        for rule, result, n, n_bytes in WORK[seq]:
            rule_counts.count_rule(self.counting.at, rule << RESULT_BITS | result, n, n_bytes)
        stores.next()
        self.row["cursor"] = seq + 2


def expected(cursors: list[int]) -> list[list[int]]:
    """Of each rule of the last generation: what it, and its like in the generations before without a gap, counted in published blocks."""
    carried: dict[tuple[str, int], Counter[str]] = {}
    for generation, expressions in EXPRESSIONS.items():
        keys = [(e, expressions[:i].count(e)) for i, e in enumerate(expressions)]
        carried = {key: Counter(carried.get(key, {})) for key in keys}
        for seq, work in enumerate(WORK):
            if GENERATION[seq] == generation and seq < cursors[seq % 2]:
                for rule, result, n, n_bytes in work:
                    undetermined = result == RESULT_UNDETERMINED
                    add = {"undetermined_packets": n} if undetermined else {"packets": n, "bytes": n_bytes}
                    carried[keys[rule]].update(add)
    return [[counts[name] for name in ("packets", "bytes", "undetermined_packets")] for counts in carried.values()]


def play(directory: Path, *kill_at: int) -> int:
    """All blocks, with these stores never done. Returns how many there were."""
    pipeline = create_pipeline(directory.name, [GEOMETRY])
    for number, expressions in EXPRESSIONS.items():
        config = Config("t", (), (), (Map("m", tuple(Rule("pass", e) for e in expressions), ()),))
        write_generation(pipeline.directory, number, config, b"-")
        create_rule_counts(pipeline.directory, number, len(expressions), 1, 2)
    pipeline.header["generation"] = len(EXPRESSIONS)
    stores = Stores(*kill_at)
    for name in ("store64", "add64", "copy"):
        setattr(rule_counts, name, getattr(stores, name))
    workers, reader = [Worker(pipeline, 0), Worker(pipeline, 1)], RuleReader(pipeline)
    while any(int(w.row["cursor"]) < len(WORK) for w in workers):
        which = min((0, 1), key=lambda w: int(workers[w].row["cursor"]))
        try:
            workers[which].step(stores)
        except KilledError:
            workers[which] = Worker(pipeline, which)
        found = [[r.packets, r.bytes, r.undetermined_packets] for r in reader.take()]
        assert found == expected([int(w.row["cursor"]) for w in workers]), (kill_at, which, found)
    return stores.n


def main() -> None:
    chosen = random.Random(2)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TAPMESH_SHM"] = scratch
        places = play(Path(scratch) / "none")
        for kill_at in itertools.count(1):
            if kill_at > places:
                break
            play(Path(scratch) / f"killed-{kill_at}", kill_at, kill_at + chosen.randrange(1, 30))
    json.dump(places, sys.stdout)


if __name__ == "__main__":
    assert PLAIN
    main()
