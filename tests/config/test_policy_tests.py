"""What an operator reads when a test of the policy fails."""

from __future__ import annotations

import pytest

from broker.config import parse_config
from broker.config.policy_tests import Answer, Decision, failures
from broker.core.model import Place

BASE = """\
inputs: {span0: {kind: pcap, file: a}, span1: {kind: pcap, file: b}}
tools: {ids: {kind: pcap, file: i}, recorder: {kind: pcap, file: r}, store: {kind: pcap, file: s}}
maps:
  - name: pos-db
    rules: [drop: tcp port 22, pass: tcp dst port 5432]
    to: [ids, recorder]
  - {name: web, inputs: span1, rules: [pass: tcp port 80], to: ids, undetermined: drop}
COLLECTOR
tests:
  - packet: {tcp.dst: 5432}
    delivers: DELIVERS
    by: BY
"""
DROPPED: tuple[str, Answer, int] = ("pos-db", "drop", 0)
PASSED: tuple[str, Answer, int] = ("pos-db", "pass", 1)
OTHER: tuple[str, Answer, int] = ("web", "input", -1)


def told(decision: Decision, delivers: str, by: str = "", collector: str = "") -> list[str]:
    text = BASE.replace("DELIVERS", delivers).replace("    by: BY\n", f"    by: {by}\n" if by else "")
    config = parse_config(text.replace("COLLECTOR", f"collector: {collector}" if collector else ""), "t.yaml")
    found = failures(config, [decision])
    assert all(where == (Place("t.yaml", 10, 5), "tests[0]") for *where, _ in map(list, found) for where in [tuple(where)])
    return [text for _, _, text in found]


@pytest.mark.parametrize(
    ("decision", "expected", "words"),
    [
        (Decision(("ids",), "forwarded", (DROPPED, ("web", "pass", 0))), ("[ids, recorder]",),
         "delivers [ids], expected [ids, recorder]; map 'pos-db' dropped it by rule 1: drop \"tcp port 22\""),
        (Decision((), "rule", (DROPPED, OTHER)), ("[ids]",),
         ("delivers [], expected [ids]; map 'pos-db' dropped it by rule 1: drop \"tcp port 22\"; "
         "map 'web' does not look at this input, only at span1")),
        (Decision((), "filtered", (("pos-db", "none", -1), ("web", "none", -1))), ("[recorder]",),
         "delivers [], expected [recorder]; map 'pos-db' has no rule that matches it"),
        (Decision(("ids", "recorder"), "forwarded", (PASSED, OTHER)), ("[]",),
         "delivers [ids, recorder], expected []; map 'pos-db' passed it by rule 2: pass \"tcp dst port 5432\""),
        (Decision(("ids", "recorder"), "forwarded", (("pos-db", "undetermined", 0), OTHER)), ("[]",),
         ("delivers [ids, recorder], expected []; map 'pos-db' cannot tell by rule 1: drop \"tcp port 22\" "
         "(the packet does not show what it tests), so it is delivered")),
        (Decision((), "undetermined", (("pos-db", "none", -1), ("web", "undetermined", 0))), ("[ids]",),
         ("delivers [], expected [ids]; map 'pos-db' has no rule that matches it; map 'web' cannot tell by rule 1: pass \"tcp port 80\" "
         "(the packet does not show what it tests), so it is not delivered")),
        (Decision(("ids", "recorder"), "forwarded", (PASSED, OTHER)), ("[ids, recorder]", "web"),
         ("passed by [pos-db], expected [web]; map 'pos-db' passed it by rule 2: pass \"tcp dst port 5432\"; "
         "map 'web' does not look at this input, only at span1")),
        (Decision(("store",), "collected", (("pos-db", "none", -1), OTHER)), ("[]", "", "store"),
         "delivers [store], expected []; no map took it, so the collector gets it"),
        (Decision(("ids", "recorder"), "forwarded", (PASSED, OTHER)), ("[ids, recorder, store]", "", "store"),
         "delivers [ids, recorder], expected [ids, recorder, store]; a map took it, so the collector does not get it"),
        (Decision((), "rule", (DROPPED, OTHER)), ("[store]", "", "store"),
         "delivers [], expected [store]; a drop rule decided, which the collector does not undo"),
        (Decision((), "undetermined", (("pos-db", "none", -1), ("web", "undetermined", 0))), ("[store]", "", "store"),
         "delivers [], expected [store]; a map cannot tell and delivers no such packet, so the collector does not get it"),
    ],
)  # fmt: skip
def test_a_failure_is_told_with_what_was_done_and_by_which_rule(decision: Decision, expected: tuple[str, ...], words: str) -> None:
    assert told(decision, *expected) == [words]


@pytest.mark.parametrize(
    ("delivers", "by"),
    [("[ids, recorder]", ""), ("[recorder, ids]", "pos-db"), ("[ids, recorder]", "[pos-db]")],
)
def test_what_holds_is_not_told_whatever_the_order(delivers: str, by: str) -> None:
    assert told(Decision(("ids", "recorder"), "forwarded", (PASSED, OTHER)), delivers, by) == []


def test_a_name_stands_first() -> None:
    config = parse_config(BASE.replace("COLLECTOR", "").replace("DELIVERS", "[]").replace("by: BY", "name: the till asks"), "t.yaml")
    ((_, _, words),) = failures(config, [Decision(("ids",), "forwarded", (PASSED, OTHER))])
    assert words.startswith("'the till asks': delivers [ids], expected []; map 'pos-db' passed it")


def test_there_is_one_decision_for_each_test() -> None:
    config = parse_config(BASE.replace("COLLECTOR", "").replace("DELIVERS", "[]").replace("    by: BY\n", ""))
    with pytest.raises(ValueError, match="argument"):
        failures(config, [])
