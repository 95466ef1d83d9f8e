"""Headers in headers, to any depth: each kind `depth` times, one in the other, with TCP in the innermost."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from tests import packets as p
from tests.stages.filter import tunnel_traffic

_4, _6 = ("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")
DEPTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 64)
MOST_BYTES = 4096

Payload = tuple[int, bytes]
"""An ethertype and what follows it."""


def _ip(protocol: int, payload: bytes, **more: int) -> Payload:
    return p.ETH_IP, p.ipv4(*_4, protocol, payload, **more)  # type: ignore[arg-type]


def _ip6(protocol: int, payload: bytes) -> Payload:
    return p.ETH_IP6, p.ipv6(*_6, protocol, payload)


def _frame(inner: Payload) -> bytes:
    return p.ethernet(inner[1], type=inner[0])


def _udp(port: int, payload: bytes) -> Payload:
    return _ip(p.UDP, p.udp(50_000, port, payload))


def _number(inner: Payload) -> int:
    """What an IP header calls it."""
    return p.IPIP if inner[0] == p.ETH_IP else p.IPV6


def _extended(inner: Payload) -> Payload:
    """IPv6 extension headers in front of what follows the header of the packet within, all kinds in turn."""
    if inner[0] != p.ETH_IP6:
        return _ip6(p.TCP, p.tcp(80, 22))
    number, payload = inner[1][6], inner[1][40:]
    kinds = (p.HOPOPTS, p.DSTOPTS, p.ROUTING, p.AH, p.FRAGMENT)
    kind = kinds[len(payload) // 8 % 5]
    if kind == p.AH:
        payload = p.authentication(number, payload)
    elif kind == p.FRAGMENT:
        payload = p.fragment_header(number, payload)
    elif kind == p.ROUTING:
        payload = p.routing(number, payload)
    else:
        payload = p.hop_by_hop(number, payload)
    return _ip6(kind, payload)


def _tagged(inner: Payload, *types: int) -> Payload:
    kind = types[len(inner[1]) // 4 % len(types)]
    return kind, struct.pack("!HH", 5, inner[0]) + inner[1]


def _labelled(inner: Payload) -> Payload:
    last = inner[0] != p.ETH_MPLS
    return p.ETH_MPLS, struct.pack("!I", 100 << 12 | last << 8 | 64) + inner[1]


def _gtp(inner: Payload) -> Payload:
    return _udp(2152, struct.pack("!BBHI", 0x34, 255, len(inner[1]) + 8, 7) + b"\0\0\0\x85\x01\0\0\0" + inner[1])


AROUND: dict[str, Callable[[Payload], Payload]] = {
    "tags": lambda inner: _tagged(inner, p.ETH_VLAN),
    "tags of all types": lambda inner: _tagged(inner, p.ETH_VLAN, p.ETH_QINQ, 0x9100),
    "labels": _labelled,
    "vn-tags": lambda inner: (0x8926, struct.pack("!IH", 1 << 16, inner[0]) + inner[1]),
    "pppoe": lambda inner: (
        0x8864, struct.pack("!BBHHH", 0x11, 0, 5, len(inner[1]) + 2, 0x57 if inner[0] == p.ETH_IP6 else 0x21) + inner[1]
    ),
    "ip in ip": lambda inner: _ip(_number(inner), inner[1]),
    "ip in ip, in turn": lambda inner: (_ip6 if inner[0] == p.ETH_IP else _ip)(_number(inner), inner[1]),
    "ip with options": lambda inner: (p.ETH_IP, p.ipv4(*_4, _number(inner), inner[1], options=b"\x01" * 40)),
    "extension headers": _extended,
    "fragments of fragments": lambda inner: _ip(_number(inner), inner[1], more_fragments=True, identification=len(inner[1]) & 0xFFFF),
    "gre": lambda inner: _ip(p.GRE, p.gre(_frame(inner), key=7, sequence=1, with_checksum=len(inner[1]) < 200)),
    "gre over ip": lambda inner: _ip(p.GRE, p.gre(inner[1], protocol=inner[0])),
    "gre over ip 6": lambda inner: _ip6(p.GRE, p.gre(_frame(inner))),
    "erspan ii": lambda inner: _ip(p.GRE, p.erspan2(_frame(inner), sequence=1, session=7)),
    "erspan iii": lambda inner: _ip(
        p.GRE, p.erspan3(_frame(inner), sequence=1, session=7, timestamp=1, granularity=3, subheader=bytes(8))
    ),
    "vxlan": lambda inner: _udp(4789, p.vxlan(_frame(inner), vni=7)),
    "geneve": lambda inner: _udp(6081, p.geneve(_frame(inner), vni=7, options=bytes(8))),
    "gtp": _gtp,
    "gre in udp": lambda inner: _udp(4754, p.gre(_frame(inner))),
    "mpls in udp": lambda inner: _udp(6635, struct.pack("!I", 100 << 12 | 0x140) + inner[1]),
}  # fmt: skip


def nested(kind: str, depth: int) -> bytes:
    """Cut to MOST_BYTES; 0 deep it is a plain TCP segment."""
    inner = _ip(p.TCP, p.tcp(4000, 443, bytes(8)))
    for _ in range(depth):
        inner = AROUND[kind](inner)
    return _frame(inner)[:MOST_BYTES]


def mixed(seed: int) -> bytes:
    """Kinds in any order, some of them more often."""
    chosen = random.Random(seed)
    inner = _ip(p.TCP, p.tcp(4000, 443, bytes(8))) if seed % 2 else _ip6(p.UDP, p.udp(53, 4000, bytes(8)))
    for _ in range(chosen.randrange(1, 12)):
        inner = AROUND[chosen.choice(list(AROUND))](inner)
    return _frame(inner)[:MOST_BYTES]


def every_kind(n_mixed: int) -> list[bytes]:
    found = [nested(kind, depth) for kind in AROUND for depth in DEPTHS]
    return found + [mixed(seed) for seed in range(n_mixed)] + [f.data for f in tunnel_traffic.some(n_mixed, seed=5)]
