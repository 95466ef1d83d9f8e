"""What an operator is warned of: one line for each, with its place, and nothing of what is meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from broker.config import hygiene, load_config, parse_config
from broker.config.hygiene import text_of
from broker.config.policy import parse_expression
from tests.config.mistakes import BASE

CONFIG = """\
inputs:
  span0: {kind: pcap, file: a}
tools:
  ids: {kind: pcap, file: i}
sets:
  web: [80, 443]
maps:
  - name: one
    rules:
      - drop: tcp port 22
      - pass: tcp port $web
    to: ids
"""
RULES = "      - drop: tcp port 22\n      - pass: tcp port $web\n"


def warned(text: str, **options: object) -> list[str]:
    return [text_of(warning) for warning in hygiene.warnings(parse_config(text, "t.yaml"), **options)]  # type: ignore[arg-type]


def rules(*expressions: str, more: str = "") -> str:
    """CONFIG with these rules, which begin in line 10 and in column 15."""
    written = "".join(f"      - {rule}\n" for rule in expressions)
    return CONFIG.replace(RULES, written).replace("sets:\n  web: [80, 443]\n", "sets: {web: []}\n\n") + more


@pytest.mark.parametrize("text", [CONFIG, BASE.replace("  udp:", "  ids2:").replace("[ids, recorder]\n", "[ids, ids2, recorder]\n", 1)])
def test_of_what_is_meant_nothing_is_said(text: str) -> None:
    assert warned(text) == []


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "deploy" / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_of_the_examples_nothing_is_said(path: Path) -> None:
    assert hygiene.warnings(load_config(path)) == []


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("  web: [80, 443]", "  web: [80]\n  users: [10.0.0.0/8]", ["7:3: sets.users: warning: no rule uses set 'users'"]),
        ("[80, 443]", "[]", ["6:3: sets.web: warning: set 'web' is empty: a test of it, as in maps[0].rules[1], is never true",
                             "11:15: maps[0].rules[1].pass: warning: it matches no packet"]),
        ("  ids:", "  old: {kind: pcap, file: o}\n  ids:",
         ["4:3: tools.old: warning: nothing is delivered to tool 'old': no map names it, nor does the collector"]),
        ("    to: ids\n", "    to: ids\n    inputs: span0\ncollector: ids\n", []),
        ("    to: ids\n", "", ["4:3: tools.ids: warning: nothing is delivered to tool 'ids': no map names it, nor does the collector",
                               "8:5: maps[0]: warning: map 'one' has no tools: it only counts"]),
        ("    to: ids\n", "    to: []\ncollector: ids\n", ["8:5: maps[0]: warning: map 'one' has no tools: it only counts"]),
        ("pass: tcp port $web", "drop: tcp port $web", ["8:5: maps[0]: warning: map 'one' passes nothing: all its rules are drop"]),
        ("  span0:", "  span1: {kind: pcap, file: b}\n  span0:", []),
        ("    to: ids\n", "    to: ids\n    inputs: [span0]\n", []),
    ],
)  # fmt: skip
def test_what_nothing_is_done_with_is_told(old: str, new: str, lines: list[str]) -> None:
    assert old in CONFIG
    assert warned(CONFIG.replace(old, new, 1)) == [f"t.yaml:{line}" for line in lines]


def test_an_input_that_no_map_looks_at_is_told_unless_there_is_a_collector() -> None:
    text = CONFIG.replace("  span0:", "  span1: {kind: pcap, file: b}\n  span0:").replace(
        "    to: ids\n", "    to: ids\n    inputs: span0\n"
    )
    said = "inputs.span1: warning: no map looks at input 'span1', and there is no collector: all its packets are filtered"
    assert warned(text) == [f"t.yaml:2:3: {said}"]
    assert warned(text + "collector: ids\n") == []


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (["pass: tcp", "drop: udp", "pass: tcp"],
         ["12:15: maps[0].rules[2].pass: warning: it decides nothing: rule 1 (line 10) is the same"]),
        (["pass: tcp port 80", "drop: (tcp  port http)"],
         ["11:15: maps[0].rules[1].drop: warning: it decides nothing: rule 1 (line 10) takes the same packets"]),
        (["pass: ''", "drop: udp"], ["11:15: maps[0].rules[1].drop: warning: it is never tried: rule 1 (line 10) takes every packet"]),
        (["pass: ''", "drop: udp", "pass: tcp"],
         ["11:15: maps[0].rules[1].drop: warning: it is never tried, nor is the one behind it: rule 1 (line 10) takes every packet"]),
        (["drop: arp", "pass: ''", "drop: udp", "pass: tcp", "pass: tcp"],
         ["12:15: maps[0].rules[2].drop: warning: it is never tried, nor are the 2 behind it: rule 2 (line 11) takes every packet"]),
        (["drop: arp", "pass: ''"], []),
        (["pass: tcp and udp", "pass: udp and tcp"], []),
    ],
)  # fmt: skip
def test_a_rule_that_decides_nothing_is_told_with_the_one_that_does(written: list[str], lines: list[str]) -> None:
    assert [line for line in warned(rules(*written)) if ": maps" in line] == [f"t.yaml:{line}" for line in lines]


@pytest.mark.parametrize(
    ("expression", "every", "none"),
    [
        ("not net $web", True, False),
        ("tcp or not net $web", True, False),
        ("tcp and net $web", False, True),
        ("not (tcp or not net $web)", False, True),
        ("tcp or net $web", False, False),
        ("udp port $web and tcp", False, True),
    ],
)
def test_what_an_empty_set_makes_of_an_expression_is_told(expression: str, every: bool, none: bool) -> None:
    said = "\n".join(warned(rules(f"pass: {expression}", "drop: arp")))
    assert ("takes every packet" in said, "matches no packet" in said) == (every, none)


def test_where_a_test_may_end_the_rule_what_is_right_of_it_makes_nothing_certain() -> None:
    text = rules("pass: tcp port 80 or not net $web", "drop: arp", more="    undetermined: libpcap\n")
    assert "takes every packet" not in "\n".join(warned(text))
    assert "takes every packet" in "\n".join(warned(text.replace("tcp port 80 or not net $web", "not net $web or tcp port 80")))


def test_a_rule_that_others_found_covered_is_told_once() -> None:
    text = rules("pass: tcp", "pass: tcp port 80", "drop: tcp")
    shadowed = [(0, 1, 0), (0, 2, 0)]
    assert [line for line in warned(text, shadowed=shadowed) if ": maps" in line] == [
        "t.yaml:11:15: maps[0].rules[1].pass: warning: it decides nothing: rule 1 (line 10) takes all its packets",
        "t.yaml:12:15: maps[0].rules[2].drop: warning: it decides nothing: rule 1 (line 10) takes the same packets",
    ]


def test_expressions_that_were_parsed_are_taken_as_they_are() -> None:
    same = parse_expression("arp", {})
    assert warned(CONFIG, trees=[[same, same]]) == [
        "t.yaml:11:15: maps[0].rules[1].pass: warning: it decides nothing: rule 1 (line 10) takes the same packets"
    ]


def test_a_configuration_made_by_a_program_has_no_places() -> None:
    config = parse_config(CONFIG)
    bare = tuple(replace(m, to=(), place=None, rules=tuple(replace(r, place=None) for r in m.rules)) for m in config.maps)
    (warning,) = hygiene.warnings(replace(config, maps=bare, collector=("ids",)))
    assert text_of(warning) == "maps[0]: warning: map 'one' has no tools: it only counts"


RING = """\
inputs:
  far: {kind: tunnel, listen: gre, from: 10.0.0.0/8}
