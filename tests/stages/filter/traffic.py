"""Frames of all kinds, made by hand, and what breaks them."""

from __future__ import annotations

import random

from tests import packets as p
from tests.stages.filter import rare
from tests.stages.filter.judging import Frame, frame

ADDRESSES4 = ("10.0.0.1", "10.0.0.2", "10.1.2.3", "192.168.1.1", "224.0.0.251", "255.255.255.255", "0.0.0.0")
ADDRESSES6 = ("fe80::1", "fe80::2", "2001:db8::1", "2001:db8:8000::1", "ff02::1", "::1", "::")
PORTS = (0, 22, 53, 80, 443, 1023, 1024, 8080, 65535)
MACS = (p.MAC_A, p.MAC_B, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb", "00:00:00:00:00:00")


def _transport(protocol: int, chosen: random.Random) -> bytes:
    ports = chosen.choice(PORTS), chosen.choice(PORTS)
    if protocol == p.TCP:
        return p.tcp(*ports)
    if protocol == p.UDP:
        return p.udp(*ports)
    if protocol == p.SCTP:
        return p.sctp(*ports)
    return p.icmp()


def _ip4(chosen: random.Random) -> bytes:
    protocol = chosen.choice((p.TCP, p.UDP, p.SCTP, p.ICMP, 2, 44, p.GRE, p.ESP, p.AH, 112))
    ends = chosen.choice(ADDRESSES4), chosen.choice(ADDRESSES4)
    options = bytes(4 * chosen.choice((0, 0, 0, 1, 10)))
    words = chosen.choice((None, None, None, None, 0, 1, 15))
    offset, more = chosen.choice(((0, False), (0, False), (0, False), (0, True), (8, True), (1480, False)))
    payload = _transport(protocol, chosen)
    return p.ipv4(*ends, protocol, payload, options=options, header_words=words, offset=offset, more_fragments=more)


def _ip6(chosen: random.Random) -> bytes:
    protocol = chosen.choice((p.TCP, p.UDP, p.SCTP, p.ICMP6, p.NONE, p.ESP, p.GRE))
    payload = _transport(protocol, chosen)
    shape = chosen.randrange(6)
    if shape == 0:
        protocol, payload = p.HOPOPTS, p.hop_by_hop(protocol, payload)
    elif shape == 1:
        payload = p.fragment_header(protocol, payload, offset=chosen.choice((0, 8)), more=chosen.choice((True, False)))
        protocol = p.FRAGMENT
    elif shape == 2:
        payload = p.fragment_header(p.FRAGMENT, p.fragment_header(protocol, payload))
        protocol = p.FRAGMENT
    return p.ipv6(chosen.choice(ADDRESSES6), chosen.choice(ADDRESSES6), protocol, payload)


def _plain(chosen: random.Random) -> tuple[int, bytes]:
    """Ethertype and what follows it."""
    return chosen.choice(
        (
            (p.ETH_IP, _ip4(chosen)),
            (p.ETH_IP, _ip4(chosen)),
            (p.ETH_IP6, _ip6(chosen)),
            (p.ETH_IP6, _ip6(chosen)),
            (chosen.choice((p.ETH_ARP, 0x8035)), p.arp(1, (p.MAC_A, chosen.choice(ADDRESSES4)), (p.MAC_B, chosen.choice(ADDRESSES4)))),
            (chosen.choice((3, 38, 1500)), chosen.choice((b"\x42\x42\x03", b"\xf0\xf0\x03", b"\xfe\xfe\x03", b"\x06\x06"))),
            (chosen.choice((1501, 0x88CC, 0x8847, 0x6003)), b"anything"),
        )
    )


def whole(chosen: random.Random) -> bytes:
    """One frame with nothing missing."""
    if chosen.random() < 0.3:
        kind, payload = rare.payload(chosen, lambda: _plain(chosen), lambda: whole(chosen))
    else:
        kind, payload = _plain(chosen)
    for _ in range(chosen.choice((0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6))):
        tag = p.vlan(payload, chosen.choice((1, 2, 5, 10, 0x200A, 4095)), type=kind)
        kind, payload = chosen.choice((p.ETH_VLAN, p.ETH_VLAN, p.ETH_QINQ, 0x9100)), tag
    made = p.ethernet(payload, type=kind, source=chosen.choice(MACS), destination=chosen.choice(MACS))
    return p.padded(made) if chosen.random() < 0.5 else made


def some(n: int, seed: int, *, inputs: int = 1) -> list[Frame]:
    """Whole ones, cut ones, runts and damaged ones."""
    chosen = random.Random(seed)
    found = []
    for _ in range(n):
        data, slot = whole(chosen), chosen.randrange(inputs)
        fate = chosen.randrange(8)
        if fate == 0:
            found.append(frame(data[: chosen.randrange(len(data))], len(data), slot))
        elif fate == 1:
            found.append(frame(data[: chosen.randrange(len(data))], input_slot=slot))
        elif fate == 2:
            damaged = bytearray(data)
            for _ in range(chosen.randrange(1, 4)):
                damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
            found.append(frame(bytes(damaged), input_slot=slot))
        else:
            found.append(frame(data, input_slot=slot))
    return found


def every_cut(seed: int, n: int) -> list[Frame]:
    """n frames, each cut at every byte of its headers."""
    chosen = random.Random(seed)
    frames = []
    for _ in range(n):
        data = whole(chosen)
        frames += [frame(data[:size], len(data)) for size in range(min(len(data), 110) + 1)]
    return frames
