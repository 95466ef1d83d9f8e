"""Headers of a batch of packets to KEY rows.

| kernel | does |
|---|---|
| parse_packets | rows first..last of a block's PACKET rows -> KEY rows; every length is checked against the block's data |
| parse_packet | one frame of `caplen` bytes -> its KEY row; reads nothing outside of it |

The fast path takes Ethernet with at most one tag, IPv4 without options and fragments or IPv6, TCP or UDP: one bounds check. All else goes
through `_parse_any`. A port is where libpcap looks for it: behind 4 * IHL bytes of IPv4, right behind the fixed IPv6 header.

`flow` is symmetric: both directions of a conversation hash alike. IP: addresses, protocol and, for TCP, UDP and SCTP, ports. All
fragments, the first too, leave the ports out, so that no fragment overtakes another; a sender that fragments only some datagrams of a
flow thus has two flows. IPv6 extension headers are walked (8 of them, 256 bytes). All else: MAC addresses and ethertype.
"""

from __future__ import annotations

from broker.core import layout
from stages.jit import kernel
from stages.memory import (
    load8,
    load32,
    load_be16,
    load_be32,
    load_be64,
    mix,
    prefetch,
    shift_right,
    store8,
    store16,
    store32,
    store64,
)
from stages.wire.headers import (
    ARP_BYTES,
    ARP_DESTINATION,
    ARP_SOURCE,
    AUTHENTICATION,
    DSTOPTS,
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    ETH_QINQ,
    ETH_QINQ_OLD,
    ETH_RARP,
    ETH_VLAN,
    ETHERNET_BYTES,
    ETHERTYPE,
    FRAGMENT,
    HOPOPTS,
    IP6_BYTES,
    IP6_DESTINATION,
    IP6_NEXT,
    IP6_SOURCE,
    IP_BYTES,
    IP_DESTINATION,
    IP_FRAGMENT,
    IP_MORE_OR_OFFSET_BITS,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
    IP_SOURCE,
    MAX_CHAIN,
    MAX_CHAIN_BYTES,
    MAX_TAGS,
    MOBILITY,
    ROUTING,
    SCTP,
    TAG_BYTES,
    TCP,
    UDP,
)
from stages.wire.key import (
    FRAGMENT6_AT,
    IP6_AT,
    KEY,
    KIND_ARP,
    KIND_IP,
    KIND_IP6,
    KIND_OTHER,
    NOT_IP,
    PORT_CUT,
    PORT_HIDDEN,
    PORT_NONE,
    PORT_SEEN,
)

assert KEY.fields is not None
assert layout.PACKET.fields is not None
_SOURCE_HIGH, _SOURCE_LOW = KEY.fields["source_high"][1], KEY.fields["source_low"][1]
_DESTINATION_HIGH, _DESTINATION_LOW = KEY.fields["destination_high"][1], KEY.fields["destination_low"][1]
_AT, _CAPLEN, _FLOW = KEY.fields["at"][1], KEY.fields["caplen"][1], KEY.fields["flow"][1]
_ETHERTYPE, _PROTOCOL = KEY.fields["ethertype"][1], KEY.fields["protocol"][1]
_SOURCE_PORT, _DESTINATION_PORT = KEY.fields["source_port"][1], KEY.fields["destination_port"][1]
_KIND, _N_TAGS = KEY.fields["kind"][1], KEY.fields["n_tags"][1]
_SOURCE_STATE, _DESTINATION_STATE, _ODD = KEY.fields["source_state"][1], KEY.fields["destination_state"][1], KEY.fields["odd"][1]
_ROW_BYTES = KEY.itemsize

_PACKET_BYTES = layout.PACKET.itemsize
_DATA_AT = layout.PACKET.fields["data_at"][1]
_PACKET_CAPLEN = layout.PACKET.fields["caplen"][1]

_AHEAD = 12  # packets: how far the fetch of packet bytes runs before their use
_FAST_BYTES = ETHERNET_BYTES + TAG_BYTES + 40  # all of tag, IPv4 header and ports; tagged IPv6 is checked once more
_PLAIN_IP = 0x45  # version 4, no options
_SEED_A, _SEED_B, _SEED_C = 0x2D358DCCAA6C78A5, 0x0BB67AE8584CAA73, 0x1B873593CC9E2D51


@kernel
def flow_hash(source_high: int, source_low: int, source_port: int, high: int, low: int, port: int, protocol: int) -> int:
    """32 bits; swapping both ends changes nothing."""
    one = mix(source_low ^ _SEED_A, source_high ^ _SEED_B ^ source_port << 40)
    two = mix(low ^ _SEED_A, high ^ _SEED_B ^ port << 40)
    return shift_right(mix((one ^ two) ^ _SEED_C, one + two + protocol), 16) & 0xFFFFFFFF


@kernel
def _store_rest(row: int, ethertype: int, protocol: int, kind: int, n_tags: int, odd: int) -> None:
    store16(row + _ETHERTYPE, ethertype)
    store16(row + _PROTOCOL, protocol)
    store8(row + _KIND, kind)
    store8(row + _N_TAGS, n_tags)
    store8(row + _ODD, odd)


