"""Is a packet of our own making? What the broker sends must not come back into it, however it gets in the way of a capture.

| answer | the packet, at any depth of tunnels, is |
|---|---|
| OWN | sent through one of our tunnels: protocol (and UDP port), remote address, and source if that is configured, are its; of later \
fragments addresses and protocol |
| | an ICMP or ICMPv6 error that quotes such a packet |
| | ARP, or a neighbour solicitation or advertisement, for the address of a tool |
| ALIKE | in a tunnel like ours (kind, UDP port, key or id), between other addresses: ours that somebody rewrites, or somebody else's |
| FOREIGN | anything else, and what cannot be told |

The depth is what keeps two brokers that mirror each other from passing a packet to and fro: each finds its own tunnel inside the other's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from broker.config.policy.tree import ERSPAN, GENEVE_TUNNEL, GRE, VXLAN
from stages.jit import kernel
from stages.memory import load8, load32, load64, load_be16, shift_right
from stages.wire.headers import (
    ARP_BYTES,
    ARP_DESTINATION,
    ARP_SOURCE,
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    ETH_QINQ,
    ETH_QINQ_OLD,
    ETH_VLAN,
    ICMP,
    ICMP6,
    IP6_BYTES,
    IP6_DESTINATION,
    IP6_SOURCE,
    IP_BYTES,
    IP_DESTINATION,
    IP_SOURCE,
    MAX_TAGS,
    TAG_BYTES,
    TCP,
    UDP,
)
from stages.wire.place import ethernet_place, payload_at, type_at
from stages.wire.transport import HIDDEN_BIT, offset_in, protocol_in, transport_of
from stages.wire.tunnel import KIND_BITS, carried_by, id_of, tunnel_of

FOREIGN, OWN, ALIKE = range(3)
MAX_DEPTH = 5

HEAD = np.dtype([("n_tunnels", "<i8"), ("last_bytes", "<i8")])
"""`last_bytes`: bit b: the last byte of some remote address is b modulo 64. Most packets are told by it."""
TUNNEL = np.dtype(
    [
        ("remote", "<i8", (2,)),  # 16 bytes as they stand in a packet; IPv4 is mapped
        ("source", "<i8", (2,)),
        ("has_source", "<i8"),
        ("protocol", "<i8"),
        ("port", "<i8"),  # of UDP
        ("kind", "<i8"),  # as `tunnel_of` has it
        ("id", "<i8"),  # as `id_of` has it
    ]
)


def _offset(dtype: np.dtype[Any], name: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[name][1])


_N, _LAST_BYTES, _HEAD_BYTES, _TUNNEL_BYTES = _offset(HEAD, "n_tunnels"), _offset(HEAD, "last_bytes"), HEAD.itemsize, TUNNEL.itemsize
_REMOTE, _SOURCE, _HAS_SOURCE = _offset(TUNNEL, "remote"), _offset(TUNNEL, "source"), _offset(TUNNEL, "has_source")
_PROTOCOL, _PORT, _KIND, _ID = (_offset(TUNNEL, name) for name in ("protocol", "port", "kind", "id"))

_MAPPED = 0xFFFF_0000  # bytes 00 00 ff ff before an IPv4 address
_UDP_PORT, _UDP_BYTES, _ICMP_BYTES, _NO_PORT = 2, 8, 8, -1
_ICMP_ERRORS = (3, 4, 5, 11, 12)  # RFC 792
_ICMP6_LAST_ERROR, _SOLICITATION, _ADVERTISEMENT = 127, 135, 136  # RFC 4443, RFC 4861
_GRE = 47


@kernel
def _low_of_ip(at: int) -> int:
    """The second half of a mapped IPv4 address."""
    return load32(at) << 32 | _MAPPED


@kernel
def _is_remote(own: int, high: int, low: int) -> bool:
    if load64(own + _LAST_BYTES) >> (shift_right(low, 56) & 63) & 1 == 0:
        return False
    for i in range(load64(own + _N)):
        row = own + _HEAD_BYTES + i * _TUNNEL_BYTES
        if load64(row + _REMOTE) == high and load64(row + _REMOTE + 8) == low:
            return True
    return False


@kernel
def _is_sent_by_us(own: int, frame: int, caplen: int, l3: int, is_ip6: int, found: int) -> bool:
    """`found`: from `transport_of`, not a code. The addresses are there."""
    if is_ip6:
        source_high, source = load64(frame + l3 + IP6_SOURCE), load64(frame + l3 + IP6_SOURCE + 8)
        remote_high, remote = load64(frame + l3 + IP6_DESTINATION), load64(frame + l3 + IP6_DESTINATION + 8)
    else:
        source_high, source = 0, _low_of_ip(frame + l3 + IP_SOURCE)
        remote_high, remote = 0, _low_of_ip(frame + l3 + IP_DESTINATION)
    if load64(own + _LAST_BYTES) >> (shift_right(remote, 56) & 63) & 1 == 0:
        return False
    protocol, port_at, port = protocol_in(found), offset_in(found) + _UDP_PORT, _NO_PORT
    if found & HIDDEN_BIT == 0 and protocol == UDP and caplen >= port_at + 2:
        port = load_be16(frame + port_at)
    for i in range(load64(own + _N)):
        row = own + _HEAD_BYTES + i * _TUNNEL_BYTES
        if load64(row + _PROTOCOL) != protocol or load64(row + _REMOTE) != remote_high or load64(row + _REMOTE + 8) != remote:
            continue
        if load64(row + _HAS_SOURCE) and (load64(row + _SOURCE) != source_high or load64(row + _SOURCE + 8) != source):
            continue
        if protocol != UDP or port in (_NO_PORT, load64(row + _PORT)):
            return True
    return False


@kernel
def _quotes_us(own: int, frame: int, caplen: int, l4: int, is_ip6: int) -> bool:
    """An ICMP message: an error about our packet, or a question or answer about a tool's address."""
    if caplen < l4 + _ICMP_BYTES:
        return False
    type_, l3 = load8(frame + l4), l4 + _ICMP_BYTES
    if is_ip6 and type_ in (_SOLICITATION, _ADVERTISEMENT):
        return caplen >= l3 + 16 and _is_remote(own, load64(frame + l3), load64(frame + l3 + 8))
    if (is_ip6 and type_ > _ICMP6_LAST_ERROR) or (is_ip6 == 0 and type_ not in _ICMP_ERRORS):
        return False
    if caplen < l3 + (IP6_BYTES if is_ip6 else IP_BYTES) or load8(frame + l3) >> 4 != (6 if is_ip6 else 4):
        return False
    found = transport_of(frame, caplen, l3, is_ip6)
    return found >= 0 and _is_sent_by_us(own, frame, caplen, l3, is_ip6, found)


