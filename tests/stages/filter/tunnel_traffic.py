"""Frames with what our own words are about: tunnels in tunnels, extension headers, tags, all values of the fields; and what breaks them."""

from __future__ import annotations

import random
import struct

from tests import packets as p
from tests.stages.filter.judging import Frame, frame
from tests.stages.filter.traffic import ADDRESSES4, ADDRESSES6, MACS, PORTS

IDS = (0, 7, 100, 1023, 5001, 0xFFFFF, 0xFFFFFF, 0xFFFFFFFF)
PAYLOADS = (b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x00\x10", b"\x00", b"GE", bytes(range(40)))


def _segment(chosen: random.Random) -> tuple[int, bytes]:
    ports, payload = (chosen.choice(PORTS), chosen.choice(PORTS)), chosen.choice(PAYLOADS)
    protocol = chosen.choice((p.TCP, p.TCP, p.TCP, p.UDP, p.SCTP, p.ICMP, p.ICMP6, p.ESP, p.NONE, 136))
    if protocol == p.TCP:
        options = bytes(4 * chosen.choice((0, 0, 3, 10)))
        segment = bytearray(p.tcp(*ports, payload, flags=chosen.randrange(256), options=options))
        if chosen.random() < 0.05:
            segment[12] = chosen.randrange(256)
        return protocol, bytes(segment)
    if protocol in (p.UDP, 136):
        return protocol, p.udp(*ports, payload)
    return protocol, p.sctp(*ports, payload) if protocol == p.SCTP else p.icmp(chosen.randrange(256), payload=payload)


def _tunnelled(depth: int, chosen: random.Random) -> tuple[int, bytes]:
    """(IP protocol, what follows the IP header)"""
    kind = chosen.choice(("gre", "gre", "erspan", "vxlan", "geneve", "gtp", "mpls", "ip", "gre-udp"))
    name = chosen.choice(IDS)
    if kind == "ip":
        version, packet = _ip(depth - 1, chosen)
        return (p.IPIP if version == p.ETH_IP else p.IPV6), packet
    if kind in ("gre", "gre-udp"):
        type_, inner = _carried(depth, chosen)
        made = p.gre(inner, protocol=type_, **_options(chosen, name))
        return (p.GRE, made) if kind == "gre" else (p.UDP, p.udp(9, 4754, made))
    if kind == "erspan":
        return p.GRE, _erspan(depth, chosen, name & 1023)
    if kind == "vxlan":
        return p.UDP, _vxlan(depth, chosen, name)
    if kind == "geneve":
        type_, inner = _carried(depth, chosen)
        options = chosen.choice((0, 0, 1, 5))
        head = struct.pack("!BBHI", chosen.choice((0, 0, 0, 0x40)) | options, 0, type_, (name & 0xFFFFFF) << 8)
        return p.UDP, p.udp(9, 6081, head + bytes(4 * options) + inner)
    if kind == "mpls":
        return p.UDP, p.udp(9, 6635, mpls(depth, chosen))
    return p.UDP, p.udp(9, chosen.choice((2152, 2152, 2153)), _gtp(depth, chosen, name))


def _options(chosen: random.Random, key: int) -> dict[str, int]:
    found: dict[str, int] = {"with_checksum": chosen.random() < 0.3}
    if chosen.random() < 0.6:
        found["key"] = key
    if chosen.random() < 0.4:
        found["sequence"] = 5
    return found


def _carried(depth: int, chosen: random.Random) -> tuple[int, bytes]:
    """(ethertype, packet)"""
    shape = chosen.randrange(8)
    if shape < 3:
        return p.ETH_TEB, _frame(depth - 1, chosen)
    if shape < 6:
        return _ip(depth - 1, chosen)
    return (p.ETH_MPLS, mpls(depth, chosen)) if shape == 6 else (chosen.choice((0x880B, p.ETH_ARP, p.ETH_VLAN)), bytes(30))


def _erspan(depth: int, chosen: random.Random, session: int) -> bytes:
    inner, kind = _frame(depth - 1, chosen), chosen.randrange(4)
    if kind == 0:
        return p.gre(inner, protocol=0x88BE)
    if kind == 1:
        return p.gre(struct.pack("!HHI", 1 << 12, session, 0) + inner, protocol=0x88BE, sequence=1)
    more = kind == 3
    type_ = 0
    if chosen.random() < 0.3:
        type_, inner = 2, _ip(depth - 1, chosen)[1]
    head = struct.pack("!HHIHH", 2 << 12, session, 0, 0, 1 << 15 | type_ << 10 | more)
    return p.gre(head + bytes(8 * more) + inner, protocol=0x22EB, sequence=1)


def _vxlan(depth: int, chosen: random.Random, vni: int) -> bytes:
    port, flags, type_ = chosen.choice((4789, 4789, 4790)), chosen.choice((8, 8, 8, 12, 12, 0)), chosen.choice((3, 3, 1, 2, 4))
    inner = _ip(depth - 1, chosen)[1] if type_ < 3 and flags & 4 else _frame(depth - 1, chosen)
    return p.udp(9, port, struct.pack("!BxxBI", flags, type_ if flags & 4 else 0, (vni & 0xFFFFFF) << 8) + inner)


def _gtp(depth: int, chosen: random.Random, teid: int) -> bytes:
    flags = chosen.choice((0x30, 0x30, 0x32, 0x34, 0x36, 0x50))
    extensions = chosen.choice((b"", b"\x01\x00\x00\x00", b"\x02" + bytes(6) + b"\x85\x01\x00\x00\x00"))
    optional = b""
    if flags & 7:
        extended = flags & 4 and extensions
        optional = b"\0\0\0" + (b"\x85" if extended else b"\0") + (extensions if extended else b"")
    inner = _ip(depth - 1, chosen)[1]
    return struct.pack("!BBHI", flags, chosen.choice((255, 255, 255, 1)), len(optional) + len(inner), teid) + optional + inner


def mpls(depth: int, chosen: random.Random) -> bytes:
    n = chosen.choice((1, 1, 2, 3))
    stack = [chosen.choice((16, 100, 5001, 0xFFFFF)) << 12 | 64 for _ in range(n)]
    stack[-1] |= 0x100 if chosen.random() < 0.95 else 0
    inner = chosen.choice((_ip(depth - 1, chosen)[1], _frame(depth - 1, chosen), bytes(4) + _frame(depth - 1, chosen), b"\x10\x00\x00\x21"))
    return b"".join(struct.pack("!I", label) for label in stack) + inner


def _ip(depth: int, chosen: random.Random) -> tuple[int, bytes]:
    """(ethertype, packet)"""
    protocol, payload = _tunnelled(depth, chosen) if depth > 0 and chosen.random() < 0.8 else _segment(chosen)
    if chosen.random() < 0.1:
        payload, protocol = p.authentication(protocol, payload), p.AH
    offset, more = chosen.choice((*[(0, False)] * 9, (0, True), (8, True), (1480, False)))
    tos, ttl, length = chosen.choice((0, 0xB8, 1, 0x28, 255)), chosen.choice((0, 1, 5, 64, 255)), chosen.choice((None, None, None, None, 0))
    if chosen.random() < 0.5:
        ends = chosen.choice(ADDRESSES4), chosen.choice(ADDRESSES4)
        words = chosen.choice((*[None] * 12, 0, 4, 15))
        options = bytes(4 * chosen.choice((0, 0, 0, 2)))
        shape = {"total_len": length, "options": options, "header_words": words, "offset": offset, "more_fragments": more}
        made = p.ipv4(*ends, protocol, payload, tos=tos, ttl=ttl, **shape)
        return p.ETH_IP, made
    for _ in range(chosen.choice((0, 0, 0, 1, 1, 2, 9))):
        shape = chosen.randrange(4)
        if shape == 0:
            protocol, payload = p.HOPOPTS, p.hop_by_hop(protocol, payload)
        elif shape == 1:
            protocol, payload = p.ROUTING, p.routing(protocol, payload)
        elif shape == 2:
            protocol, payload = p.DSTOPTS, p.destination_options(protocol, payload, bytes(6 + 8 * chosen.choice((0, 1, 20))))
        else:
            protocol, payload = p.FRAGMENT, p.fragment_header(protocol, payload, offset=offset, more=more)
    ends = chosen.choice(ADDRESSES6), chosen.choice(ADDRESSES6)
    label = chosen.choice((0, 5, 0xFFFFF))
    return p.ETH_IP6, p.ipv6(*ends, protocol, payload, traffic_class=tos, hop_limit=ttl, flow_label=label, payload_len=length)


def _frame(depth: int, chosen: random.Random) -> bytes:
    kind, payload = _ip(depth, chosen)
    shape = chosen.randrange(12)
    if shape == 0:
        kind, payload = p.ETH_ARP, p.arp(1, (p.MAC_A, chosen.choice(ADDRESSES4)), (p.MAC_B, chosen.choice(ADDRESSES4)))
    elif shape == 1 and depth > 0:
        kind, payload = chosen.choice((p.ETH_MPLS, 0x8848)), mpls(depth, chosen)
    for _ in range(chosen.choice((0, 0, 0, 0, 1, 1, 2, 3, 5, 9))):
        tag = chosen.choice((1, 5, 10, 20, 0x200A, 0xA014, 4095))
        kind, payload = chosen.choice((p.ETH_VLAN, p.ETH_VLAN, p.ETH_QINQ, 0x9100)), p.vlan(payload, tag, type=kind)
    made = p.ethernet(payload, type=kind, source=chosen.choice(MACS), destination=chosen.choice(MACS))
    return p.padded(made) if chosen.random() < 0.5 else made


def some(n: int, seed: int) -> list[Frame]:
    """Whole ones, cut ones, runts and damaged ones."""
    chosen = random.Random(seed)
    found = []
    for _ in range(n):
        data = _frame(chosen.choice((0, 1, 1, 2, 3, 4)), chosen)
        fate = chosen.randrange(8)
        if fate == 0:
            found.append(frame(data[: chosen.randrange(len(data))], len(data)))
        elif fate == 1:
            damaged = bytearray(data)
            for _ in range(chosen.randrange(1, 4)):
                damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
            found.append(frame(bytes(damaged)))
        else:
            found.append(frame(data))
    return found


def every_cut(n: int, seed: int) -> list[Frame]:
    chosen = random.Random(seed)
    frames = []
    for _ in range(n):
        data = _frame(3, chosen)
        frames += [frame(data[:size], len(data)) for size in range(min(len(data), 200) + 1)]
    return frames
