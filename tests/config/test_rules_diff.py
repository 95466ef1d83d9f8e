"""Which rules were added, removed and moved: as few as the change is."""

from __future__ import annotations

import random
import time

import pytest

from broker.config.rules_diff import rule_changes
from broker.core.model import Config, Input, Map, Place, Rule


def config(*names: str, map_name: str = "m") -> Config:
    rules = tuple(Rule("drop" if name.isupper() else "pass", name.lower(), Place("c", n, 1)) for n, name in enumerate(names, 1))
    return Config("n", (Input("in", "pcap"),), (), (Map(map_name, rules, ()),))


def changes(old: str, new: str) -> list[tuple[str, str, int, int]]:
    found = rule_changes(config(*old), config(*new))
    return [(c.what, c.rule.expression, c.before, c.after) for c in found.get("m", [])]


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("abc", "abc", []),
        ("abc", "abxc", [("added", "x", -1, 2)]),
        ("abc", "ac", [("removed", "b", 1, -1)]),
        ("abcd", "bcda", [("moved", "a", 0, 3)]),
        ("abcd", "dabc", [("moved", "d", 3, 0)]),
        ("ab", "aB", [("removed", "b", 1, -1), ("added", "b", -1, 1)]),  # another action is another rule
        ("aab", "ab", [("removed", "a", 1, -1)]),
        ("ab", "aab", [("added", "a", -1, 1)]),
        ("abc", "", [("removed", "a", 0, -1), ("removed", "b", 1, -1), ("removed", "c", 2, -1)]),
    ],
)
def test_a_change_of_rules(old: str, new: str, wanted: list[tuple[str, str, int, int]]) -> None:
    assert changes(old, new) == wanted


def test_maps_are_known_by_their_names_and_places_do_not_count() -> None:
    assert rule_changes(config("a", map_name="one"), config("b", map_name="other")) == {}
    moved_text = config("x", "a")
    moved_text = Config(moved_text.node, moved_text.inputs, (), (Map("m", moved_text.maps[0].rules[1:], ()),))
    assert rule_changes(config("a"), moved_text) == {}


def test_what_did_not_change_and_what_did_make_the_new_rules_and_it_takes_no_time() -> None:
    chosen = random.Random(1)
    old = [f"r{n}" for n in range(10_000)]
    new = chosen.sample(old, 9_000) + [f"n{n}" for n in range(500)]
    chosen.shuffle(new)
    began = time.process_time()
    found = rule_changes(config(*old), config(*new))["m"]
    assert time.process_time() - began < 2
    what = [change.what for change in found]
    assert (what.count("added"), what.count("removed")) == (500, 1_000)
    touched = {change.after for change in found}
    kept = [name for j, name in enumerate(new) if j not in touched]
    assert kept == sorted(kept, key=old.index)
