"""What an expression says: a tree of AND, OR and NOT over tests. Frozen, hashable values; equal tests are one test for the compiler.

Every test that looks behind the MAC addresses has a `layer`: the steps that lead from the start of the frame to the link-layer payload
that the test is about. Each ``vlan``, ``mpls``, ``pppoes`` and ``geneve`` left of it adds a step; that is libpcap's rule, and like libpcap
we do not ask whether the header that a step goes over is there. ``inner (...)`` adds a step that does ask; such steps stand first, as what
is left of it does not matter to it.

Order matters only where a packet is cut: see README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

SOURCE, DESTINATION = 0, 1
IP, ARP, RARP, IP6 = 1, 2, 4, 8  # bits: ethertypes that a test is about

Layer: TypeAlias = tuple[int, ...]
Ranges: TypeAlias = tuple[tuple[int, int], ...]
VLAN, MPLS, PPPOE, GENEVE, INNER = 1, 2, 3, 4, 5
"""Steps of a layer: over a tag, a label, a PPPoE session header, an outer packet with Geneve in UDP, or into whatever tunnel there is."""
MAX_STEPS = 8
MAX_INNER = 4


def tunnels(layer: Layer) -> Layer:
    """The steps into tunnels, without those that follow."""
    return layer[: layer.count(INNER)]


def tags(layer: Layer) -> int:
    """How many VLAN tags lead there; -1 when anything else does."""
    return len(layer) if all(step == VLAN for step in layer) else -1


@dataclass(frozen=True, slots=True)
class EtherType:
    layer: Layer
    value: int


@dataclass(frozen=True, slots=True)
class Llc:
    """An IEEE 802.3 length instead of an ethertype, and `value` in the DSAP (`wide`: DSAP and SSAP)."""

    layer: Layer
    value: int
    wide: bool


@dataclass(frozen=True, slots=True)
class Tagged:
    """0x8100, 0x88a8 or 0x9100 stands where the ethertype would."""

    layer: Layer


@dataclass(frozen=True, slots=True)
class VlanId:
    """`ranges`, here and below: sorted, disjoint (first, last)."""

    layer: Layer
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Address4:
    layer: Layer
    side: int
    kinds: int
    net: int
    mask: int


@dataclass(frozen=True, slots=True)
class Address4Set:
    layer: Layer
    side: int
    kinds: int
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Address6:
    layer: Layer
    side: int
    net: int
    prefix: int


@dataclass(frozen=True, slots=True)
class Address6Set:
    layer: Layer
    side: int
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Protocol:
    """IPv4 protocol, or IPv6 next header, also that of a fragment header which follows directly."""

    layer: Layer
    kinds: int
    value: int


@dataclass(frozen=True, slots=True)
class Port:
    """`protocols`: bits TCP, UDP, SCTP."""

    layer: Layer
    side: int
    protocols: int
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Mac:
    """`layer`: only steps into tunnels; false where a tunnel carries no Ethernet."""

    layer: Layer
    side: int
    value: int
    mask: int = (1 << 48) - 1


@dataclass(frozen=True, slots=True)
class MacGroup:
    """Destination with the group bit: multicast and broadcast. `layer` as of `Mac`."""

    layer: Layer


@dataclass(frozen=True, slots=True)
class Multicast:
    layer: Layer
    kind: int  # IP or IP6


@dataclass(frozen=True, slots=True)
class Length:
    """Bytes on the wire, both ends included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Detail:
    """What a transport header says in one byte: the TCP flags (`protocol` 6), the ICMP type (1) or the ICMPv6 type (58).

    `ranges`: of 0..255, and 256 or 512 more for the two types, as KEY.detail has them. `kinds`: IP, IP6 or both.
    """

    layer: Layer
    kinds: int
    protocol: int
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class FirstFragment:
    """IPv4: the fragment offset is 0, as any test of what the payload begins with needs. Elsewhere: true."""

    layer: Layer


@dataclass(frozen=True, slots=True)
class Field:
    """`field`, one of those below, has a value of `ranges`. `kinds`: IP, IP6 or both; PCP and TAGS are not asked for it."""

    layer: Layer
    field: int
    kinds: int
    ranges: Ranges


DSCP, ECN, TTL, FLOW_LABEL, FRAGMENT, EXTENSION, L4_PROTOCOL, PCP, TAGS = range(9)
"""TTL: IPv6's hop limit too. EXTENSION: the number of any IPv6 extension header. L4_PROTOCOL: behind all of those. PCP: of the tag that
stands where the ethertype would. TAGS: how many of them follow each other from there on, at most MAX_TAGS."""
NOT_FRAGMENTED, FIRST, LATER, ATOMIC = range(4)
"""Values of FRAGMENT."""
MAX_TAGS = 8


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The layer's packet carries another in a tunnel of this kind, whose id is in `ranges` (None: any id, or none)."""

    layer: Layer
    kind: int
    ranges: Ranges | None


ANY_TUNNEL, GRE, ERSPAN, VXLAN, GENEVE_TUNNEL, GTP, MPLS_TUNNEL, IPIP = range(8)
"""ERSPAN is GRE too."""


@dataclass(frozen=True, slots=True)
class ProtoChain:
    """`value` anywhere in the chain of IPv4 AH or IPv6 extension headers, as libpcap walks it."""

    layer: Layer
    kinds: int  # IP or IP6
    value: int


# ---- numbers, for comparisons: 32 bits unsigned, as libpcap computes

LINK, NETWORK, TRANSPORT, BEHIND6, L4, PAYLOAD, TYPE = range(7)
"""What the offset of a `Load` counts from: the link-layer header; its payload; behind the IPv4 header (IHL words; what ``tcp[0]`` means);
behind the fixed IPv6 header (``icmp6[0]``); ours: the transport header, behind all extension headers; what follows that; and the
ethertype, or what takes its place in the layer."""


@dataclass(frozen=True, slots=True)
class Number:
    value: int


@dataclass(frozen=True, slots=True)
class WireLength:
    pass


@dataclass(frozen=True, slots=True)
class Load:
    """`size` (1, 2, 4) bytes in network order at `index` behind the `base` of the layer. Undetermined where they are cut off; a comparison
    is false where the packet has no such base, or by its own IP header ends before they would come (L4, PAYLOAD)."""

    layer: Layer
    base: int
    index: Arithmetic
    size: int


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str  # + - * / % & | ^ << >>
    left: Arithmetic
    right: Arithmetic


Arithmetic: TypeAlias = Number | WireLength | Load | Binary


@dataclass(frozen=True, slots=True)
class Compare:
    """The other relations are these with sides swapped or negated. A division by zero is undetermined (libpcap rejects the packet)."""

    left: Arithmetic
    relation: str  # "=", ">", ">="
    right: Arithmetic


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
    | Detail
    | FirstFragment
    | Field
    | Tunnel
    | ProtoChain
    | Compare
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
