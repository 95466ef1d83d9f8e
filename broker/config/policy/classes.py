"""Classes of values: for each table of a field, the values that no test tells apart share a class; and the terms that each class meets.

A test is a set of disjoint ranges. Between two neighbouring bounds all values lie in the same ranges; intervals that lie in the same
tests are one class. Sets of tests and of terms are Python integers, bit i for number i: passing a bound toggles what begins or ends there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.config.policy.image import FIRST_CLASS, TRIE_NEXT
from broker.config.policy.program import halves
from broker.config.policy.tree import Ranges


@dataclass(frozen=True, slots=True)
class Classes:
    """Interval i goes from starts[i] up to the next start and has class ids[i]; starts[0] is 0. Class 0 is what value 0 has.

    rows[c]: the terms that a packet with a value of class c may meet.
    """

    starts: list[int]
    ids: list[int]
    rows: list[int]

    @property
    def n(self) -> int:
        return len(self.rows)


def classify(tests: Iterable[Ranges], top: int, terms: Mapping[Ranges, int] | None = None, others: int = 0) -> Classes:
    """`top`: the largest value; what a test wants above it is never there. `terms`: those that allow just these ranges. `others`: those
    that allow any value."""
    change: dict[int, tuple[int, int]] = {0: (0, 0)}

    def toggle(ranges: Ranges, test: int, of_terms: int) -> None:
        for first, last in ranges:
            if first <= top:
                for bound in (first, last + 1):
                    before = change.get(bound, (0, 0))
                    change[bound] = before[0] ^ test, before[1] ^ of_terms

    for number, ranges in enumerate(dict.fromkeys(tests)):
        toggle(ranges, 1 << number, 0)
    for ranges, of_terms in (terms or {}).items():
        toggle(ranges, 0, of_terms)
    starts: list[int] = []
    ids: list[int] = []
    rows: list[int] = []
    known: dict[tuple[int, int], int] = {}
    inside, row = 0, others
    for start in sorted(change):
        if start > top:
            break
        inside, row = inside ^ change[start][0], row ^ change[start][1]
        number = known.setdefault((inside, row), len(known))
        if number == len(rows):
            rows.append(row)
        if not ids or ids[-1] != number:
            starts.append(start)
            ids.append(number)
    return Classes(starts, ids, rows)


def search_table(classes: Classes, first: int = FIRST_CLASS) -> NDArray[np.int64]:
    """`first`: the value of class 0."""
    return np.array([*classes.starts, *(first + number for number in classes.ids)], np.int64)


def search_table_128(classes: Classes, first: int = FIRST_CLASS) -> NDArray[np.int64]:
    split = [halves(start) for start in classes.starts]
    return np.array([*(h for h, _ in split), *(low for _, low in split), *(first + number for number in classes.ids)], np.int64)


def direct_table(classes: Classes, size: int, first: int = FIRST_CLASS) -> NDArray[np.int64]:
    """Value of each number below `size`."""
    lengths = np.diff([*classes.starts, size])
    return np.repeat(np.array(classes.ids, np.int64) + first, lengths)


def trie_table(classes: Classes, first_value: int = FIRST_CLASS) -> NDArray[np.uint32]:
    """IPv4: 16, 8 and 8 bits. Part 0 has 65,536 entries, the others follow with 256 each and are numbered from 1."""
    parts: list[NDArray[np.uint32]] = []

    def build(first: int, bits: int, low: int, high: int) -> NDArray[np.uint32]:
        """Entries of 2**bits values each from `first`; intervals low..high of the classes cover them."""
        n = 65536 if bits == 16 else 256
        starts = np.array(classes.starts[low:high], np.int64)
        values = first + (np.arange(n, dtype=np.int64) << bits)
        at = np.searchsorted(starts, values, side="right") - 1
        end = np.searchsorted(starts, values + (1 << bits) - 1, side="right") - 1
        table = np.array(classes.ids[low:high], np.uint32)[at] + np.uint32(first_value)
        for i in np.nonzero(at != end)[0]:
            below = build(int(values[i]), bits - 8, low + int(at[i]), low + int(end[i]) + 1)
            parts.append(below)
            table[i] = TRIE_NEXT | len(parts)
        return table

    root = build(0, 16, 0, len(classes.starts))
    return np.concatenate([root, *parts])