@kernel
def _is_arp_for_tool(own: int, frame: int, caplen: int, at: int) -> bool:
    return caplen >= at + ARP_BYTES and (
        _is_remote(own, 0, _low_of_ip(frame + at + ARP_DESTINATION)) or _is_remote(own, 0, _low_of_ip(frame + at + ARP_SOURCE))
    )


@kernel
def _in_our_port(own: int, frame: int, caplen: int, l4: int) -> int:
    """A UDP port that is not the well-known one of a tunnel, but one of our tunnels': what `tunnel_of` gives; or -1."""
    if caplen < l4 + _UDP_BYTES + 8:
        return -1
    port = load_be16(frame + l4 + _UDP_PORT)
    for i in range(load64(own + _N)):
        row = own + _HEAD_BYTES + i * _TUNNEL_BYTES
        if load64(row + _PROTOCOL) == UDP and load64(row + _PORT) == port:
            return load64(row + _KIND) | (l4 + _UDP_BYTES) << KIND_BITS
    return -1


@kernel
def _is_alike(own: int, protocol: int, kind: int, number: int) -> bool:
    for i in range(load64(own + _N)):
        row = own + _HEAD_BYTES + i * _TUNNEL_BYTES
        if load64(row + _PROTOCOL) == protocol and load64(row + _KIND) == kind and load64(row + _ID) == number:
            return True
    return False


@kernel
def whose(own: int, frame: int, caplen: int) -> int:
    """FOREIGN, OWN or ALIKE. `own`: HEAD[1] and behind it TUNNEL[n_tunnels]; `frame`: the address of an Ethernet frame."""
    place, answer = ethernet_place(0), FOREIGN
    for _ in range(MAX_DEPTH):
        l3, at = payload_at(place), type_at(place)
        if caplen < max(at + 2, l3 + 1):
            return answer
        if at == l3:  # nothing but its first four bits says what it is
            ethertype = ETH_IP6 if load8(frame + l3) >> 4 == 6 else ETH_IP
        else:
            ethertype = load_be16(frame + at)
        for _ in range(MAX_TAGS):
            if ethertype in (ETH_VLAN, ETH_QINQ, ETH_QINQ_OLD):
                if caplen < l3 + TAG_BYTES:
                    return answer
                ethertype = load_be16(frame + l3 + 2)
                l3 += TAG_BYTES
        protocol = -1
        inside = -1
        if ethertype == ETH_ARP:
            return OWN if _is_arp_for_tool(own, frame, caplen, l3) else answer
        if ethertype in (ETH_IP, ETH_IP6):
            is_ip6 = int(ethertype == ETH_IP6)
            if caplen < l3 + (IP6_BYTES if is_ip6 else IP_BYTES):
                return answer
            found = transport_of(frame, caplen, l3, is_ip6)
            if found < 0:
                return answer
            protocol, l4 = protocol_in(found), offset_in(found)
            if protocol == TCP:
                return answer
            if (protocol in (_GRE, UDP)) and _is_sent_by_us(own, frame, caplen, l3, is_ip6, found):
                return OWN
            if found & HIDDEN_BIT:
                return answer
            if protocol == (ICMP6 if is_ip6 else ICMP):
                return OWN if _quotes_us(own, frame, caplen, l4, is_ip6) else answer
            if protocol == UDP:
                inside = _in_our_port(own, frame, caplen, l4)
        if inside < 0:
            inside = tunnel_of(ethertype, l3, frame, caplen)
        if inside < 0:
            return answer
        kind, header = inside & (1 << KIND_BITS) - 1, inside >> KIND_BITS
        if kind in (GRE, ERSPAN, VXLAN, GENEVE_TUNNEL) and _is_alike(own, protocol, kind, id_of(kind, header, frame, caplen)):
            answer = ALIKE
        place = carried_by(kind, header, frame, caplen)
        if place < 0:
            return answer
    return answer
