"""Trees in the form that classes can answer: what stands for a test of TCP flags or of an ICMP type becomes that test.

    tcp[tcpflags] & tcp-syn != 0    is    tcp, and the first fragment, and a comparison of byte 13    becomes    Detail

The answers stay the same, packet for packet.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.config.policy import tree
from broker.config.policy.fields import ICMP_AT
from broker.config.policy.sets import merge
from broker.config.policy.tree import IP, And, Node, Not, Or

_TCP, _ICMP = 6, 1
_FLAGS_AT = 13
_RELATIONS: dict[str, Callable[[int, int], bool]] = {"=": lambda a, b: a == b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}
_TOP = 0xFFFFFFFF
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "+": lambda a, b: (a + b) & _TOP,
    "-": lambda a, b: (a - b) & _TOP,
    "<<": lambda a, b: (a << b) & _TOP if b < 32 else 0,
    ">>": lambda a, b: a >> b if b < 32 else 0,
}


def simplify(node: Node) -> Node:
    if isinstance(node, Not):
        return Not(simplify(node.item))
    if isinstance(node, Or):
        return Or(tuple(simplify(item) for item in node.items))
    if isinstance(node, And):
        return _chain(And(tuple(simplify(item) for item in node.items)))
    return node


def _chain(node: And) -> Node:
    """Within one AND: a comparison of the byte, with the protocol and the first fragment asked for before it."""
    items = list(node.items)
    for i, item in enumerate(items):
        test = item.item if isinstance(item, Not) else item
        if not isinstance(test, tree.Compare):
            continue
        load = _only_load(test)
        if load is None or tree.tags(load.layer) < 0:
            continue
        found = _byte(load, items[:i])
        if found is None:
            continue
        protocol, kinds, at = found
        values = [v for v in range(256) if _holds(test, v) != isinstance(item, Not)]
        items[i] = tree.Detail(load.layer, kinds, protocol, merge([(at + v, at + v) for v in values]))
    kept = [item for i, item in enumerate(items) if not (isinstance(item, tree.FirstFragment) and _told_by_next(items, i))]
    return And(tuple(kept))


def _told_by_next(items: list[Node], i: int) -> bool:
    """What follows answers for later fragments as well."""
    test, following = items[i], items[i + 1] if i + 1 < len(items) else None
    return isinstance(following, tree.Detail) and isinstance(test, tree.FirstFragment) and following.layer == test.layer


def _byte(load: tree.Load, before: list[Node]) -> tuple[int, int, int] | None:
    """(protocol, kinds, first value of KEY.detail) of the byte, if what stands before it makes sure that it is that."""
    first = tree.FirstFragment(load.layer) in before
    if load.size != 1 or not isinstance(load.index, tree.Number):
        return None
    for test in before:
        if isinstance(test, tree.Protocol) and test.layer == load.layer:
            if (test.value, load.base, load.index.value, first) == (_TCP, tree.TRANSPORT, _FLAGS_AT, True):
                return (_TCP, IP, 0) if _is_ip(test, before) else None
            if (test.value, load.base, load.index.value, first) == (_ICMP, tree.TRANSPORT, 0, True):
                return (_ICMP, IP, ICMP_AT) if _is_ip(test, before) else None
    return None


def _is_ip(test: tree.Protocol, before: list[Node]) -> bool:
    return test.kinds == IP or tree.EtherType(test.layer, 0x0800) in before


def _only_load(test: tree.Compare) -> tree.Load | None:
    """The one load in it, if all else is numbers."""
    loads: list[tree.Load] = []
    return loads[0] if _numbers_but(test.left, loads) and _numbers_but(test.right, loads) and len(loads) == 1 else None


def _numbers_but(value: tree.Arithmetic, loads: list[tree.Load]) -> bool:
    if isinstance(value, tree.Load):
        loads.append(value)
        return True
    if isinstance(value, tree.Binary):
        return value.operator in _OPERATORS and _numbers_but(value.left, loads) and _numbers_but(value.right, loads)
    return isinstance(value, tree.Number)


def _holds(test: tree.Compare, byte: int) -> bool:
    return _RELATIONS[test.relation](_value(test.left, byte), _value(test.right, byte))


def _value(value: tree.Arithmetic, byte: int) -> int:
    if isinstance(value, tree.Number):
        return value.value
    if isinstance(value, tree.Binary):
        return _OPERATORS[value.operator](_value(value.left, byte), _value(value.right, byte))
    return byte
