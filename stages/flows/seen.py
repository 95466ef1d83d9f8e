"""What of a packet matters to its flow: SEEN, a row a packet, made before any flow is looked at.

| kernel | does |
|---|---|
| see_plain | SEEN of a packet that is plain, from its bytes |
| see_packet | SEEN of a packet whose KEY is known; or why it is in no flow |

The key is as ENTRY has it. Ports are those of TCP, UDP and SCTP; a later fragment has those of its first, if that is known, else none. Of
ICMP they are the type and the type of its answer, or type and code, as Community ID v1 has it, so that question and answer are one flow.
Bytes are those of the IP packet by its own word, but no more than there were on the wire, and those where it says nothing (0: super-frames,
jumbograms). With `inner` it is the innermost IP packet that tunnels carry (`stages.wire.tunnel`), at most MAX_DEPTH of them.
"""

from __future__ import annotations

import numpy as np

from broker.config.policy.tree import MPLS_TUNNEL
from broker.core import layout
from broker.core.flow_layout import WHAT_DESTINATION_PORT, WHAT_INPUT, WHAT_IP6, WHAT_PROTOCOL, WHAT_TTL, WHAT_TUNNEL, WHAT_USED
from stages.flows.index import DESTINATION_HIGH, DESTINATION_LOW, LINK, SOURCE_HIGH, SOURCE_LOW, WHAT
from stages.jit import kernel
from stages.memory import load8, load16, load32, load64, load_be16, load_be32, load_be64, store8, store16, store32, store64
from stages.wire.chain import chain_of, is_extension
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETH_VLAN,
    ETHERNET_BYTES,
    ETHERTYPE,
    FRAGMENT,
    ICMP,
    ICMP6,
    IP6_BYTES,
    IP6_DESTINATION,
    IP6_LENGTH,
    IP6_NEXT,
    IP6_SOURCE,
    IP_BYTES,
    IP_DESTINATION,
    IP_FRAGMENT,
    IP_LENGTH,
    IP_MORE_OR_OFFSET_BITS,
    IP_PROTOCOL,
    IP_SOURCE,
    NO_NEXT,
    SCTP,
    TAG_BYTES,
    TCP,
    TCP_FLAGS,
    UDP,
)
from stages.wire.key import FRAGMENT_ATOMIC, FRAGMENT_FIRST, FRAGMENT_NONE, ICMP6_AT, ICMP_AT, KEY, KIND_IP, KIND_IP6
from stages.wire.parse import parse_bare_packet, parse_packet
from stages.wire.place import NO_LINK, link_at, payload_at, type_at
from stages.wire.transport import HIDDEN_BIT, NOT_THERE, offset_in, protocol_in, transport_of
from stages.wire.tunnel import KIND_BITS, carried_by, id_of, label_of, tunnel_of

assert KEY.fields is not None
assert layout.PACKET.fields is not None

SEEN = np.dtype(
    {
        "names": [
            "key",  # as ENTRY begins: addresses, what, link
            "ts_ns",
            "hash",
            "at",  # address of the frame
            "entry",  # that of its flow, as far as one can see ahead, + 1
            "n_bytes",  # of the IP packet
            "l4",  # offset of the transport header in the frame; 0: hidden, or not there
            "end",  # offset of the end of the IP packet in the frame, at most caplen
            "payload_end",  # the same without regard to caplen
            "flags",  # of TCP; NO_FLAGS: not there
            "tos",
            "fragment",  # 1: it is one
            "why",  # SEEN_*
        ],
        "formats": [("<i8", (6,)), "<i8", "<i8", "<i8", "<i8", "<u4", "<u4", "<u4", "<u4", "<u2", "u1", "u1", "u1"],
        "offsets": [0, 48, 56, 64, 72, 80, 84, 88, 92, 96, 98, 99, 100],
        "itemsize": 128,
    }
)
assert SEEN.fields is not None
SEEN_BYTES = SEEN.itemsize
TS, HASH, AT, ENTRY_AHEAD, N_BYTES, L4, END, PAYLOAD_END, FLAGS, TOS, IS_FRAGMENT, WHY = (
    SEEN.fields[name][1] for name in (SEEN.names or ())[1:]
)
SEEN_FLOW, SEEN_NOT_IP, SEEN_CUT, SEEN_SAMPLED, SEEN_UNWANTED = range(5)
NO_FLAGS = 0xFFFF
MAX_DEPTH = 4

