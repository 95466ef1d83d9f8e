"""Rules that decide nothing, because one before them in their map takes all the packets that they could take.

A rule is covered by one before it if each of its terms is within a term of that, which must be exact. By fields that is: the values that
the term allows are allowed by the other. As in the index, terms are bits: for each field, the AND of the rows of all classes that a term
allows has the terms that allow at least as much.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from broker.config.policy.classes import Classes, classify
from broker.config.policy.compiler import Policy
from broker.config.policy.fields import TABLES, Allowed, Term
from broker.config.policy.tree import Ranges


def shadowed(policy: Policy) -> Iterator[tuple[int, int, int]]:
    """(map, rule, the rule before it that takes all its packets), indexes from 0, within the map."""
    for number, rules in enumerate(policy.maps):
        for rule, by in _in_map([policy.terms[rule] for rule in rules]):
            yield number, rule, by


def _in_map(rules: list[tuple[list[Term], bool]]) -> Iterator[tuple[int, int]]:
    owners = [(rule, term) for rule, (found, exact) in enumerate(rules) if exact for term in found]
    fields = {name: _Field(name, [term for _, term in owners]) for name in {name for _, term in owners for name in term}}
    before = 0  # terms of the rules before this one
    for rule, (found, exact) in enumerate(rules):
        covering: set[int] | None = None
        for term in found:
            wider = (1 << before) - 1
            for name, field in fields.items():
                wider &= field.allow_at_least(term.get(name))
                if not wider:
                    break
            those = {owners[bit][0] for bit in _bits(wider)}
            covering = those if covering is None else covering & those
            if not covering:
                break
        if covering:
            yield rule, min(covering)
        before += len(found) if exact else 0


def _bits(number: int) -> Iterator[int]:
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


class _Field:
    """Terms by what they allow of one field."""

    def __init__(self, name: str, terms: list[Term]) -> None:
        everything = (1 << len(terms)) - 1
        groups: dict[Allowed, int] = {}
        asking = 0
        for bit, term in enumerate(terms):
            if name in term:
                groups[term[name]] = groups.get(term[name], 0) | 1 << bit
                asking |= 1 << bit
        self._any_value = everything & ~asking
        self._absent = self._any_value | sum(bits for allowed, bits in groups.items() if allowed.none)
        self._tables: list[tuple[Classes, int]] = []
        for place, (_, top) in enumerate(TABLES[name]):
            by_ranges: dict[Ranges, int] = {}
            for allowed, bits in groups.items():
                if allowed.ranges[place]:
                    by_ranges[allowed.ranges[place]] = by_ranges.get(allowed.ranges[place], 0) | bits
            self._tables.append((classify((), top, by_ranges, self._any_value), top))
        self._known: dict[Allowed, int] = {}

    def allow_at_least(self, allowed: Allowed | None) -> int:
        if allowed is None:
            return self._any_value
        if allowed not in self._known:
            self._known[allowed] = self._find(allowed)
        return self._known[allowed]

    def _find(self, allowed: Allowed) -> int:
        found = self._absent if allowed.none else -1
        for (classes, top), ranges in zip(self._tables, allowed.ranges, strict=True):
            for first, last in ranges:
                if first > top:
                    continue
                begin = bisect_right(classes.starts, first) - 1
                for number in set(classes.ids[begin : bisect_left(classes.starts, last + 1)]):
                    found &= classes.rows[number]
                if found == self._any_value:
                    return found
        return found
