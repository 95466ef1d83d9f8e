"""Packets in tunnels, built by hand from the specifications: what comes to an endpoint, and what is inside.

| function | source |
|---|---|
| erspan1, erspan2, erspan3 | draft-foschiano-erspan-03 sections 4.1, 4.2, 4.3 |
| vxlan | RFC 7348 section 5 |
| geneve | RFC 8926 section 3.4 |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests import packets as p

ERSPAN, ERSPAN3, ETHERNET = 0x88BE, 0x22EB, 0x6558
PORTS = {"gre-udp": 4754, "vxlan": 4789, "geneve": 6081}


def erspan1(frame: bytes) -> bytes:
    return p.gre(frame, protocol=ERSPAN)


def erspan2(frame: bytes, session: int, sequence: int, *, key: int | None = None, version: int = 1) -> bytes:
    header = struct.pack("!HHI", version << 12 | 5, 3 << 11 | session, 9)
    return p.gre(header + frame, protocol=ERSPAN, sequence=sequence, key=key)


def erspan3(
    packet: bytes,
    session: int,
    sequence: int,
    stamp: int,
    *,
    granularity: int = 0,
    frame_type: int = 0,
    more: bytes = b"",
    version: int = 2,
) -> bytes:
    header = struct.pack("!HHIHH", version << 12 | 5, session, stamp, 7, frame_type << 10 | granularity << 1 | bool(more))
    return p.gre(header + more + packet, protocol=ERSPAN3, sequence=sequence)


def vxlan(frame: bytes, vni: int, *, flags: int = 8) -> bytes:
    return struct.pack("!BxxxI", flags, vni << 8) + frame


def geneve(packet: bytes, vni: int, *, protocol: int = ETHERNET, options: bytes = b"", first: int = 0, flags: int = 0) -> bytes:
    return struct.pack("!BBHI", first | len(options) // 4, flags, protocol, vni << 8) + options + packet


@dataclass(frozen=True)
class Case:
    """`data` is what follows the outer IP header, or the UDP header; `key` or session as `Sender.session` has it."""

    name: str
    listen: str
    data: bytes
    inside: bytes
    tunnel: str
    session: int | None = None
    sequence: int | None = None


FRAME = p.tcp_frame("10.1.0.5", 4000, "10.2.0.9", 443, b"inside the tunnel", vlans=(30,))
_IP = p.ipv4("10.1.0.5", "10.2.0.9", p.UDP, p.udp(5, 9000, b"question"))
_IP6 = p.ipv6("2001:db8::5", "2001:db8::9", p.UDP, p.udp(5, 9000, b"question", ends=("2001:db8::5", "2001:db8::9")))
_ETHERNET = bytes(12) + b"\x08\x00" + _IP
_ETHERNET6 = bytes(12) + b"\x86\xdd" + _IP6
_OPTIONS = struct.pack("!HBB", 0x0102, 0x01, 1) + b"\0\0\0\7" + struct.pack("!HBB", 0x0102, 0x02, 0)

GRE_CASES = (
    Case("plain", "gre", p.gre(FRAME), FRAME, "gre"),
    Case("key", "gre", p.gre(FRAME, key=0xFFFF_FFFF), FRAME, "gre", 0xFFFF_FFFF),
    Case("key 0", "gre", p.gre(FRAME, key=0), FRAME, "gre", 0),
    Case("sequence", "gre", p.gre(FRAME, sequence=5), FRAME, "gre", None, 5),
    Case("checksum", "gre", p.gre(FRAME, with_checksum=True), FRAME, "gre"),
    Case("all of GRE", "gre", p.gre(FRAME + b"z", key=7, sequence=0xFFFF_FFFF, with_checksum=True), FRAME + b"z", "gre", 7, 0xFFFF_FFFF),
    Case("IPv4 in GRE", "gre", p.gre(_IP, protocol=0x0800), _ETHERNET, "gre"),
    Case("IPv6 in GRE", "gre", p.gre(_IP6, protocol=0x86DD, key=1), _ETHERNET6, "gre", 1),
    Case("ERSPAN I", "gre", erspan1(FRAME), FRAME, "erspan1"),
    Case("ERSPAN II", "gre", erspan2(FRAME, 1023, 8), FRAME, "erspan2", 1023, 8),
    Case("ERSPAN II, key", "gre", erspan2(FRAME, 3, 8, key=9), FRAME, "erspan2", 3, 8),
    Case("ERSPAN III", "gre", erspan3(FRAME, 4, 9, 1), FRAME, "erspan3", 4, 9),
    Case("ERSPAN III, subheader", "gre", erspan3(FRAME, 4, 9, 1, more=b"\x04" + bytes(7)), FRAME, "erspan3", 4, 9),
    Case("ERSPAN III, IP", "gre", erspan3(_IP6, 4, 9, 1, frame_type=2), _ETHERNET6, "erspan3", 4, 9),
)
CASES = (
    *GRE_CASES,
    *(Case(f"{c.name} in UDP", "gre-udp", c.data, c.inside, c.tunnel, c.session, c.sequence) for c in GRE_CASES[:7]),
    Case("VXLAN", "vxlan", vxlan(FRAME, 0xABCDEF), FRAME, "vxlan", 0xABCDEF),
    Case("Geneve", "geneve", geneve(FRAME, 5), FRAME, "geneve", 5),
    Case("Geneve with options", "geneve", geneve(FRAME, 5, options=_OPTIONS), FRAME, "geneve", 5),
    Case("IPv4 in Geneve", "geneve", geneve(_IP, 5, protocol=0x0800, options=_OPTIONS), _ETHERNET, "geneve", 5),
)

MALFORMED, PROTOCOL, CHECKSUM = "malformed", "protocol", "checksum"
WRONG = (
    ("gre", b"", MALFORMED),
    ("gre", p.gre(FRAME)[:3], MALFORMED),
    ("gre", p.gre(FRAME, key=7, sequence=1)[:11], MALFORMED),
    ("gre", p.gre(FRAME[:13]), MALFORMED),
    ("gre", b"\x40\x00" + p.gre(FRAME)[2:], MALFORMED),  # routing
    ("gre", b"\x08\x00" + p.gre(FRAME)[2:], MALFORMED),  # strict source route
    ("gre", b"\x04\x00" + p.gre(FRAME)[2:], MALFORMED),  # recursion
    ("gre", b"\x20\x01" + p.gre(FRAME, key=7)[2:], PROTOCOL),  # version 1
    ("gre", p.gre(FRAME, protocol=0x880B), PROTOCOL),
    ("gre", p.gre(FRAME, with_checksum=True)[:-1] + b"?", CHECKSUM),
    ("gre", p.gre(_IP6, protocol=0x0800), MALFORMED),
    ("gre", p.gre(_IP[:19], protocol=0x0800), MALFORMED),
    ("gre", erspan2(FRAME, 1, 1, version=3), PROTOCOL),
    ("gre", erspan2(b"", 1, 1)[:-1], MALFORMED),
    ("gre", erspan3(FRAME, 1, 1, 1, version=1), PROTOCOL),
    ("gre", erspan3(FRAME, 1, 1, 1, frame_type=3), PROTOCOL),  # IEEE 802.11
    ("gre", erspan3(b"", 1, 1, 1)[:-1], MALFORMED),
    ("gre", erspan3(b"", 1, 1, 1, frame_type=2), MALFORMED),
    ("vxlan", vxlan(FRAME, 1)[:7], MALFORMED),
    ("vxlan", vxlan(FRAME, 1, flags=0), MALFORMED),
    ("vxlan", vxlan(FRAME, 1, flags=0x0C), PROTOCOL),  # GPE
    ("vxlan", vxlan(FRAME[:13], 1), MALFORMED),
    ("geneve", geneve(FRAME, 1)[:7], MALFORMED),
    ("geneve", geneve(FRAME, 1, first=0x40), PROTOCOL),  # version 1
    ("geneve", geneve(FRAME, 1, flags=0x80), PROTOCOL),  # control
    ("geneve", geneve(FRAME, 1, flags=0x40), PROTOCOL),  # critical options
    ("geneve", geneve(FRAME, 1, first=63)[:100], MALFORMED),
    ("geneve", geneve(FRAME, 1, protocol=0x0806), PROTOCOL),
)
