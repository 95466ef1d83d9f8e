"""What a protocol's name, an ethertype or a header in between means in a layer: libpcap's rules for Ethernet, PPP and labels.

A layer is Ethernet until ``pppoes``, and again from ``geneve`` on. Behind ``mpls`` nothing says what follows, so the first nibble does.
"""

from __future__ import annotations

from broker.config.policy import tree
from broker.config.policy.errors import PolicyError
from broker.config.policy.refused import REFUSED
from broker.config.policy.tree import (
    BEHIND6,
    DESTINATION,
    GENEVE,
    IP,
    IP6,
    LINK,
    MPLS,
    NETWORK,
    PPPOE,
    TRANSPORT,
    TYPE,
    VLAN,
    And,
    Binary,
    Compare,
    Layer,
    Load,
    Node,
    Not,
    Number,
    Or,
)  # fmt: skip

MAX_TAGS = 4
ALL_48 = (1 << 48) - 1
ETHERTYPES = {
    "ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806, "rarp": 0x8035, "decnet": 0x6003, "lat": 0x6004, "sca": 0x6007, "mopdl": 0x6001,
    "moprc": 0x6002, "atalk": 0x809B, "aarp": 0x80F3, "iso": 0xFE, "stp": 0x42, "ipx": 0xE0, "netbeui": 0xF0,
}  # fmt: skip
"""Up to 1,500 they are IEEE 802.2 service access points."""
PROTOCOL_NUMBERS = {
    "tcp": (IP | IP6, 6), "udp": (IP | IP6, 17), "sctp": (IP | IP6, 132), "icmp": (IP, 1), "igmp": (IP, 2), "igrp": (IP, 9),
    "pim": (IP | IP6, 103), "vrrp": (IP, 112), "ah": (IP | IP6, 51), "esp": (IP | IP6, 50), "icmp6": (IP6, 58),
}  # fmt: skip
_OSI = ("clnp", "esis", "isis", "l1", "l2", "iih", "lsp", "snp", "csnp", "psnp")
PROTOCOLS = frozenset((*ETHERTYPES, *PROTOCOL_NUMBERS, *_OSI, "ether"))
_INDEXED_NETWORK = frozenset(("ip", "ip6", "arp", "rarp", "atalk", "decnet", "sca", "lat", "mopdl", "moprc"))
_INDEXED_TRANSPORT = frozenset(("tcp", "udp", "sctp", "icmp", "igmp", "igrp", "pim", "vrrp"))

_LENGTH_MAX = 1500  # an ethertype up to here is an IEEE 802.3 length
_ATALK, _AARP, _IPX_TYPE, _IPX = 0x809B, 0x80F3, 0x8137, 0xE0
_BOTH_ACCESS_POINTS = (0xFE, 0x06, 0xF0)  # libpcap asks for these in DSAP and SSAP
_PPP = {0x0800: 0x21, 0x86DD: 0x57, 0x6003: 0x27, _ATALK: 0x29, 0x0600: 0x25, 0xFE: 0x23, 0x42: 0x31, _IPX: 0x2B}
_FROM_PPP = {0x21: 0x0800, 0x57: 0x86DD}
_PPP_MPLS, _TEB, _GENEVE_PORT, _UDP_BIT = 0x0281, 0x6558, 6081, 2


def medium(layer: Layer) -> int:
    """PPPOE: PPP. GENEVE: Ethernet that may not be there. 0: Ethernet."""
    return next((step for step in reversed(layer) if step in (PPPOE, GENEVE)), 0)


def has_labels(layer: Layer) -> bool:
    return MPLS in layer


def below_labels(layer: Layer) -> Layer:
    """Where the labels begin."""
    while layer and layer[-1] == MPLS:
        layer = layer[:-1]
    return layer


# ---- fields


def field(layer: Layer, base: int, offset: int, size: int) -> Load:
    return Load(layer, base, Number(offset & 0xFFFFFFFF), size)


