"""The rules tried in order, test by test, say what the filter says by its index and memo; and each rule what a twin written apart says."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.config.policy.image import FALSE, TRUE, UNDETERMINED
from broker.core.model import Config, Input, Map, Rule, Tool
from stages.judge.trace import Tried, decision, sees, try_rules
from tests import libpcap
from tests.corpus import needs_corpus, sample
from tests.stages.filter import traffic
from tests.stages.filter.expressions import EXPRESSIONS
from tests.stages.filter.judging import Frame, frame
from tests.stages.filter.test_maps import random_config, with_inputs
from tests.stages.filter.twin import NOTHING, CannotTellError, Twin, answer
from tests.stages.judge.judges import One

ANSWERS = {None: UNDETERMINED, False: FALSE, True: TRUE}


def tried(one: One, m: int, f: Frame, *, beyond: bool) -> list[Tried]:
    return list(try_rules(one.judging, m, one.batch.packets_at, beyond=beyond)) if sees(one.judging, m, f.input) else []


@pytest.mark.parametrize("seed", range(6))
def test_each_rule_and_each_decision_is_what_the_twin_says(tmp_path: Path, seed: int) -> None:
    config = random_config(seed)
    one, twin = One(tmp_path, config), Twin(config)
    for f in with_inputs(traffic.some(60, seed), seed):
        outcome = one.judge(f)
        found = Twin(config).reference.judge(f.data, 0, f.input)
        shown = found.shown if found else NOTHING
        for m, value in enumerate(config.maps):
            every = tried(one, m, f, beyond=True)
            assert decision(one.judging, m, every) == outcome.decisions[m]
            for rule, (_, node) in zip(every, twin.rules[value.name], strict=bool(every)):
                try:
                    wanted = answer(node, f, None if value.undetermined == "libpcap" else shown)
                except CannotTellError:
                    wanted = False
                assert rule.answer == ANSWERS[wanted], (f.data.hex(), value.rules[rule.rule])


def of_expressions(undetermined: str) -> Config:
    """All expressions as the rules of a few maps, so that packets are decided early and late."""
    chunks = [EXPRESSIONS[at : at + 20] for at in range(0, len(EXPRESSIONS), 20)]
    maps = tuple(
        Map(f"m{n}", tuple(Rule("drop" if i % 3 else "pass", text) for i, text in enumerate(reversed(texts))), ("t",), (), undetermined, n)  # type: ignore[arg-type]
        for n, texts in enumerate(chunks)
    )
    return Config("n", (Input("in", "pcap"),), (Tool("t", 0, file="-"),), maps)


@needs_corpus
@libpcap.needs_libpcap
@pytest.mark.parametrize("undetermined", ["deliver", "libpcap"])
def test_the_trace_agrees_with_the_compiled_path_on_every_packet_of_a_corpus_sample(tmp_path: Path, undetermined: str) -> None:
    one = One(tmp_path, of_expressions(undetermined))
    frames = [frame(c.data, c.wirelen) for capture in sample(5) for c in libpcap.read_ethernet(capture.path, 40)]
    assert len(frames) > 500
    for f in frames:
        outcome = one.judge(f)
        for m in range(len(outcome.decisions)):
            assert decision(one.judging, m, tried(one, m, f, beyond=False)) == outcome.decisions[m], (m, f.data.hex())


def test_without_beyond_nothing_behind_the_rule_that_decides_is_tried(tmp_path: Path) -> None:
    rules = (Rule("drop", "arp"), Rule("pass", "tcp"), Rule("drop", "ip"))
    one = One(tmp_path, Config("n", (Input("in", "pcap"),), (Tool("t", 0, file="-"),), (Map("m", rules, ("t",)),)))
    f = frame(traffic.p.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2))
    one.judge(f)
    assert [(t.rule, t.answer) for t in tried(one, 0, f, beyond=False)] == [(0, FALSE), (1, TRUE)]
    assert [(t.rule, t.answer) for t in tried(one, 0, f, beyond=True)] == [(0, FALSE), (1, TRUE), (2, TRUE)]
