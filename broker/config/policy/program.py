"""Rules to code: for each rule a postfix sequence over tests, three values, every distinct test once.

    tcp dst port 80 and not src net 10    ->    TEST 0, SKIP_FALSE 3, TEST 1, NOT, AND

An operand that decides (FALSE before AND, TRUE before OR) skips to the end of its chain, so what libpcap does not read is not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from broker.config.policy import image, tree
from broker.config.policy.arithmetic_code import compile_compare
from broker.config.policy.errors import PolicyError
from broker.config.policy.image import CODE_AND, CODE_NOT, CODE_OR, CODE_SHIFT, CODE_SKIP_FALSE, CODE_SKIP_TRUE, CODE_TEST, TEST, Builder
from broker.config.policy.layers import pack_layer
from broker.config.policy.tree import And, Node, Not, Or

SIGN = 1 << 63
MAX_CODE = 1 << CODE_SHIFT


@dataclass(frozen=True, slots=True)
class Rule:
    """`first`, `n`: its words of `Program.code`."""

    first: int
    n: int
    is_pass: bool
    node: Node


@dataclass(slots=True)
class Program:
    """`code`, `rules` and `tests` of all maps one after the other."""

    code: list[int] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    tests: dict[tree.Test | bool, int] = field(default_factory=dict)  # each distinct one -> its row

    def add_map(self, rules: Iterable[tuple[str, Node]]) -> range:
        """Returns the numbers of its rules."""
        before = len(self.rules)
        for action, node in rules:
            first = len(self.code)
            self._emit(node)
            self.rules.append(Rule(first, len(self.code) - first, action == "pass", node))
        return range(before, len(self.rules))

    def _emit(self, node: Node) -> None:
        if isinstance(node, Not):
            self._emit(node.item)
            self.code.append(CODE_NOT << CODE_SHIFT)
        elif isinstance(node, And | Or):
            self._chain(node)
        else:
            self._test(node)

    def _chain(self, node: And | Or) -> None:
        is_and = isinstance(node, And)
        if not node.items:
            self._test(is_and)
            return
        skips = []
        self._emit(node.items[0])
        for item in node.items[1:]:
            skips.append(len(self.code))
            self.code.append(0)
            self._emit(item)
            self.code.append((CODE_AND if is_and else CODE_OR) << CODE_SHIFT)
        end = len(self.code)
        for at in skips:
            self.code[at] = (CODE_SKIP_FALSE if is_and else CODE_SKIP_TRUE) << CODE_SHIFT | (end - at)

    def _test(self, test: tree.Test | bool) -> None:
        row = self.tests.setdefault(test, len(self.tests))
        self.code.append(CODE_TEST << CODE_SHIFT | row)

    def unguarded(self) -> set[tree.Test]:
        """Tests that may be reached without their tags having been seen (``vlan or ip``): they read whatever lies there."""
        found: set[tree.Test] = set()
        for rule in self.rules:
            _guard(rule.node, 0, found)
        return found

    def tables(self, builder: Builder) -> tuple[NDArray[np.void], NDArray[np.uint32]]:
        """(TEST[n], code); sets go to the builder, each distinct one once."""
        if len(self.code) >= MAX_CODE:
            raise PolicyError(f"the rules have {len(self.code):,} tests and operators, at most {MAX_CODE - 1:,}")
        table = np.zeros(len(self.tests), TEST)
        table["predicate"] = -1
        sets: dict[object, int] = {}
        for test, i in self.tests.items():
            _operands(table[i], test, builder, sets)
        return table, np.array(self.code, np.uint32)


def _guard(node: Node, tags: int, found: set[tree.Test]) -> tuple[int, int]:
    """(tags seen when `node` is false, when it is true), given that `tags` were seen before it."""
    if isinstance(node, Not):
        no, yes = _guard(node.item, tags, found)
        return yes, no
    if isinstance(node, And | Or):
        is_and = isinstance(node, And)
        ended, goes_on = tags, tags
        seen_at_end = []
        for item in node.items:
            no, yes = _guard(item, goes_on, found)
            ended, goes_on = (no, yes) if is_and else (yes, no)
            seen_at_end.append(ended)
        ended = min(seen_at_end, default=tags)
        return (ended, goes_on) if is_and else (goes_on, ended)
    depth = tree.tags(getattr(node, "layer", ()))
    if depth > tags:
        found.add(node)
    return tags, tags + (isinstance(node, tree.Tagged) and depth == tags)


def _pairs(ranges: tuple[tuple[int, int], ...]) -> NDArray[np.int64]:
    return np.array(ranges, np.int64).reshape(-1, 2)


def signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value & SIGN else value


def halves(value: int) -> tuple[int, int]:
    """High and low 64 bits with the sign bit flipped, so that signed comparison orders them."""
    return signed(value >> 64 ^ SIGN), signed(value & ((1 << 64) - 1) ^ SIGN)


_TABLE_OPS = {
    tree.Address4Set: image.OP_SET4,
    tree.Address6Set: image.OP_SET6,
    tree.Port: image.OP_PORTS,
    tree.Detail: image.OP_DETAILS,
    tree.VlanId: image.OP_VLANS,
    tree.Field: image.OP_FIELD,
    tree.Tunnel: image.OP_TUNNEL_ID,
}


def _operands(out: NDArray[np.void], test: tree.Test | bool, builder: Builder, sets: dict[object, int]) -> None:
    if isinstance(test, bool):
        out["op"] = image.OP_ALWAYS if test else image.OP_NEVER
        return
    layer = getattr(test, "layer", ())
    out["depth"], out["layer"] = (len(layer), 0) if tree.tags(layer) >= 0 else (0, pack_layer(layer))
    for name in ("side", "kinds", "protocols"):
        out[name] = getattr(test, name, 0)
    match test:
        case tree.EtherType():
            out["op"], out["a"] = image.OP_ETHERTYPE, test.value
        case tree.Llc():
            out["op"], out["a"], out["b"] = image.OP_LLC, test.value, 2 if test.wide else 1
        case tree.Tagged():
            out["op"] = image.OP_TAGGED
        case tree.VlanId() if len(test.ranges) == 1:
            out["op"], (out["a"], out["b"]) = image.OP_VLAN, test.ranges[0]
        case tree.Address4():
            out["op"], out["a"], out["b"] = image.OP_ADDRESS4, test.net, test.mask
        case tree.Address6():
            out["op"], out["c"] = image.OP_ADDRESS6, test.prefix
            out["a"], out["b"] = signed(test.net >> 64), signed(test.net)
        case tree.Protocol():
            out["op"], out["a"] = image.OP_PROTOCOL, test.value
        case tree.Port() if len(test.ranges) == 1:
            out["op"] = image.OP_PORT
            out["a"], out["b"] = test.ranges[0]
        case tree.Detail() if len(test.ranges) == 1:
            out["op"], out["c"] = image.OP_DETAIL, test.protocol
            out["a"], out["b"] = test.ranges[0]
        case tree.Mac():
            out["op"], out["a"], out["b"] = image.OP_MAC, test.value, test.mask
        case tree.MacGroup():
            out["op"] = image.OP_GROUP
        case tree.Multicast():
            out["op"], out["kinds"] = image.OP_MULTICAST, test.kind
        case tree.ProtoChain():
            out["op"], out["a"] = image.OP_PROTOCHAIN, test.value
        case tree.FirstFragment():
            out["op"] = image.OP_FIRST_FRAGMENT
        case tree.Compare():
            out["op"] = image.OP_COMPARE
            if test not in sets:
                sets[test] = builder.add(np.array(compile_compare(test), np.int64))
            out["a"] = sets[test]
        case tree.Length():
            out["op"], out["a"], out["b"] = image.OP_LENGTH, test.first, test.last
        case tree.Tunnel(ranges=None):
            out["op"], out["c"] = image.OP_TUNNEL, test.kind
        case tree.Address4Set() | tree.Port() | tree.Address6Set() | tree.Detail() | tree.VlanId() | tree.Field() | tree.Tunnel():
            assert test.ranges is not None
            six = isinstance(test, tree.Address6Set)
            out["op"] = _TABLE_OPS[type(test)]
            out["c"] = next((getattr(test, name) for name in ("protocol", "field", "kind") if hasattr(test, name)), 0)
            key = (six, test.ranges)
            if key not in sets:
                rows = np.array([(*halves(a), *halves(b)) for a, b in test.ranges], np.int64) if six else _pairs(test.ranges)
                sets[key] = builder.add(rows)
            out["a"], out["b"] = sets[key], len(test.ranges)