def equals(load: Load, value: int) -> Compare:
    return Compare(load, "=", Number(value))


def masked(load: Load, mask: int, value: int) -> Compare:
    return Compare(Binary("&", load, Number(mask)), "=", Number(value))


def is_802_3(layer: Layer) -> Node:
    """A length stands where the ethertype would."""
    return Not(Compare(field(layer, TYPE, 0, 2), ">", Number(_LENGTH_MAX)))


# ---- ethertypes and what stands for them


def ether_type(layer: Layer, value: int, at: int) -> Node:
    """`value` up to 1,500: a service access point."""
    if has_labels(layer):
        if value not in (0x0800, 0x86DD):
            raise PolicyError("behind 'mpls' only ip and ip6 can be told apart", at)
        return tree.EtherType(layer, value)
    if medium(layer) == PPPOE:
        number = _PPP.get(value, value)
        return tree.EtherType(layer, _FROM_PPP.get(number, number))
    if value in _BOTH_ACCESS_POINTS:
        return tree.Llc(layer, value << 8 | value, True)
    if value == _IPX:
        raw = tree.Llc(layer, 0xFFFF, True)  # Novell's own IEEE 802.3 frames begin with the checksum, all ones
        return Or((tree.EtherType(layer, _IPX_TYPE), _snap(layer, 0, _IPX_TYPE), tree.Llc(layer, _IPX, False), raw))
    if value == _ATALK:
        return Or((tree.EtherType(layer, _ATALK), _snap(layer, 0x080007, _ATALK)))
    if value == _AARP:
        return Or((tree.EtherType(layer, _AARP), _snap(layer, 0, _AARP)))
    return tree.EtherType(layer, value) if value > _LENGTH_MAX else tree.Llc(layer, value, False)


def _snap(layer: Layer, organization: int, type_: int) -> Node:
    high = 0xAAAA0300 | organization >> 16
    low = (organization & 0xFFFF) << 16 | type_
    return And((is_802_3(layer), equals(field(layer, NETWORK, 4, 4), low), equals(field(layer, NETWORK, 0, 4), high)))


def only_ethernet(layer: Layer, what: str, at: int) -> None:
    if medium(layer) == PPPOE:
        raise PolicyError(f"there are no {what} in PPP", at)


def mac(layer: Layer, side: int, value: int, at: int, mask: int = ALL_48) -> Node:
    only_ethernet(layer, "Ethernet addresses", at)
    if GENEVE not in layer:
        return tree.Mac(tree.tunnels(layer), side, value, mask)
    if mask != ALL_48:
        raise PolicyError("Ethernet addresses behind 'geneve' take no mask: write 'inner geneve (...)'", at)
    offset = 0 if side == DESTINATION else 6
    low, high = equals(field(layer, LINK, offset + 2, 4), value & 0xFFFFFFFF), equals(field(layer, LINK, offset, 2), value >> 32)
    return And((_has_ethernet(layer), low, high))


def mac_group(layer: Layer, at: int) -> Node:
    only_ethernet(layer, "Ethernet addresses", at)
    return And((_has_ethernet(layer), masked(field(layer, LINK, 0, 1), 1, 1))) if GENEVE in layer else tree.MacGroup(tree.tunnels(layer))


def _has_ethernet(layer: Layer) -> Node:
    """Geneve also carries packets without an Ethernet header."""
    outer = layer[: len(layer) - 1 - layer[::-1].index(GENEVE)]
    return Or(tuple(And((kind, equals(field(outer, base, 10, 2), _TEB))) for kind, base in _ip_kinds(outer)))


def _ip_kinds(layer: Layer) -> tuple[tuple[Node, int], tuple[Node, int]]:
    return (tree.EtherType(layer, 0x0800), TRANSPORT), (tree.EtherType(layer, 0x86DD), BEHIND6)


# ---- protocols