@kernel
def _store_addresses(row: int, source_high: int, source_low: int, high: int, low: int) -> None:
    store64(row + _SOURCE_HIGH, source_high)
    store64(row + _SOURCE_LOW, source_low)
    store64(row + _DESTINATION_HIGH, high)
    store64(row + _DESTINATION_LOW, low)


@kernel
def _store_ports(row: int, source: int, source_state: int, destination: int, destination_state: int) -> None:
    store16(row + _SOURCE_PORT, source)
    store16(row + _DESTINATION_PORT, destination)
    store8(row + _SOURCE_STATE, source_state)
    store8(row + _DESTINATION_STATE, destination_state)


@kernel
def _has_ports(protocol: int) -> bool:
    return protocol in (TCP, UDP, SCTP)


@kernel
def _is_tag(ethertype: int) -> bool:
    return ethertype in (ETH_VLAN, ETH_QINQ, ETH_QINQ_OLD)


@kernel
def _parse_other(row: int, at: int, caplen: int, ethertype: int, n_tags: int, odd: int, kind: int) -> None:
    """No IP header that could be read: the flow is the MAC addresses and the ethertype."""
    flow = 0
    if caplen >= ETHERTYPE:
        destination = load_be32(at) << 16 | load_be16(at + 4)
        source = load_be32(at + 6) << 16 | load_be16(at + 10)
        flow = flow_hash(0, source, 0, 0, destination, 0, ethertype + 0x10000)
    store32(row + _FLOW, flow)
    _store_ports(row, 0, PORT_NONE, 0, PORT_NONE)
    _store_rest(row, ethertype, NOT_IP, kind, n_tags, odd)


@kernel
def _read_ports(row: int, at: int, caplen: int, l4: int) -> int:
    """Ports at offset `l4`, as far as they are there; returns source | destination << 16."""
    source, destination, source_state, destination_state = 0, 0, PORT_CUT, PORT_CUT
    if caplen >= l4 + 2:
        source, source_state = load_be16(at + l4), PORT_SEEN
    if caplen >= l4 + 4:
        destination, destination_state = load_be16(at + l4 + 2), PORT_SEEN
    _store_ports(row, source, source_state, destination, destination_state)
    return source | destination << 16


@kernel
def _parse_ip(row: int, at: int, caplen: int, l3: int, n_tags: int) -> None:
    source, destination = load_be32(at + l3 + IP_SOURCE), load_be32(at + l3 + IP_DESTINATION)
    fragment = load_be16(at + l3 + IP_FRAGMENT)
    protocol = load8(at + l3 + IP_PROTOCOL)
    ports = 0
    if not _has_ports(protocol):
        _store_ports(row, 0, PORT_NONE, 0, PORT_NONE)
    elif fragment & IP_OFFSET_BITS:
        _store_ports(row, 0, PORT_HIDDEN, 0, PORT_HIDDEN)
    else:
        ports = _read_ports(row, at, caplen, l3 + 4 * (load8(at + l3) & 15))
    if fragment & IP_MORE_OR_OFFSET_BITS:
        ports = 0
    _store_addresses(row, 0, source, 0, destination)
    store32(row + _FLOW, flow_hash(0, source, ports & 0xFFFF, 0, destination, ports >> 16, protocol))
    _store_rest(row, ETH_IP, protocol, KIND_IP, n_tags, 0)


@kernel
def _flow_behind_chain(at: int, caplen: int, l3: int, next_header: int) -> int:
    """IPv6 with extension headers: protocol | ports << 8 as far as they can be found."""
    l4 = l3 + IP6_BYTES
    end = min(caplen, l4 + MAX_CHAIN_BYTES)
    for _ in range(MAX_CHAIN):
        if next_header == FRAGMENT or l4 + 8 > end:
            break
        if next_header == AUTHENTICATION:
            step = (load8(at + l4 + 1) + 2) * 4
        elif next_header in (HOPOPTS, ROUTING, DSTOPTS, MOBILITY):
            step = (load8(at + l4 + 1) + 1) * 8
        else:
            break
        next_header = load8(at + l4)
        l4 += step
    if next_header == FRAGMENT and l4 < caplen:
        return load8(at + l4)
    if _has_ports(next_header) and l4 + 4 <= caplen:
        return next_header | load_be16(at + l4) << 8 | load_be16(at + l4 + 2) << 24
    return next_header


