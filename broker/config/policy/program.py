"""From trees to the program: one chain of tests per map, and the tests it is made of, each distinct one named once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from broker.config.policy import image, tree
from broker.config.policy.arithmetic_code import compile_compare
from broker.config.policy.image import CANNOT_TELL, DROP, NONE, PASS, TEST, Builder
from broker.config.policy.layers import pack_layer
from broker.config.policy.tree import And, Node, Not, Or

SIGN = 1 << 63
_MANY = 255


@dataclass(eq=False, slots=True)
class Label:
    """A place in the program, known once it is reached; negative: an answer."""

    row: int = -(1 << 30)


@dataclass(slots=True)
class Row:
    test: tree.Test | bool
    hidden: int
    on_false: Label
    on_true: Label
    on_undetermined: Label


@dataclass(slots=True)
class Program:
    """`rows` of all maps one after the other."""

    rows: list[Row] = field(default_factory=list)

    def add_map(self, rules: Iterable[tuple[str, Node]], libpcap: bool) -> int:
        """The row to start at, or an answer. `libpcap`: what cannot be told does not match (and hidden ports do not either)."""
        first = len(self.rows)
        start = Label()
        here = start
        hidden = image.FALSE if libpcap else image.UNDETERMINED
        for action, node in rules:
            here.row = len(self.rows)
            here = Label()
            answer = Label(PASS if action == "pass" else DROP)
            self._emit(node, hidden, here, answer, here if libpcap else Label(CANNOT_TELL))
        here.row = NONE
        return start.row if len(self.rows) > first else NONE

    def _emit(self, node: Node, hidden: int, no: Label, yes: Label, cannot: Label) -> None:
        if isinstance(node, Not):
            self._emit(node.item, hidden, yes, no, cannot)
        elif isinstance(node, And | Or):
            is_and = isinstance(node, And)
            if not node.items:
                self.rows.append(Row(is_and, hidden, no, yes, cannot))
            for item in node.items[:-1]:
                go_on = Label()
                self._emit(item, hidden, no if is_and else go_on, go_on if is_and else yes, cannot)
                go_on.row = len(self.rows)
            if node.items:
                self._emit(node.items[-1], hidden, no, yes, cannot)
        else:
            self.rows.append(Row(node, hidden, no, yes, cannot))

    def tests(self) -> list[tree.Test]:
        """Each distinct one once."""
        return list(dict.fromkeys(row.test for row in self.rows if not isinstance(row.test, bool)))

    def unguarded(self) -> set[int]:
        """Rows that may be reached without their tags having been seen (``vlan or ip``): they read whatever lies there."""
        known = [_MANY] * len(self.rows)
        reached = [False] * len(self.rows)
        found = set()
        for i, row in enumerate(self.rows):
            tags = known[i] if reached[i] else 0  # unreached: the first row of a map
            depth = tree.tags(getattr(row.test, "layer", ()))
            if depth > tags:
                found.add(i)
            is_next_tag = isinstance(row.test, tree.Tagged) and depth == tags
            for label, seen in ((row.on_false, tags), (row.on_true, tags + is_next_tag), (row.on_undetermined, tags)):
                if label.row >= 0:
                    known[label.row] = min(known[label.row], seen)
                    reached[label.row] = True
        return found

    def table(self, builder: Builder) -> NDArray[np.void]:
        """TEST[n]; sets go to the builder, each distinct one once."""
        table = np.zeros(len(self.rows), TEST)
        sets: dict[object, int] = {}
        for i, row in enumerate(self.rows):
            out = table[i]
            _operands(out, row.test, builder, sets)
            out["hidden"] = row.hidden
            out["jumps"] = (row.on_false.row, row.on_true.row, row.on_undetermined.row)
        return table


def _pairs(ranges: tuple[tuple[int, int], ...]) -> NDArray[np.int64]:
    return np.array(ranges, np.int64).reshape(-1, 2)


def signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value & SIGN else value


def halves(value: int) -> tuple[int, int]:
    """High and low 64 bits with the sign bit flipped, so that signed comparison orders them."""
    return signed(value >> 64 ^ SIGN), signed(value & ((1 << 64) - 1) ^ SIGN)


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
        case tree.VlanId():
            out["op"], out["a"] = image.OP_VLAN, test.value
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
        case tree.Mac():
            out["op"], out["a"] = image.OP_MAC, test.value
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
        case tree.Address4Set() | tree.Port() | tree.Address6Set():
            six = isinstance(test, tree.Address6Set)
            out["op"] = image.OP_SET6 if six else image.OP_PORTS if isinstance(test, tree.Port) else image.OP_SET4
            key = (six, test.ranges)
            if key not in sets:
                rows = np.array([(*halves(a), *halves(b)) for a, b in test.ranges], np.int64) if six else _pairs(test.ranges)
                sets[key] = builder.add(rows)
            out["a"], out["b"] = sets[key], len(test.ranges)