def protocol(layer: Layer, word: str, at: int) -> Node:
    """``tcp``, ``arp``: not those of OSI."""
    if word in ETHERTYPES:
        return ether_type(layer, ETHERTYPES[word], at)
    return tree.Protocol(layer, *PROTOCOL_NUMBERS[word])


def indexed(layer: Layer, word: str, checks: tuple[Node, ...], at: int) -> tuple[int, tuple[Node, ...]]:
    """What an offset into the protocol counts from, and what is asked before it is read; `checks`: what the offset itself asks."""
    if word == "ether":
        return LINK, checks
    if word in _INDEXED_NETWORK:
        return NETWORK, (*checks, protocol(layer, word, at))
    if word in _INDEXED_TRANSPORT:
        of_ip = (protocol(layer, "ip", at), *checks, protocol(layer, word, at), tree.FirstFragment(layer))
        return TRANSPORT, of_ip
    if word == "icmp6":
        return BEHIND6, (*checks, protocol(layer, "ip6", at), equals(field(layer, NETWORK, 6, 1), 58))
    raise PolicyError(f"the bytes of '{word}' cannot be asked for", at)


# ---- headers in between: a test, and everything right of it is behind them


def add_step(layer: Layer, step: int, at: int) -> Layer:
    if len(layer) == tree.MAX_STEPS:
        raise PolicyError(f"{REFUSED['steps']}: at most {tree.MAX_STEPS}", at)
    return (*layer, step)


def _fits(value: int, top: int, what: str, at: int) -> None:
    if value > top:
        raise PolicyError(f"{what} {value} is above {top}", at)


def vlan(layer: Layer, at: int) -> Node:
    if has_labels(layer) or medium(layer) == PPPOE:
        raise PolicyError(f"there are no VLAN tags behind '{'mpls' if has_labels(layer) else 'pppoes'}'", at)
    if layer[-MAX_TAGS:] == (VLAN,) * MAX_TAGS:
        raise PolicyError(f"more than {MAX_TAGS} VLAN tags: {REFUSED['tags']}", at)
    return tree.Tagged(layer)


def mpls(layer: Layer, number: int | None, at: int) -> Node:
    if not has_labels(layer):
        node = ether_type(layer, _PPP_MPLS if medium(layer) == PPPOE else 0x8847, at)
    elif layer[-1] == MPLS:
        node = masked(field(layer[:-1], NETWORK, 2, 1), 1, 0)
    else:
        node = masked(field(layer, NETWORK, -2, 1), 1, 0)  # libpcap looks for the label before the tunnel: beyond any packet
    if number is None:
        return node
    _fits(number, 0xFFFFF, "label", at)
    return And((node, masked(field(layer, NETWORK, 0, 4), 0xFFFFF000, number << 12)))


def pppoes(layer: Layer, number: int | None, at: int) -> Node:
    node = ether_type(layer, 0x8864, at)
    if number is None:
        return node
    _fits(number, 0xFFFF, "PPPoE session", at)
    return And((node, masked(field(layer, NETWORK, 0, 4), 0xFFFF, number)))


def geneve(layer: Layer, number: int | None, at: int) -> Node:
    """RFC 8926: UDP port 6081, version 0; the type of what it carries must be there too, for the step to be taken."""
    if number is not None:
        _fits(number, 0xFFFFFF, "Geneve VNI", at)
    ways = []
    for kind, base in _ip_kinds(layer):
        tests = [kind, tree.Port(layer, DESTINATION, _UDP_BIT, ((_GENEVE_PORT, _GENEVE_PORT),)), masked(field(layer, base, 8, 1), 0xC0, 0)]
        if number is not None:
            tests.append(masked(field(layer, base, 12, 4), 0xFFFFFF00, number << 8))
        tests.append(Compare(field(layer, base, 10, 2), ">=", Number(0)))
        ways.append(And(tuple(tests)))
    return Or(tuple(ways))