_SOURCE_HIGH, _SOURCE_LOW = KEY.fields["source_high"][1], KEY.fields["source_low"][1]
_DESTINATION_HIGH, _DESTINATION_LOW = KEY.fields["destination_high"][1], KEY.fields["destination_low"][1]
_ROW_AT, _CAPLEN, _PROTOCOL = KEY.fields["at"][1], KEY.fields["caplen"][1], KEY.fields["protocol"][1]
_SOURCE_PORT, _DESTINATION_PORT = KEY.fields["source_port"][1], KEY.fields["destination_port"][1]
_KIND, _N_TAGS, _ODD, _FRAGMENT, _DETAIL = (KEY.fields[name][1] for name in ("kind", "n_tags", "odd", "fragment", "detail"))
_TS, _WIRELEN, _INPUT = (layout.PACKET.fields[name][1] for name in ("ts_ns", "wirelen", "input"))
_IP_TOS, _IP_TTL, _IP6_HOPS, _VLAN_BITS, _INPUT_BITS = 1, 8, 7, 0xFFF, 63
_PLAIN_IP = 0x45  # version 4, no options
_PLAIN_BYTES = ETHERNET_BYTES + TAG_BYTES + IP_BYTES + TCP_FLAGS + 1
_ICMP_BYTES = 2


@kernel
def _counterpart(type_: int, is_ip6: int) -> int:
    """The ICMP type of the answer, or of the question; -1: a type that stands alone."""
    if is_ip6:
        if type_ in (128, 130, 133, 135, 139, 144):
            return type_ + 1
        return type_ - 1 if type_ in (129, 131, 134, 136, 140, 145) else -1
    if type_ == 0 or type_ == 8:
        return 8 - type_
    if type_ in (13, 15, 17):
        return type_ + 1
    if type_ in (14, 16, 18):
        return type_ - 1
    return 19 - type_ if type_ == 9 or type_ == 10 else -1


@kernel
def _icmp_ports(row: int, frame: int, l4: int, is_ip6: int) -> int:
    """As one number, source | destination << 16."""
    type_, caplen = load16(row + _DETAIL) - (ICMP6_AT if is_ip6 else ICMP_AT), load32(row + _CAPLEN)
    if 0 < l4 < caplen:
        type_ = load8(frame + l4)
    elif not 0 <= type_ <= 255:
        return 0
    other = _counterpart(type_, is_ip6)
    if other < 0:
        other = load8(frame + l4 + 1) if l4 > 0 and caplen >= l4 + _ICMP_BYTES else 0
    return type_ | other << 16


@kernel
def _behind_chain(row: int, frame: int, caplen: int, l3: int) -> int:
    """Of an IPv6 packet with extension headers: protocol | ports << 8 | offset of the transport header << 40, 0 if it is not here."""
    found = transport_of(frame, caplen, l3, 1)
    ports = load16(row + _SOURCE_PORT) | load16(row + _DESTINATION_PORT) << 16
    if found < 0:  # cut, too long, or none
        return (NO_NEXT if found == NOT_THERE else chain_of(frame, caplen, l3) & 255) | ports << 8
    protocol, l4 = protocol_in(found), offset_in(found)
    if found & HIDDEN_BIT:
        return protocol | ports << 8
    if ports == 0 and protocol in (TCP, UDP, SCTP) and caplen >= l4 + 4 and load8(row + _FRAGMENT) in (FRAGMENT_NONE, FRAGMENT_ATOMIC):
        ports = load_be16(frame + l4) | load_be16(frame + l4 + 2) << 16
    return protocol | ports << 8 | l4 << 40


@kernel
def _store_addresses(seen: int, source_high: int, source_low: int, destination_high: int, destination_low: int) -> None:
    store64(seen + SOURCE_HIGH, source_high)
    store64(seen + SOURCE_LOW, source_low)
    store64(seen + DESTINATION_HIGH, destination_high)
    store64(seen + DESTINATION_LOW, destination_low)


@kernel
def _store_rest(
    seen: int, what: int, link: int, frame: int, n_bytes: int, l4: int, end: int, caplen: int, flags: int, tos: int, is_fragment: int
) -> None:
    store64(seen + WHAT, what | 1 << WHAT_USED)
    store64(seen + LINK, link)
    store64(seen + AT, frame)
    store32(seen + N_BYTES, n_bytes)
    store32(seen + L4, l4)
    store32(seen + END, min(caplen, end))
    store32(seen + PAYLOAD_END, end)
    store16(seen + FLAGS, flags)
    store8(seen + TOS, tos)
    store8(seen + IS_FRAGMENT, is_fragment)


