"""Counts by rule: one fate of each packet in each map, kept over a kill anywhere, begun anew with another policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS
from broker.core.model import Config, Input, Lane, Map, Rule, Tool
from broker.core.rule_counts import create_rule_counts
from broker.core.stage import Context
from stages.filter.rule_counts import RuleCounting
from tests.stages.filter import traffic
from tests.stages.filter.judging import Judge
from tests.stages.filter.test_maps import SSH, WEB, random_config, with_inputs

ROOT = Path(__file__).resolve().parents[3]


def test_a_worker_killed_before_any_store_counts_every_block_once() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "tests.stages.filter.killed"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) > 200  # places


@pytest.mark.parametrize("seed", range(8))
def test_the_rules_of_a_map_have_counted_what_the_map_has(seed: int) -> None:
    config = random_config(seed)
    judge = Judge(config)
    judge.judge(with_inputs(traffic.some(700, seed), seed))
    counts = iter(judge.rules())
    for m in config.maps:
        rules = [(rule.action, *next(counts)) for rule in m.rules]
        for action, word in (("pass", "passed"), ("drop", "dropped")):
            for column, what in ((1, "packets"), (2, "bytes")):
                assert sum(rule[column] for rule in rules if rule[0] == action) == judge.count(f"map_{word}_{what}", m.slot)
        assert sum(rule[3] for rule in rules) == judge.count("map_undetermined_packets", m.slot)


def two_rules(*expressions: str) -> Config:
    m = Map("m", tuple(Rule("pass", text) for text in expressions), ("t",))
    return Config("n", (Input("in", "pcap"),), (Tool("t", 0, file="-"),), (m,))


def test_another_policy_begins_at_zero() -> None:
    judge = Judge(two_rules("port 22", "tcp"))
    judge.judge([WEB, SSH, WEB])
    assert judge.rules() == [(1, SSH.wirelen, 0), (2, 2 * WEB.wirelen, 0)]
    judge.load(two_rules("tcp", "port 22"))
    assert judge.rules() == [(0, 0, 0)] * 2
    judge.judge([SSH])
    assert judge.rules() == [(1, SSH.wirelen, 0), (0, 0, 0)]


def test_a_block_that_is_judged_again_counts_once() -> None:
    judge = Judge(two_rules("port 22", "tcp"))
    judge.judge([WEB, SSH])
    judge.fill([SSH])
    for _ in range(3):
        judge.stage.step(judge.batch)
    judge.step()
    assert judge.rules() == [(2, 2 * SSH.wirelen, 0), (1, WEB.wirelen, 0)]


@pytest.mark.parametrize("made_for", [(3, 1, 1), (2, 2, 1), (2, 1, 2)], ids=["rules", "lanes", "workers"])
def test_a_file_of_another_policy_or_of_other_workers_is_not_counted_in(tmp_path: Path, made_for: tuple[int, int, int]) -> None:
    create_rule_counts(tmp_path, 1, *made_for)
    counters = np.zeros(N_COUNTERS, np.int64)
    counting = RuleCounting(Context(tmp_path, Lane(0, ()), 0, 1, Geometry(), 1, counters, 0, counters, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="generation 1: made for another policy or other workers"):
        counting.load(1, 2)
