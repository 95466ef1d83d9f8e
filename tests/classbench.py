"""The shared ClassBench rule sets, and a linear scan over header fields: the oracle of what a set says."""

from __future__ import annotations

import numpy as np
import pytest

from bench.rulesets import Headers, Ints, Rules
from tests.corpus import SUITES

DIRECTORY = SUITES / "classbench"
SETS = (
    "jia_acl1_1k", "neurocuts_acl1_1k", "neurocuts_fw1_1k", "neurocuts_ipc1_1k",
    "neurocuts_acl1_10k", "neurocuts_fw1_10k", "neurocuts_ipc1_10k",
)  # fmt: skip
needs_rule_sets = pytest.mark.skipif(not DIRECTORY.is_dir(), reason=f"the shared ClassBench rule sets are not at {DIRECTORY}")

_HAVE_PORTS = (6, 17, 132)  # TCP, UDP, SCTP: where a rule of any protocol can find ports


def first_match(rules: Rules, headers: Headers, *, flags: bool = True) -> Ints:
    """Of each header, the number of the first rule that it matches, or -1.

    The last rule is asked first and overruled by those before it. Of a rule with a net, only headers within that net are looked at: they
    lie together among the headers sorted by that address.
    """
    found = np.full(len(headers), -1)
    orders = {end: np.argsort(getattr(headers, end), kind="stable") for end in ("src", "dst")}
    ordered = {end: getattr(headers, end)[order] for end, order in orders.items()}
    for number in range(len(rules) - 1, -1, -1):
        rule = {name: int(rules[number][name]) for name in rules.dtype.names or ()}
        last = {end: rule[end] + (1 << 32 - rule[f"{end}_bits"]) - 1 for end in ("src", "dst")}
        spans = {end: np.searchsorted(ordered[end], (rule[end], last[end] + 1)) for end in ("src", "dst")}
        by = min(spans, key=lambda end: int(spans[end][1] - spans[end][0]))
        other = "dst" if by == "src" else "src"
        at = orders[by][slice(*spans[by])]
        at = at[_within(getattr(headers, other)[at], rule[other], last[other])]
        if rule["protocol_mask"]:
            at = at[headers.protocol[at] == rule["protocol"]]
        for name in ("sport", "dport"):
            low, high = rule[f"{name}_low"], rule[f"{name}_high"]
            if (low, high) != (0, 65535):
                at = at[_within(getattr(headers, name)[at], low, high) & np.isin(headers.protocol[at], _HAVE_PORTS)]
        if flags and rule["flags_mask"]:
            at = at[headers.flags[at] & rule["flags_mask"] == rule["flags"]]
        found[at] = number
    return found


def _within(values: Ints, low: int, high: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return (values >= low) & (values <= high)
