"""Classes of values: for each field, the values that no test tells apart share a class.

A test is a set of disjoint ranges. Between two neighbouring bounds all values lie in the same ranges; intervals that lie in the same
tests are one class. Which tests an interval lies in is known by a 128-bit number, the exclusive or of a random number for each test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.config.policy.image import TRIE_NEXT
from broker.config.policy.program import halves

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Classes:
    """Interval i goes from starts[i] up to the next start and has class ids[i]; starts[0] is 0. Class 0 is what value 0 has."""

    starts: list[int]
    ids: list[int]
    n: int


def classify(tests: Iterable[Ranges], top: int) -> Classes:
    """`top`: the largest value of the field; what a test wants above it is never there."""
    change: dict[int, int] = {0: 0}
    for number, ranges in enumerate(dict.fromkeys(tests)):
        mark = int.from_bytes(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest(), "little")
        for first, last in ranges:
            if first > top:
                continue
            change[first] = change.get(first, 0) ^ mark
            change[last + 1] = change.get(last + 1, 0) ^ mark
    starts: list[int] = []
    ids: list[int] = []
    known: dict[int, int] = {}
    inside = 0
    for start in sorted(change):
        if start > top:
            break
        inside ^= change[start]
        number = known.setdefault(inside, len(known))
        if not ids or ids[-1] != number:
            starts.append(start)
            ids.append(number)
    return Classes(starts, ids, len(known))


def search_table(classes: Classes) -> NDArray[np.int64]:
    return np.array([*classes.starts, *classes.ids], np.int64)


def search_table_128(classes: Classes) -> NDArray[np.int64]:
    split = [halves(start) for start in classes.starts]
    return np.array([*(h for h, _ in split), *(low for _, low in split), *classes.ids], np.int64)


def direct_table(classes: Classes, size: int, dtype: str = "<u2") -> NDArray[np.unsignedinteger]:
    """Class of each value below `size`."""
    lengths = np.diff([*classes.starts, size])
    table: NDArray[np.unsignedinteger] = np.repeat(np.array(classes.ids, dtype), lengths)
    return table


def trie_table(classes: Classes) -> NDArray[np.uint32]:
    """IPv4: 16, 8 and 8 bits. Part 0 has 65,536 entries, the others follow with 256 each and are numbered from 1."""
    parts: list[NDArray[np.uint32]] = []

    def build(first: int, bits: int, low: int, high: int) -> NDArray[np.uint32]:
        """Entries of 2**bits values each from `first`; intervals low..high of the classes cover them."""
        n = 65536 if bits == 16 else 256
        starts = np.array(classes.starts[low:high], np.int64)
        values = first + (np.arange(n, dtype=np.int64) << bits)
        at = np.searchsorted(starts, values, side="right") - 1
        end = np.searchsorted(starts, values + (1 << bits) - 1, side="right") - 1
        table = np.array(classes.ids[low:high], np.uint32)[at]
        for i in np.nonzero(at != end)[0]:
            below = build(int(values[i]), bits - 8, low + int(at[i]), low + int(end[i]) + 1)
            parts.append(below)
            table[i] = TRIE_NEXT | len(parts)
        return table

    root = build(0, 16, 0, len(classes.starts))
    return np.concatenate([root, *parts])
