"""What few networks carry and libpcap has words for: labels, PPPoE, Geneve, IEEE 802.2, IS-IS, AppleTalk, IPX, DECnet, long chains."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from tests import packets as p

ETH_PPPOE_DISCOVERY, ETH_PPPOE, ETH_DECNET, ETH_ATALK, ETH_AARP, ETH_IPX = 0x8863, 0x8864, 0x6003, 0x809B, 0x80F3, 0x8137
GENEVE_PORT = 6081
VNIS = (5, 10)
LABELS = (3, 5, 1048575)
SESSIONS = (1, 5)
_ENDS4, _ENDS6 = ("10.0.0.1", "10.0.0.2"), ("fe80::1", "fe80::2")
_PPP_OF = {p.ETH_IP: 0x21, p.ETH_IP6: 0x57, p.ETH_MPLS: 0x281}

Payload = tuple[int, bytes]
"""Ethertype and what follows it."""


def labelled(chosen: random.Random, payload: bytes) -> bytes:
    depth = chosen.choice((1, 1, 2, 3))
    words = [chosen.choice(LABELS) << 12 | (i == depth - 1) << 8 | 64 for i in range(depth)]
    if chosen.random() < 0.1:
        words[-1] ^= 1 << 8
    return struct.pack(f"!{depth}I", *words) + payload


def pppoe(chosen: random.Random, kind: int, payload: bytes) -> bytes:
    number = chosen.choice((_PPP_OF.get(kind, kind), _PPP_OF.get(kind, kind), 0x800, 0x806, 0x23, 0x27, 0xC021))
    return struct.pack("!BBHHH", 0x11, 0, chosen.choice(SESSIONS), len(payload) + 2, number) + payload


def geneve(chosen: random.Random, kind: int, payload: bytes) -> bytes:
    """The UDP datagram."""
    words = chosen.choice((0, 0, 1, 3))
    version = chosen.choice((0, 0, 0, 0, 0, 0, 1))
    header = struct.pack("!BBHI", version << 6 | words, 0, kind, chosen.choice(VNIS) << 8)
    return p.udp(40000, chosen.choice((GENEVE_PORT,) * 7 + (53,)), header + bytes(4 * words) + payload)


def ip(chosen: random.Random, protocol: int, payload: bytes) -> Payload:
    if chosen.random() < 0.5:
        options = bytes(4 * chosen.choice((0, 0, 1)))
        return p.ETH_IP, p.ipv4(*_ENDS4, protocol, payload, options=options, offset=chosen.choice((0, 0, 0, 8)))
    return p.ETH_IP6, p.ipv6(*_ENDS6, protocol, payload)


def llc(chosen: random.Random) -> bytes:
    control = bytes([chosen.choice((0x00, 0x01, 0x05, 0x09, 0x03, 0x63, 0x43, 0x0F, 0x6F, 0xE3, 0xAF, 0x87, 0x73))])
    snaps = ((0, ETH_AARP), (0x080007, ETH_ATALK), (0, ETH_IPX), (0, p.ETH_IP))
    snap = (struct.pack("!IH", oui, kind)[1:] for oui, kind in snaps)
    osi = bytes([chosen.choice((0x81, 0x82, 0x83, 0x83, 0x83, 5)), 27, 1, 0, chosen.choice((15, 16, 17, 18, 20, 24, 25, 26, 27, 1)), 1])
    return (
        chosen.choice(
            (
                b"\xaa\xaa\x03" + chosen.choice(tuple(snap)),
                b"\xfe\xfe\x03" + osi,
                b"\xfe\xfe\x03" + osi,
                chosen.choice((b"\x42\x42", b"\xf0\xf0", b"\xe0\xe0", b"\xff\xff", b"\x06\x06", b"\xaa\xaa")) + control,
            )
        )
        + b"behind"
    )


def decnet(chosen: random.Random) -> bytes:
    pad = chosen.choice((b"", b"\x81"))
    ends = chosen.choice(((5, 1 << 10 | 2), (1 << 10 | 2, 5)))
    if chosen.random() < 0.5:
        body = struct.pack("<BHHB", 0x02, *ends, 0)
    else:
        body = struct.pack("<BHIHHIHH", 0x06, 0, 0x000400AA, ends[0], 0, 0x000400AA, ends[1], 0)
    return struct.pack("<H", len(pad + body)) + pad + body


def chain(chosen: random.Random) -> Payload:
    """Extension headers, AH among them, at most one: libpcap's walk behind AH is odd and could go round."""
    protocol = chosen.choice((p.TCP, p.UDP, p.ICMP6, p.NONE, p.ESP, 4))
    payload = p.tcp(1, 2)
    if chosen.random() < 0.5:
        protocol, payload = p.AH, p.authentication(protocol, payload)
        if chosen.random() < 0.5:
            return p.ETH_IP, p.ipv4(*_ENDS4, protocol, payload)
    for header in chosen.choices((p.hop_by_hop, p.destination_options, p.routing, p.fragment_header), k=chosen.randrange(4)):
        number = {p.hop_by_hop: chosen.choice((p.HOPOPTS, p.DSTOPTS)), p.routing: p.ROUTING, p.fragment_header: p.FRAGMENT}[header]
        payload = header(protocol, payload)  # type: ignore[operator]
        protocol = number
    return p.ETH_IP6, p.ipv6(*_ENDS6, protocol, payload)


def small(chosen: random.Random) -> Payload:
    """Protocols that are told by a number only."""
    protocol = chosen.choice((2, 9, 103, 112, p.ICMP6, p.ICMP))
    return ip(chosen, protocol, bytes([chosen.choice((0x16, 0x21, 135, 8, 5)), 0, 0, 1]) + bytes(8))


def payload(chosen: random.Random, plain: Callable[[], Payload], frame: Callable[[], bytes]) -> Payload:
    """`plain` makes what usually lies there, `frame` a whole frame."""
    match chosen.randrange(12):
        case 0 | 1:
            return p.ETH_MPLS, labelled(chosen, plain()[1])
        case 2 | 3:
            inner = payload(chosen, plain, frame) if chosen.random() < 0.2 else plain()
            return ETH_PPPOE, pppoe(chosen, *inner)
        case 4:
            return ETH_PPPOE_DISCOVERY, bytes(12)
        case 5:
            return ip(chosen, p.UDP, geneve(chosen, p.ETH_TEB, frame()))
        case 6:
            inner = (p.ETH_MPLS, labelled(chosen, plain()[1])) if chosen.random() < 0.2 else plain()
            return ip(chosen, p.UDP, geneve(chosen, *inner))
        case 7:
            return chosen.choice((20, 1500)), llc(chosen)
        case 8:
            return ETH_DECNET, decnet(chosen)
        case 9:
            return chain(chosen)
        case 10:
            return small(chosen)
    return chosen.choice((ETH_ATALK, ETH_AARP, ETH_IPX)), b"anything at all"