tools:
  back: {tunnel: {kind: gre, remote: REMOTE}}
collector: back
"""


@pytest.mark.parametrize(("remote", "is_told"), [("10.1.2.3", True), ("192.0.2.9", False), ('"2001:db8::9"', False)])
def test_what_comes_out_of_a_tunnel_and_may_go_back_into_one_is_told(remote: str, is_told: bool) -> None:
    said = "it takes packets from 10.1.2.3, and tool 'back' may send them back there: mind that it is no ring"
    expected = f"t.yaml:2:3: inputs.far: warning: {said}"
    assert warned(RING.replace("REMOTE", remote)) == ([expected] if is_told else [])


GROUPED = """\
inputs:
  span0: {kind: pcap, file: a}
tools:
  a: {tunnel: {kind: vxlan, remote: 192.0.2.1, vni: 1}HEALTH}
  b: {tunnel: {kind: vxlan, remote: 192.0.2.2, vni: 1}HEALTH}
  c: {kind: pcap, file: c}
groups:
  all: {members: [MEMBERS], mode: MODE}
collector: all
"""


@pytest.mark.parametrize(
    ("mode", "members", "asked", "lines"),
    [
        ("share", "a, b, c", "", ["no member of group 'all' has health: one that is dead is sent its flows all the same"]),
        ("replicate", "a, b, c", "", ["no member of group 'all' has health: one that is dead is sent its flows all the same"]),
        ("share", "a, b, c", "a", []),
        ("failover", "a, b, c", "ab", []),
        ("failover", "a, b, c", "b",
         ["nothing ever goes to 'b', 'c': 'a' comes before, has no health and counts as there"]),
        ("failover", "a, c, b", "ab", ["nothing ever goes to 'b': 'c' comes before, has no health and counts as there"]),
    ],
)  # fmt: skip
def test_a_group_whose_members_nobody_stands_in_for_is_told(mode: str, members: str, asked: str, lines: list[str]) -> None:
    text = GROUPED.replace("MODE", mode).replace("MEMBERS", members)
    for name in "ab":
        text = text.replace("HEALTH", ", health: {kind: icmp}" if name in asked else "", 1)
    assert warned(text) == [f"t.yaml:8:3: groups.all: warning: {line}" for line in lines]


def test_a_tool_that_is_asked_though_nobody_stands_in_for_it_is_told() -> None:
    text = GROUPED.replace("HEALTH", ", health: {kind: icmp}").replace("MEMBERS", "a, c").replace("MODE", "share")
    said = "tool 'b' is in no group: what its health is changes nothing but what status and /metrics say"
    assert warned(text.replace("collector: all", "collector: [all, b]")) == [f"t.yaml:5:3: tools.b.health: warning: {said}"]