@kernel
def _parse_ip6(row: int, at: int, caplen: int, l3: int, n_tags: int) -> None:
    source_high, source_low = load_be64(at + l3 + IP6_SOURCE), load_be64(at + l3 + IP6_SOURCE + 8)
    high, low = load_be64(at + l3 + IP6_DESTINATION), load_be64(at + l3 + IP6_DESTINATION + 8)
    next_header = load8(at + l3 + IP6_NEXT)
    protocol, odd, ends = IP6_AT + next_header, 0, next_header
    if _has_ports(next_header):
        ends = next_header | _read_ports(row, at, caplen, l3 + IP6_BYTES) << 8
    else:
        state = PORT_NONE
        if next_header == FRAGMENT:
            if caplen > l3 + IP6_BYTES:
                inner = load8(at + l3 + IP6_BYTES)
                protocol = FRAGMENT6_AT + inner
                if _has_ports(inner):
                    state = PORT_HIDDEN
            else:
                odd = 1
        _store_ports(row, 0, state, 0, state)
        ends = _flow_behind_chain(at, caplen, l3, next_header)
    _store_addresses(row, source_high, source_low, high, low)
    flow = flow_hash(source_high, source_low, ends >> 8 & 0xFFFF, high, low, ends >> 24, ends & 0xFF)
    store32(row + _FLOW, flow)
    _store_rest(row, ETH_IP6, protocol, KIND_IP6, n_tags, odd)


@kernel
def _parse_any(row: int, at: int, caplen: int) -> None:
    if caplen < ETHERNET_BYTES:
        _parse_other(row, at, caplen, 0, 0, 1, KIND_OTHER)
        return
    ethertype, l3, n_tags = load_be16(at + ETHERTYPE), ETHERNET_BYTES, 0
    while n_tags < MAX_TAGS and _is_tag(ethertype):
        n_tags += 1
        l3 += TAG_BYTES
        if caplen < l3:
            _parse_other(row, at, caplen, ethertype, n_tags, 1, KIND_OTHER)
            return
        ethertype = load_be16(at + l3 - 2)
    if ethertype == ETH_IP and caplen >= l3 + IP_BYTES:
        _parse_ip(row, at, caplen, l3, n_tags)
    elif ethertype == ETH_IP6 and caplen >= l3 + IP6_BYTES:
        _parse_ip6(row, at, caplen, l3, n_tags)
    elif (ethertype in (ETH_ARP, ETH_RARP)) and caplen >= l3 + ARP_BYTES:
        _store_addresses(row, 0, load_be32(at + l3 + ARP_SOURCE), 0, load_be32(at + l3 + ARP_DESTINATION))
        _parse_other(row, at, caplen, ethertype, n_tags, 0, KIND_ARP)
    else:
        cut = ethertype in (ETH_IP, ETH_IP6, ETH_ARP, ETH_RARP)
        _parse_other(row, at, caplen, ethertype, n_tags, 1 if cut else 0, KIND_OTHER)


@kernel
def parse_packet(row: int, at: int, caplen: int) -> None:
    store64(row + _AT, at)
    store32(row + _CAPLEN, caplen)
    if caplen < _FAST_BYTES:
        _parse_any(row, at, caplen)
        return
    ethertype, l3, n_tags = load_be16(at + ETHERTYPE), ETHERNET_BYTES, 0
    if ethertype == ETH_VLAN:
        ethertype, l3, n_tags = load_be16(at + ETHERTYPE + TAG_BYTES), ETHERNET_BYTES + TAG_BYTES, 1
    if ethertype == ETH_IP:
        protocol = load8(at + l3 + IP_PROTOCOL)
        whole = load_be16(at + l3 + IP_FRAGMENT) & IP_MORE_OR_OFFSET_BITS == 0
        if whole and load8(at + l3) == _PLAIN_IP and (protocol in (TCP, UDP)):
            source, destination = load_be32(at + l3 + IP_SOURCE), load_be32(at + l3 + IP_DESTINATION)
            one, two = load_be16(at + l3 + IP_BYTES), load_be16(at + l3 + IP_BYTES + 2)
            _store_addresses(row, 0, source, 0, destination)
            _store_ports(row, one, PORT_SEEN, two, PORT_SEEN)
            store32(row + _FLOW, flow_hash(0, source, one, 0, destination, two, protocol))
            _store_rest(row, ETH_IP, protocol, KIND_IP, n_tags, 0)
            return
    elif ethertype == ETH_IP6 and caplen >= l3 + IP6_BYTES + 4:
        _parse_ip6(row, at, caplen, l3, n_tags)
        return
    _parse_any(row, at, caplen)


@kernel
def parse_packets(packets_at: int, first: int, last: int, data_at: int, data_bytes: int, rows_at: int) -> None:
    """KEY row 0 is packet `first`. A packet that lies outside the block's data is taken for an empty one."""
    for i in range(first, last):
        packet = packets_at + i * _PACKET_BYTES
        offset, caplen = load32(packet + _DATA_AT), load32(packet + _PACKET_CAPLEN)
        if offset + caplen > data_bytes:
            offset, caplen = 0, 0
        if i + _AHEAD < last:
            ahead = data_at + load32(packet + _AHEAD * _PACKET_BYTES + _DATA_AT)
            prefetch(ahead)
            prefetch(ahead + 64)
        parse_packet(rows_at + (i - first) * _ROW_BYTES, data_at + offset, caplen)
