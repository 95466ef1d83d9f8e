"""What an expression says: a tree of AND, OR and NOT over tests. Frozen, hashable values; equal tests are one test for the compiler.

Every test that looks behind the MAC addresses has a `depth`: the number of VLAN tags it takes for granted, which is the number of
``vlan`` words left of it. That is libpcap's rule, and like libpcap we do not ask whether the tags are there.

Order matters. AND and OR stop at the first operand that decides; an operand that cannot be answered ends the whole expression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

SOURCE, DESTINATION = 0, 1
IP, ARP, RARP, IP6 = 1, 2, 4, 8  # bits: ethertypes that a test is about


@dataclass(frozen=True, slots=True)
class EtherType:
    depth: int
    value: int


@dataclass(frozen=True, slots=True)
class Llc:
    """An IEEE 802.3 length instead of an ethertype, and `value` in the DSAP (`wide`: DSAP and SSAP)."""

    depth: int
    value: int
    wide: bool


@dataclass(frozen=True, slots=True)
class Tagged:
    """0x8100, 0x88a8 or 0x9100 stands where the ethertype would."""

    depth: int


@dataclass(frozen=True, slots=True)
class VlanId:
    depth: int
    value: int


@dataclass(frozen=True, slots=True)
class Address4:
    depth: int
    side: int
    kinds: int
    net: int
    mask: int


@dataclass(frozen=True, slots=True)
class Address4Set:
    """`ranges`: sorted, disjoint (first, last)."""

    depth: int
    side: int
    kinds: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Address6:
    depth: int
    side: int
    net: int
    prefix: int


@dataclass(frozen=True, slots=True)
class Address6Set:
    depth: int
    side: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Protocol:
    """IPv4 protocol, or IPv6 next header, also that of a fragment header which follows directly."""

    depth: int
    kinds: int
    value: int


@dataclass(frozen=True, slots=True)
class Port:
    """`protocols`: bits TCP, UDP, SCTP."""

    depth: int
    side: int
    protocols: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Mac:
    side: int
    value: int


@dataclass(frozen=True, slots=True)
class MacGroup:
    """Destination with the group bit: multicast and broadcast."""


@dataclass(frozen=True, slots=True)
class Multicast:
    depth: int
    kind: int  # IP or IP6


@dataclass(frozen=True, slots=True)
class Length:
    """Bytes on the wire, both ends included."""

    first: int
    last: int


Test: TypeAlias = (
    EtherType
    | Llc
    | Tagged
    | VlanId
    | Address4
    | Address4Set
    | Address6
    | Address6Set
    | Protocol
    | Port
    | Mac
    | MacGroup
    | Multicast
    | Length
)


@dataclass(frozen=True, slots=True)
class Not:
    item: Node


@dataclass(frozen=True, slots=True)
class And:
    """No items: true (the empty expression)."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """No items: false (an empty set)."""

    items: tuple[Node, ...]


Node: TypeAlias = Test | Not | And | Or


def both(a: Node, b: Node) -> And:
    """``a and b``, a chain kept flat."""
    return And((*a.items, b) if isinstance(a, And) and a.items else (a, b))


def either(a: Node, b: Node) -> Or:
    return Or((*a.items, b) if isinstance(a, Or) and a.items else (a, b))