@kernel
def see_plain(seen: int, packet: int, frame: int, caplen: int) -> int:
    """1: what most packets are, TCP or UDP right behind IP, with one tag at most; SEEN is filled as `see_packet` would. 0: look closer."""
    if caplen < _PLAIN_BYTES:
        return 0
    ethertype, l3, link = load_be16(frame + ETHERTYPE), ETHERNET_BYTES, 0
    if ethertype == ETH_VLAN:
        ethertype, l3 = load_be16(frame + ETHERTYPE + TAG_BYTES), ETHERNET_BYTES + TAG_BYTES
        link = (load_be16(frame + ETHERNET_BYTES) & _VLAN_BITS) << 32
    wire, at = load32(packet + _WIRELEN) - l3, frame + l3
    if ethertype == ETH_IP:
        protocol, l4 = load8(at + IP_PROTOCOL), l3 + IP_BYTES
        if load8(at) != _PLAIN_IP or load_be16(at + IP_FRAGMENT) & IP_MORE_OR_OFFSET_BITS != 0 or protocol not in (TCP, UDP):
            return 0
        n_bytes, tos, ttl, is_ip6 = load_be16(at + IP_LENGTH), load8(at + _IP_TOS), load8(at + _IP_TTL), 0
        _store_addresses(seen, 0, load_be32(at + IP_SOURCE), 0, load_be32(at + IP_DESTINATION))
    elif ethertype == ETH_IP6 and caplen > l3 + IP6_BYTES + TCP_FLAGS:
        protocol, l4 = load8(at + IP6_NEXT), l3 + IP6_BYTES
        if load8(at) >> 4 != 6 or protocol not in (TCP, UDP):
            return 0
        n_bytes, tos, ttl, is_ip6 = load_be16(at + IP6_LENGTH), load_be16(at) >> 4 & 255, load8(at + _IP6_HOPS), 1
        n_bytes += IP6_BYTES if n_bytes else 0
        source, destination = at + IP6_SOURCE, at + IP6_DESTINATION
        _store_addresses(seen, load_be64(source), load_be64(source + 8), load_be64(destination), load_be64(destination + 8))
    else:
        return 0
    if n_bytes == 0 or n_bytes > wire:
        n_bytes = max(0, wire)
    flags = load8(frame + l4 + TCP_FLAGS) if protocol == TCP else NO_FLAGS
    what = load_be16(frame + l4) | load_be16(frame + l4 + 2) << WHAT_DESTINATION_PORT | protocol << WHAT_PROTOCOL
    what |= (load16(packet + _INPUT) & _INPUT_BITS) << WHAT_INPUT | is_ip6 << WHAT_IP6 | ttl << WHAT_TTL
    _store_rest(seen, what, link, frame, n_bytes, l4, l3 + n_bytes, caplen, flags, tos, 0)
    store64(seen + TS, load64(packet + _TS))
    return 1


@kernel
def see_ip(seen: int, row: int, l3: int, wirelen: int, input_: int, link: int, tunnel: int) -> int:
    """`row`: KEY of the packet, its IP header at `l3`; `wirelen`: of the frame that it begins. Returns SEEN_*."""
    frame, caplen, fragment = load64(row + _ROW_AT), load32(row + _CAPLEN), load8(row + _FRAGMENT)
    protocol, ports = load16(row + _PROTOCOL), load16(row + _SOURCE_PORT) | load16(row + _DESTINATION_PORT) << 16
    wire, is_ip6, l4 = max(0, wirelen - l3), 0, 0
    if load8(row + _KIND) == KIND_IP:
        header = 4 * (load8(frame + l3) & 15)
        if load8(frame + l3) >> 4 != 4 or header < IP_BYTES:
            return SEEN_NOT_IP
        n_bytes, tos, ttl = load_be16(frame + l3 + IP_LENGTH), load8(frame + l3 + _IP_TOS), load8(frame + l3 + _IP_TTL)
        if fragment <= FRAGMENT_FIRST:
            l4 = l3 + header
        if protocol == ICMP:
            ports = _icmp_ports(row, frame, l4, 0)
    else:
        is_ip6 = 1
        if load8(frame + l3) >> 4 != 6:
            return SEEN_NOT_IP
        n_bytes, tos, ttl = load_be16(frame + l3 + IP6_LENGTH), load_be16(frame + l3) >> 4 & 255, load8(frame + l3 + _IP6_HOPS)
        n_bytes += IP6_BYTES if n_bytes else 0
        protocol, l4 = load8(frame + l3 + IP6_NEXT), l3 + IP6_BYTES
        if is_extension(protocol) or protocol == FRAGMENT:
            found = _behind_chain(row, frame, caplen, l3)
            protocol, ports, l4 = found & 255, found >> 8 & 0xFFFFFFFF, found >> 40
        if protocol == ICMP6:
            ports = _icmp_ports(row, frame, l4, 1)
    if n_bytes == 0 or n_bytes > wire:
        n_bytes = wire
    flags = NO_FLAGS
    if protocol == TCP and l4 > 0 and caplen > l4 + 13:
        flags = load8(frame + l4 + 13)
    _store_addresses(
        seen, load64(row + _SOURCE_HIGH), load64(row + _SOURCE_LOW), load64(row + _DESTINATION_HIGH), load64(row + _DESTINATION_LOW)
    )  # fmt: skip
    what = ports | protocol << WHAT_PROTOCOL | (input_ & _INPUT_BITS) << WHAT_INPUT | is_ip6 << WHAT_IP6 | tunnel << WHAT_TUNNEL
    is_fragment = 0 if fragment in (FRAGMENT_NONE, FRAGMENT_ATOMIC) else 1
    _store_rest(seen, what | ttl << WHAT_TTL, link, frame, n_bytes, l4, l3 + n_bytes, caplen, flags, tos, is_fragment)
    return SEEN_FLOW


