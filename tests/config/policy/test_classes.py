"""Class tables against a plain look at every test."""

from __future__ import annotations

import random

import numpy as np
import pytest

from broker.config.policy.classes import classify, direct_table, search_table, search_table_128, trie_table
from broker.config.policy.image import FIRST_CLASS, TRIE_NEXT
from broker.config.policy.program import halves
from broker.config.policy.sets import merge

TOPS = {"port": 65535, "vlan": 4095, "ipv4": (1 << 32) - 1, "ipv6": (1 << 128) - 1}


def some_tests(chosen: random.Random, top: int) -> list[tuple[tuple[int, int], ...]]:
    def one() -> tuple[int, int]:
        if chosen.random() < 0.3:
            value = chosen.randrange(top + 1)
            return value, value
        size = 1 << chosen.randrange(top.bit_length())
        first = chosen.randrange(top + 1) // size * size
        return first, min(top, first + size - 1)

    return [merge([one() for _ in range(chosen.choice((1, 1, 1, 5)))]) for _ in range(chosen.randrange(40))]


@pytest.mark.parametrize("field", TOPS)
@pytest.mark.parametrize("seed", range(8))
def test_two_values_share_a_class_exactly_when_no_test_tells_them_apart(field: str, seed: int) -> None:
    chosen, top = random.Random(seed), TOPS[field]
    tests = some_tests(chosen, top)
    terms = {ranges: 1 << i for i, ranges in enumerate(dict.fromkeys(tests[::2]))}
    anybody = 1 << len(terms)
    classes = classify(tests, top, terms, anybody)
    edges = {v for t in tests for a, b in t for v in (a - 1, a, b, b + 1)} | {0, top} | {chosen.randrange(top + 1) for _ in range(300)}
    seen: dict[tuple[bool, ...], int] = {}
    trie, direct = trie_table(classes) if field == "ipv4" else None, direct_table(classes, top + 1) if top < 65536 else None
    search, search_128 = search_table(classes) if top < 1 << 63 else None, search_table_128(classes)
    for value in sorted(v for v in edges if 0 <= v <= top):
        answers = tuple(any(a <= value <= b for a, b in t) for t in tests)
        found = classes.ids[int(np.searchsorted(np.array(classes.starts, object), value, side="right")) - 1]
        assert seen.setdefault(answers, found) == found
        assert classes.rows[found] == anybody + sum(bit for t, bit in terms.items() if any(a <= value <= b for a, b in t))
        if trie is not None:
            entry = int(trie[value >> 16])
            for shift in (8, 0):
                if entry & TRIE_NEXT:
                    entry = int(trie[65536 + 256 * ((entry ^ TRIE_NEXT) - 1) + (value >> shift & 255)])
            assert entry == FIRST_CLASS + found
        if direct is not None:
            assert direct[value] == FIRST_CLASS + found
        n = len(classes.starts)
        if search is not None:
            assert search[n + int(np.searchsorted(search[:n], value, side="right")) - 1] == FIRST_CLASS + found
        pairs = [(int(search_128[i]), int(search_128[n + i])) for i in range(n)]
        assert search_128[2 * n + max(i for i in range(n) if pairs[i] <= halves(value))] == FIRST_CLASS + found
    assert len(set(seen.values())) == len(seen) <= classes.n


def test_a_value_above_the_field_is_never_there() -> None:
    assert classify([((300, 400),), ((5, 70000),)], 255).n == 2
