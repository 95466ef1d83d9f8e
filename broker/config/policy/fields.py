"""What a test asks of the fields of a packet, and which packets a rule may be about, as far as fields tell.

`asks` is exact: the answer of a test that is no predicate depends on these fields only, and on each only by which of the ranges its value
lies in. `terms` is not: a rule is turned into at most MAX_TERMS alternatives, each a set of allowed values for some fields, so that a
packet outside of all of them cannot match. What is too many-sided, or asked of the packet itself (a predicate), allows everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker.config.policy import tree
from broker.config.policy.sets import merge
from broker.config.policy.tree import ARP, DESTINATION, IP, IP6, RARP, SOURCE, And, Node, Not, Or, Ranges, Test

MAX_TERMS = 8
_ETHERTYPE = {IP: 0x0800, ARP: 0x0806, RARP: 0x8035, IP6: 0x86DD}
TAG_ETHERTYPES = (0x8100, 0x88A8, 0x9100)
_PROTOCOL_OF_BIT = {1: 6, 2: 17, 4: 132}

# KEY.protocol: IPv4 protocol, 256 + IPv6 next header, 512 + next header of the fragment header, or not IP
IP6_AT, FRAGMENT6_AT, NOT_IP = 256, 512, 768
# KEY.detail: the TCP flags, 256 + ICMP type, 512 + ICMPv6 type
ICMP_AT, ICMP6_AT, DETAILS = 256, 512, 768

_TOP4, _TOP6, _TOP48 = (1 << 32) - 1, (1 << 128) - 1, (1 << 48) - 1

TABLES: dict[str, tuple[tuple[str, int], ...]] = {
    "ethertype": (("ethertype", 65535),),
    "protocol": (("protocol", NOT_IP - 1),),
    "source": (("source4", _TOP4), ("source6", _TOP6)),
    "destination": (("destination4", _TOP4), ("destination6", _TOP6)),
    "source_port": (("source_port", 65535),),
    "destination_port": (("destination_port", 65535),),
    "detail": (("detail", DETAILS - 1),),
    "length": (("length", _TOP4),),
    "source_mac": (("source_mac", _TOP48),),
    "destination_mac": (("destination_mac", _TOP48),),
    "group": (("group", 1),),
    **{f"tag{depth}": ((f"vlan{depth}", 4095),) for depth in range(4)},
}
"""Field -> its tables of values and the largest value of each."""
FIELD_OF = {table: field for field, tables in TABLES.items() for table, _ in tables}
_SIDES = {SOURCE: "source", DESTINATION: "destination"}


def _one(value: int) -> Ranges:
    return ((value, value),)


def is_range(mask: int, top: int = _TOP4) -> bool:
    """The mask is a prefix, so what it matches is one range."""
    rest = ~mask & top
    return rest & (rest + 1) == 0


def is_predicate(test: Test | bool) -> bool:
    """No class of values answers it: it is asked of the packet's own bytes."""
    if isinstance(test, tree.Llc | tree.Compare | tree.ProtoChain | tree.FirstFragment | tree.Field | tree.Tunnel):
        return True
    if tree.tags(getattr(test, "layer", ())) < 0 or (isinstance(test, tree.Address4) and not is_range(test.mask)):
        return True
    return isinstance(test, tree.Mac) and not is_range(test.mask, _TOP48)


def _kinds(kinds: int) -> Ranges:
    return tuple(sorted((value, value) for bit, value in _ETHERTYPE.items() if kinds & bit))


def _protocols(kinds: int, values: Iterable[int]) -> Ranges:
    """Ranges of KEY.protocol for IPv4 protocols and IPv6 next headers, also behind a fragment header."""
    at = (*((0,) if kinds & IP else ()), *((IP6_AT, FRAGMENT6_AT) if kinds & IP6 else ()))
    ranges = [(start + value, start + value) for start in at for value in values]
    if kinds & IP6 and 44 in values:
        ranges.append((FRAGMENT6_AT, FRAGMENT6_AT + 255))
    return merge(ranges)


def asks(test: Test) -> dict[str, Ranges]:
    """Table -> the values for which the test holds, if it holds for those of every table: the AND of them is the test, in a packet
    that shows its headers."""
    match test:
        case tree.Tagged():
            return {f"vlan{len(test.layer)}": ((0, 4095),)}
        case tree.EtherType():
            return {"ethertype": _one(test.value)}
        case tree.VlanId():
            return {f"vlan{len(test.layer)}": test.ranges}
        case tree.Address4() if test.mask == 0:  # nothing is read
            return {"ethertype": _kinds(test.kinds)}
        case tree.Address6() if test.prefix == 0:
            return {"ethertype": _kinds(IP6)}
        case tree.Address4():
            net = (test.net, test.net | ~test.mask & 0xFFFFFFFF)
            return {"ethertype": _kinds(test.kinds), f"{_SIDES[test.side]}4": (net,)}
        case tree.Address4Set():
            return {"ethertype": _kinds(test.kinds), f"{_SIDES[test.side]}4": test.ranges}
        case tree.Address6():
            net = (test.net, test.net | (1 << 128 - test.prefix) - 1)
            return {"ethertype": _kinds(IP6), f"{_SIDES[test.side]}6": (net,)}
        case tree.Address6Set():
            return {"ethertype": _kinds(IP6), f"{_SIDES[test.side]}6": test.ranges}
        case tree.Protocol():
            return {"protocol": _protocols(test.kinds, (test.value,)) if test.value < 256 else ()}
        case tree.Port():
            values = [p for bit, p in _PROTOCOL_OF_BIT.items() if test.protocols & bit]
            return {"protocol": _protocols(IP | IP6, values), f"{_SIDES[test.side]}_port": test.ranges}
        case tree.Detail():
            return {"protocol": _protocols(test.kinds, (test.protocol,)), "detail": test.ranges}
        case tree.Mac():
            return {f"{_SIDES[test.side]}_mac": ((test.value, test.value | ~test.mask & _TOP48),)}
        case tree.MacGroup():
            return {"group": _one(1)}
        case tree.Multicast() if test.kind == IP:
            return {"ethertype": _kinds(IP), "destination4": ((0xE0000000, _TOP4),)}
        case tree.Multicast():
            return {"ethertype": _kinds(IP6), "destination6": ((0xFF << 120, _TOP6),)}
        case tree.Length():
            return {"length": ((test.first, min(test.last, _TOP4)),) if test.first <= test.last else ()}
    return {}