@kernel
def _inside(row: int, seen: int, l3: int, wirelen: int, input_: int, link: int) -> int:
    """Of the innermost IP packet; SEEN_NOT_IP, SEEN_CUT: there is none that can be read. KEY is overwritten. `wirelen`: to the end of the
    packet that `row` is about, if it is IP."""
    frame, caplen, answer = load64(row + _ROW_AT), load32(row + _CAPLEN), SEEN_NOT_IP
    ethertype = ETH_IP if load8(row + _KIND) == KIND_IP else ETH_IP6
    if load8(row + _KIND) not in (KIND_IP, KIND_IP6):
        ethertype = load_be16(frame + l3 - 2) if caplen >= l3 else 0
    for _ in range(MAX_DEPTH):
        found = tunnel_of(ethertype, l3, frame, caplen)
        if found < 0:
            return answer
        kind, header = found & (1 << KIND_BITS) - 1, found >> KIND_BITS
        place = carried_by(kind, header, frame, caplen)
        if place < 0:
            return answer
        number = label_of(header, 0, frame, caplen) if kind == MPLS_TUNNEL else id_of(kind, header, frame, caplen)
        link = link & ~0xFFFFFFFF | (number & 0xFFFFFFFF if number > 0 else 0)
        at = link_at(place)
        if at == NO_LINK:
            at, inside = payload_at(place), 0
            if caplen <= at:
                return answer
            if type_at(place) != at:
                ethertype = load_be16(frame + type_at(place))
            else:
                ethertype = ETH_IP6 if load8(frame + at) >> 4 == 6 else ETH_IP
            parse_bare_packet(row, frame + at, caplen - at, ethertype)
        else:
            if caplen <= at:
                return answer
            parse_packet(row, frame + at, caplen - at)
            inside = ETHERNET_BYTES + TAG_BYTES * load8(row + _N_TAGS)
            ethertype = load_be16(frame + at + inside - 2) if caplen >= at + inside else 0
        frame, caplen, wirelen, l3 = frame + at, caplen - at, max(0, wirelen - at), inside
        if load8(row + _KIND) in (KIND_IP, KIND_IP6) and load8(row + _ODD) == 0:
            now = see_ip(seen, row, l3, wirelen, input_, link, kind)
            if now == SEEN_FLOW:
                answer, wirelen = now, load32(seen + PAYLOAD_END)
    return answer


@kernel
def see_packet(seen: int, row: int, packet: int, inner: int) -> int:
    """SEEN_*: what `seen` holds is valid for SEEN_FLOW only. With `inner`, KEY is overwritten."""
    l3, kind, frame = ETHERNET_BYTES + TAG_BYTES * load8(row + _N_TAGS), load8(row + _KIND), load64(row + _ROW_AT)
    wirelen, input_, link = load32(packet + _WIRELEN), load16(packet + _INPUT), 0
    if load8(row + _N_TAGS) > 0 and load32(row + _CAPLEN) >= ETHERNET_BYTES + 2:
        link = (load_be16(frame + ETHERNET_BYTES) & _VLAN_BITS) << 32
    store64(seen + TS, load64(packet + _TS))
    answer = SEEN_NOT_IP
    if kind in (KIND_IP, KIND_IP6):
        answer = SEEN_CUT if load8(row + _ODD) else see_ip(seen, row, l3, wirelen, input_, link, 0)
    if inner:
        wirelen = load32(seen + PAYLOAD_END) if answer == SEEN_FLOW else wirelen
        within = _inside(row, seen, l3, wirelen, input_, link)
        answer = SEEN_FLOW if within == SEEN_FLOW else answer
    return answer
