"""Random sets of rules: small ones against the slow twin, large ones by index and memo against every rule in order."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.core.model import Config
from tests.stages.filter import random_rules as r
from tests.stages.filter import traffic
from tests.stages.filter.judging import Judge
from tests.stages.filter.test_maps import CAUSES
from tests.stages.filter.twin import Twin


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(config=r.configurations(), seed=st.integers(0, 1 << 20))
def test_random_rules_decide_and_count_as_the_twin_does(config: Config, seed: int) -> None:
    frames = r.adversarial(config, 90, seed)
    twin, judge = Twin(config), Judge(config, memo_buckets=64)
    wanted = [(sum(1 << tool for tool in tools), why) for tools, why in map(twin.judge, frames)]
    for f, found, expected in zip(frames, judge.judge(frames), wanted, strict=True):
        assert (found[0], CAUSES[found[1]]) == expected, f"{f.data.hex()} ({len(f.data)} of {f.wirelen}, input {f.input})"
    assert judge.rules() == [counts for m in config.maps for counts in twin.rule_counts(m.name)]


@pytest.mark.parametrize("n_rules", [200, 600, 2000])
@pytest.mark.parametrize("shapes", [r.CONJUNCTIVE, r.MANY_SIDED, r.CONJUNCTIVE + r.MANY_SIDED], ids=["conjunctive", "many-sided", "both"])
def test_a_large_set_is_the_same_by_index_and_memo_and_rule_by_rule(n_rules: int, shapes: tuple[str, ...]) -> None:
    config = r.large(n_rules, n_rules, shapes)
    frames = r.at_edges(r.edges(config), 5000, n_rules) + traffic.some(1000, n_rules)
    fast, exact = Judge(config), Judge(config, memo=False, index=False)
    wrong = [
        f"{f.data.hex()} ({len(f.data)} of {f.wirelen}): {one} | {two}"
        for f, one, two in zip(frames, fast.judge(frames), exact.judge(frames), strict=True)
        if one != two
    ]
    assert wrong == []
    assert fast.rules() == exact.rules()
    assert sum(packets > 0 for packets, _, _ in fast.rules()) > n_rules // 20
