"""Answers from the ranges that a TEST row has.

| kernel | does |
|---|---|
| truth | a condition -> FALSE, TRUE |
| pairs_hold, pairs_hold_128 | a value against a table of ranges |
| ranges_hold | the same, or against the one range that stands in the row itself |
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import FALSE, TRUE
from stages.jit import kernel
from stages.memory import load64

assert image.TEST.fields is not None
_A, _B = image.TEST.fields["a"][1], image.TEST.fields["b"][1]


@kernel
def pairs_hold(pairs_at: int, n: int, value: int) -> int:
    """Is value in one of n ascending (first, last)?"""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if load64(pairs_at + 16 * middle) <= value:
            low = middle + 1
        else:
            high = middle
    return TRUE if low > 0 and value <= load64(pairs_at + 16 * (low - 1) + 8) else FALSE


@kernel
def pairs_hold_128(pairs_at: int, n: int, high_half: int, low_half: int) -> int:
    """The same for rows of (first high, first low, last high, last low), all halves with the sign bit flipped."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        first = load64(pairs_at + 32 * middle)
        if first < high_half or (first == high_half and load64(pairs_at + 32 * middle + 8) <= low_half):
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return FALSE
    last = load64(pairs_at + 32 * (low - 1) + 16)
    return TRUE if high_half < last or (high_half == last and low_half <= load64(pairs_at + 32 * (low - 1) + 24)) else FALSE


@kernel
def truth(holds: bool) -> int:
    return TRUE if holds else FALSE


@kernel
def ranges_hold(op: int, single: int, test: int, image_at: int, value: int) -> int:
    """One range in the row itself, or a table of them."""
    if op == single:
        return truth(load64(test + _A) <= value <= load64(test + _B))
    return pairs_hold(image_at + load64(test + _A), load64(test + _B), value)