# ---- terms


@dataclass(frozen=True, slots=True)
class Allowed:
    """Of one field: the values of each of its tables, and whether a packet that does not have the field will do."""

    ranges: tuple[Ranges, ...]
    none: bool


Term = dict[str, Allowed]
"""Field -> what is allowed; a field that is missing may be anything."""


def _complement(ranges: Ranges, top: int) -> Ranges:
    found, start = [], 0
    for first, last in ranges:
        if first > start:
            found.append((start, first - 1))
        start = last + 1
    if start <= top:
        found.append((start, top))
    return tuple(found)


def _intersect(one: Ranges, two: Ranges) -> Ranges:
    found, i, j = [], 0, 0
    while i < len(one) and j < len(two):
        first, last = max(one[i][0], two[j][0]), min(one[i][1], two[j][1])
        if first <= last:
            found.append((first, last))
        if one[i][1] < two[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def _both(one: Term, two: Term) -> Term:
    """What no packet can meet is kept: of one that is cut off before the field it cannot be told."""
    found = dict(one)
    for field, allowed in two.items():
        if field in found:
            before = found[field]
            ranges = tuple(_intersect(a, b) for a, b in zip(before.ranges, allowed.ranges, strict=True))
            found[field] = Allowed(ranges, before.none and allowed.none)
        else:
            found[field] = allowed
    return found


def terms(node: Node, unguarded: set[Test]) -> tuple[list[Term], bool]:
    """A packet for which `node` is not false meets all of one of these, as far as it shows its headers. And whether they are exact: the
    node is true for every packet that does and shows what they ask for."""
    finder = _Finder(unguarded)
    return finder.find(node, True), finder.exact


@dataclass(slots=True)
class _Finder:
    unguarded: set[Test]
    exact: bool = True

    def find(self, node: Node, wanted: bool) -> list[Term]:
        """Where `node` may be `wanted`."""
        if isinstance(node, Not):
            return self.find(node.item, not wanted)
        if isinstance(node, And | Or):
            parts = [self.find(item, wanted) for item in node.items]
            return self.product(parts) if isinstance(node, And) == wanted else self.sum(parts)
        if is_predicate(node) or node in self.unguarded:
            return self.anything()
        if isinstance(node, tree.EtherType) and node.value in TAG_ETHERTYPES:
            return self.anything()  # it may be the ethertype in front of a tag or behind it
        return _of_test(node, wanted)

    def anything(self) -> list[Term]:
        self.exact = False
        return [{}]

    def sum(self, parts: list[list[Term]]) -> list[Term]:
        found = [term for part in parts for term in part]
        if len(found) <= MAX_TERMS:
            return found
        self.exact = False
        return _joined(found)

    def product(self, parts: list[list[Term]]) -> list[Term]:
        """The parts with the fewest alternatives first, as long as there are not too many; leaving one out allows more, never less."""
        found: list[Term] = [{}]
        for part in sorted(parts, key=len):
            if len(part) == 1 or len(found) * len(part) <= MAX_TERMS:
                found = [_both(one, two) for one in found for two in part]
            else:
                self.exact = False
        return found


def _of_test(test: Test, wanted: bool) -> list[Term]:
    tag = f"tag{len(getattr(test, 'layer', ()))}"
    at_its_depth = hasattr(test, "layer") and tag in TABLES and not isinstance(test, tree.Tagged | tree.VlanId | tree.Mac | tree.MacGroup)
    by_field: dict[str, dict[str, Ranges]] = {}
    for table, ranges in asks(test).items():
        by_field.setdefault(FIELD_OF[table], {})[table] = ranges
    found: list[Term] = []
    whole: Term = {}
    for field, asked in by_field.items():
        tables = TABLES[field]
        if wanted:
            whole[field] = Allowed(tuple(asked.get(table, ()) for table, _ in tables), none=False)
        else:
            found.append({field: Allowed(tuple(_complement(asked.get(table, ()), top) for table, top in tables), none=True)})
    if at_its_depth:  # a further tag stands where it looks for an ethertype
        if wanted:
            whole[tag] = Allowed(((),), none=True)
        else:
            found.append({tag: Allowed((((0, 4095),),), none=False)})
    return [whole] if wanted else found


def _joined(found: list[Term]) -> list[Term]:
    """One alternative that allows all of them, in the fields that all of them ask for."""
    fields = set.intersection(*(set(term) for term in found))
    joined: Term = {}
    for field in sorted(fields):
        pieces = [term[field] for term in found]
        ranges = tuple(merge([r for piece in pieces for r in piece.ranges[i]]) for i in range(len(TABLES[field])))
        joined[field] = Allowed(ranges, any(piece.none for piece in pieces))
    return [joined]
