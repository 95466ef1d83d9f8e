"""Which rules of a map a new configuration adds, removes and moves. Pure.

Rules are the same when their action and their expression are; the longest part of them that keeps its order has not moved.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from broker.core.model import Config, Map, Rule


@dataclass(frozen=True, slots=True)
class RuleChange:
    """`before`, `after`: its index in the old and in the new map; -1: it is not there."""

    rule: Rule
    before: int
    after: int

    @property
    def what(self) -> str:
        return "added" if self.before < 0 else "removed" if self.after < 0 else "moved"


def rule_changes(old: Config, new: Config) -> dict[str, list[RuleChange]]:
    """By the names of the maps that are in both and differ in their rules."""
    before = {m.name: m for m in old.maps}
    found = {m.name: _changes(before[m.name], m) for m in new.maps if m.name in before}
    return {name: changes for name, changes in found.items() if changes}


def _changes(old: Map, new: Map) -> list[RuleChange]:
    places: dict[Rule, list[int]] = {}
    for i in reversed(range(len(old.rules))):
        places.setdefault(old.rules[i], []).append(i)
    came_from = [places[rule].pop() if places.get(rule) else -1 for rule in new.rules]
    kept = set(_longest_rising([i for i in came_from if i >= 0]))
    found = [RuleChange(rule, i, j) for j, (rule, i) in enumerate(zip(new.rules, came_from, strict=True)) if i not in kept]
    found += [RuleChange(old.rules[i], i, -1) for left in places.values() for i in left]
    return sorted(found, key=lambda change: (max(change.before, change.after), change.after))


def _longest_rising(numbers: list[int]) -> list[int]:
    """The longest part of different numbers that is in order, by patience sorting."""
    ends: list[int] = []  # the smallest number that a part of each length can end with
    before: dict[int, int | None] = {}
    for number in numbers:
        length = bisect_left(ends, number)
        before[number] = ends[length - 1] if length else None
        ends[length : length + 1] = [number]
    found: list[int] = []
    last = ends[-1] if ends else None
    while last is not None:
        found.append(last)
        last = before[last]
    return found
