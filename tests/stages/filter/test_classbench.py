"""ClassBench rule sets: the first rule to match is the one that a linear scan finds, at the edges of the rules above all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from bench.rulesets import Headers, Ints, Rules, expression, frames, headers, read_rules, read_trace
from broker.core.layout import CAUSE_FILTERED, CAUSE_FORWARDED, CAUSE_RULE, Geometry
from broker.core.model import Config, Input, Map, Rule, Tool
from tests import libpcap
from tests.classbench import DIRECTORY, SETS, first_match, needs_rule_sets
from tests.stages.filter.judging import Judge

pytestmark = needs_rule_sets

N_HEADERS = 150_000  # of each of the seven sets: a million in all
N_MAPS = {"1k": 8, "10k": 1}  # by the size of the set: compiling a map costs as much as its rules
FRAME_BYTES = 60
BLOCK_PACKETS = 8192
GEOMETRY = Geometry(max_packets=BLOCK_PACKETS, max_frames=1, header_bytes=64, data_bytes=BLOCK_PACKETS * FRAME_BYTES)


def rules_of(name: str) -> Rules:
    return read_rules(DIRECTORY / name)


def policy(rules: Sequence[str], codes: Ints, n_maps: int) -> Config:
    """Each map has all the rules; map m passes rule r where bit m of codes[r] is set, else drops it. Tool m is map m's."""
    tools = tuple(Tool(f"t{m}", m, file="-") for m in range(n_maps))
    maps = tuple(
        Map(
            f"m{m}",
            tuple(Rule("pass" if code >> m & 1 else "drop", text) for text, code in zip(rules, codes.tolist(), strict=True)),
            (f"t{m}",),
            slot=m,
        )
        for m in range(n_maps)
    )
    return Config("test", (Input("in0", "pcap", 0),), tools, maps)


def judge_headers(judge: Judge, of: Headers) -> tuple[Ints, Ints]:
    """(verdict, cause) of a frame of each header."""
    verdicts, causes = np.zeros(len(of), np.int64), np.zeros(len(of), np.int64)
    batch = judge.batch
    for at in range(0, len(of), BLOCK_PACKETS):
        rows = frames(of[at : at + BLOCK_PACKETS], np.full(len(of[at : at + BLOCK_PACKETS]), FRAME_BYTES))
        n = len(rows)
        batch.data[: rows.size] = rows.reshape(-1)
        batch.packets["data_at"][:n] = np.arange(n) * FRAME_BYTES
        batch.packets["caplen"][:n] = batch.packets["wirelen"][:n] = FRAME_BYTES
        batch.block["n_packets"] = n
        assert judge.step() == n
        verdicts[at : at + n], causes[at : at + n] = batch.verdicts["verdict"][:n], batch.verdicts["cause"][:n]
    return verdicts, causes


def assert_first_matches(rules: Rules, of: Headers, n_maps: int, seed: int) -> None:
    """By a number for each rule that its actions in the maps spell. Two rules share one by chance, the sooner the fewer maps there are."""
    codes = np.random.default_rng(seed).integers(1 if n_maps > 1 else 0, 1 << n_maps, len(rules))
    judge = Judge(policy([expression(rule) for rule in rules], codes, n_maps), geometry=GEOMETRY)
    verdicts, causes = judge_headers(judge, of)
    first = first_match(rules, of)
    expected = np.where(first < 0, 0, codes[first])
    expected_causes = np.where(expected != 0, CAUSE_FORWARDED, np.where(first < 0, CAUSE_FILTERED, CAUSE_RULE))
    wrong = np.flatnonzero((verdicts != expected) | (causes != expected_causes))
    if len(wrong):
        i = int(wrong[0])
        pytest.fail(
            f"{len(wrong)} of {len(of)} headers, the first {of[wrong[:1]]}: verdict {verdicts[i]}, cause {causes[i]}, "
            f"but rule {first[i]} ({expression(rules[first[i]]) if first[i] >= 0 else 'none'}) says {expected[i]}"
        )


@pytest.mark.parametrize("name", SETS)
def test_the_first_match_is_that_of_a_linear_scan(name: str) -> None:
    rules = rules_of(name)
    assert_first_matches(rules, headers(rules, N_HEADERS, seed=len(rules)), N_MAPS[name.rpartition("_")[2]], seed=31)


@pytest.mark.parametrize("name", [name for name in SETS if name.endswith("_1k")])
def test_what_no_rule_of_a_set_matches_is_filtered(name: str) -> None:
    """Without the last rule, which takes whatever comes, there is such a thing."""
    rules = rules_of(name)[:-1]
    of = headers(rules, 20_000, seed=32)
    assert 0 < np.count_nonzero(first_match(rules, of) < 0) < len(of)
    assert_first_matches(rules, of, N_MAPS["1k"], seed=33)


def test_the_first_match_along_the_trace_is_that_of_a_linear_scan() -> None:
    rules = rules_of("jia_acl1_1k")
    of, _ = read_trace(DIRECTORY / "jia_acl1_1k_trace")
    assert_first_matches(rules, of, N_MAPS["1k"], seed=34)


def test_the_linear_scan_finds_what_the_makers_of_the_trace_found() -> None:
    """Their list of first matches leaves flags out of account; no header has a match later than the rule that it was made from."""
    rules = read_rules(DIRECTORY / "jia_acl1_1k")
    of, made_from = read_trace(DIRECTORY / "jia_acl1_1k_trace")
    theirs = np.loadtxt(DIRECTORY / "jia_acl1_1k_trace.first_match", np.int64)
    found = first_match(rules, of, flags=False)
    assert np.array_equal(found, theirs)
    assert (found <= made_from).all()
    assert 0 < np.count_nonzero(first_match(rules, of) != theirs) < len(of) // 50


@libpcap.needs_libpcap
@pytest.mark.parametrize("name", SETS)
def test_the_words_of_a_rule_mean_the_rule(name: str) -> None:
    rules = read_rules(DIRECTORY / name)
    for number in np.random.default_rng(35).choice(len(rules), 60, replace=False).tolist():
        rule = rules[number : number + 1]
        matches = libpcap.Filter(expression(rule[0]))
        of = headers(rule, 60, seed=number)
        expected = first_match(rule, of) == 0
        found = [matches(bytes(row), FRAME_BYTES) for row in frames(of, np.full(len(of), FRAME_BYTES))]
        assert found == expected.tolist(), expression(rule[0])
