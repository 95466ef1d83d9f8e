"""Headers of a batch of packets to KEY rows.

| kernel | does |
|---|---|
| parse_packets | rows first..last of a block's PACKET rows -> KEY rows; every length is checked against the block's data |
| parse_packet | one frame of `caplen` bytes -> its KEY row; reads nothing outside of it |

The fast path takes Ethernet with at most one tag, IPv4 without options and fragments or IPv6, TCP or UDP: one bounds check. All else goes
through `_parse_any`. A port is where libpcap looks for it: behind 4 * IHL bytes of IPv4, right behind the fixed IPv6 header; besides, where
libpcap does not look, right behind a fragment header that is right behind the fixed IPv6 header. TCP flags and ICMP types likewise.
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
    prefetch,
    store8,
    store16,
    store32,
    store64,
)
from stages.wire.chain import CHAIN_AT, CHAIN_FRAGMENT, CHAIN_LONG, chain_of, fragment_of_ip, is_extension
from stages.wire.flow import flow_hash, link_flow
from stages.wire.headers import (
    ARP_BYTES,
    ARP_DESTINATION,
    ARP_SOURCE,
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
    FRAGMENT_BYTES,
    ICMP,
    ICMP6,
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
    MAX_TAGS,
    SCTP,
    TAG_BYTES,
    TCP,
    TCP_FLAGS,
    UDP,
)
from stages.wire.key import (
    DETAIL_CUT,
    DETAIL_HIDDEN,
    DETAIL_NONE,
    FRAGMENT6_AT,
    FRAGMENT_ATOMIC,
    FRAGMENT_FIRST,
    FRAGMENT_LATER,
    FRAGMENT_NONE,
    ICMP6_AT,
    ICMP_AT,
    IP6_AT,
    KEY,
    KIND_ARP,
    KIND_IP,
    KIND_IP6,
    KIND_OTHER,
    NOT_IP,
    PORT_CUT,
    PORT_HIDDEN,
    PORT_SEEN,
)

assert KEY.fields is not None
assert layout.PACKET.fields is not None
_SOURCE_HIGH, _SOURCE_LOW = KEY.fields["source_high"][1], KEY.fields["source_low"][1]
_DESTINATION_HIGH, _DESTINATION_LOW = KEY.fields["destination_high"][1], KEY.fields["destination_low"][1]
_AT, _CAPLEN, _FLOW = KEY.fields["at"][1], KEY.fields["caplen"][1], KEY.fields["flow"][1]
_ETHERTYPE, _PROTOCOL = KEY.fields["ethertype"][1], KEY.fields["protocol"][1]
_SOURCE_PORT, _DESTINATION_PORT = KEY.fields["source_port"][1], KEY.fields["destination_port"][1]
_KIND, _N_TAGS, _ODD = KEY.fields["kind"][1], KEY.fields["n_tags"][1], KEY.fields["odd"][1]
_SOURCE_STATE, _DESTINATION_STATE = KEY.fields["source_state"][1], KEY.fields["destination_state"][1]
_FRAGMENT, _DETAIL = KEY.fields["fragment"][1], KEY.fields["detail"][1]
_ROW_BYTES = KEY.itemsize

_PACKET_BYTES = layout.PACKET.itemsize
_DATA_AT = layout.PACKET.fields["data_at"][1]
_PACKET_CAPLEN = layout.PACKET.fields["caplen"][1]

_AHEAD = 12  # packets: how far the fetch of packet bytes runs before their use
_FAST_BYTES = ETHERNET_BYTES + TAG_BYTES + 40  # all of tag, IPv4 header and ports; tagged IPv6 is checked once more
_PLAIN_IP = 0x45  # version 4, no options

# both ports as one number: source | destination << 16 | state of source << 32 | state of destination << 40
_NO_PORTS = 0
_CUT_PORTS, _HIDDEN_PORTS, _SEEN_PORTS = (state << 32 | state << 40 for state in (PORT_CUT, PORT_HIDDEN, PORT_SEEN))


@kernel
def _store_rest(row: int, ethertype: int, protocol: int, ports: int, kind: int, n_tags: int, odd: int, fragment: int, detail: int) -> None:
    store16(row + _ETHERTYPE, ethertype)
    store16(row + _PROTOCOL, protocol)
    store16(row + _SOURCE_PORT, ports)
    store16(row + _DESTINATION_PORT, ports >> 16)
    store8(row + _KIND, kind)
    store8(row + _N_TAGS, n_tags)
    store8(row + _SOURCE_STATE, ports >> 32)
    store8(row + _DESTINATION_STATE, ports >> 40)
    store8(row + _ODD, odd)
    store8(row + _FRAGMENT, fragment)
    store16(row + _DETAIL, detail)


@kernel
def _store_addresses(row: int, source_high: int, source_low: int, high: int, low: int) -> None:
    store64(row + _SOURCE_HIGH, source_high)
    store64(row + _SOURCE_LOW, source_low)
    store64(row + _DESTINATION_HIGH, high)
    store64(row + _DESTINATION_LOW, low)


@kernel
def _has_ports(protocol: int) -> bool:
    return protocol in (TCP, UDP, SCTP)


@kernel
def _is_tag(ethertype: int) -> bool:
    return ethertype in (ETH_VLAN, ETH_QINQ, ETH_QINQ_OLD)


@kernel
def _parse_other(row: int, at: int, caplen: int, ethertype: int, n_tags: int, odd: int, kind: int) -> None:
    store32(row + _FLOW, link_flow(at, caplen, ethertype))
    _store_rest(row, ethertype, NOT_IP, _NO_PORTS, kind, n_tags, odd, FRAGMENT_NONE, DETAIL_NONE)


@kernel
def _ports_at(at: int, caplen: int, l4: int) -> int:
    """As far as they are there."""
    if caplen >= l4 + 4:
        return load_be16(at + l4) | load_be16(at + l4 + 2) << 16 | _SEEN_PORTS
    if caplen >= l4 + 2:
        return load_be16(at + l4) | PORT_SEEN << 32 | PORT_CUT << 40
    return _CUT_PORTS


@kernel
def _type_base(protocol: int, is_ip6: int) -> int:
    """Where the types of this protocol begin among KEY.detail; 0: it has none."""
    if is_ip6:
        return ICMP6_AT if protocol == ICMP6 else 0
    return ICMP_AT if protocol == ICMP else 0


@kernel
def _detail_at(at: int, caplen: int, l4: int, protocol: int, is_ip6: int) -> int:
    if protocol == TCP:
        return load8(at + l4 + TCP_FLAGS) if caplen > l4 + TCP_FLAGS else DETAIL_CUT
    base = _type_base(protocol, is_ip6)
    if base == 0:
        return DETAIL_NONE
    return base + load8(at + l4) if caplen > l4 else DETAIL_CUT


@kernel
def _no_detail(protocol: int, is_ip6: int, why: int) -> int:
    return why if protocol == TCP or _type_base(protocol, is_ip6) else DETAIL_NONE


@kernel
def _parse_ip(row: int, at: int, caplen: int, l3: int, n_tags: int) -> int:
    fragment, protocol = fragment_of_ip(at, l3), load8(at + l3 + IP_PROTOCOL)
    ports = _NO_PORTS
    if fragment <= FRAGMENT_FIRST:
        l4 = l3 + 4 * (load8(at + l3) & 15)
        if _has_ports(protocol):
            ports = _ports_at(at, caplen, l4)
        detail = _detail_at(at, caplen, l4, protocol, 0)
    else:
        if _has_ports(protocol):
            ports = _HIDDEN_PORTS
        detail = _no_detail(protocol, 0, DETAIL_HIDDEN)
    source = load_be32(at + l3 + IP_SOURCE) if caplen >= l3 + IP_SOURCE + 4 else 0
    if caplen >= l3 + IP_BYTES:
        destination, ends = load_be32(at + l3 + IP_DESTINATION), ports if fragment == FRAGMENT_NONE else 0
        flow = flow_hash(0, source, ends & 0xFFFF, 0, destination, ends >> 16 & 0xFFFF, protocol)
    else:
        destination, flow = 0, link_flow(at, caplen, ETH_IP)
    _store_addresses(row, 0, source, 0, destination)
    store32(row + _FLOW, flow)
    _store_rest(row, ETH_IP, protocol, ports, KIND_IP, n_tags, 1 if caplen < l3 + IP_BYTES else 0, fragment, detail)
    return fragment


@kernel
def _parse_ip_cut(row: int, at: int, caplen: int, l3: int, n_tags: int) -> int:
    """IPv4 that ends before the protocol."""
    fragment = FRAGMENT_NONE
    if caplen >= l3 + IP_FRAGMENT + 2:
        bits = load_be16(at + l3 + IP_FRAGMENT) & IP_MORE_OR_OFFSET_BITS
        if bits:
            fragment = FRAGMENT_LATER if bits & IP_OFFSET_BITS else FRAGMENT_FIRST
    _store_addresses(row, 0, 0, 0, 0)
    store32(row + _FLOW, link_flow(at, caplen, ETH_IP))
    _store_rest(row, ETH_IP, NOT_IP, _CUT_PORTS, KIND_IP, n_tags, 1, fragment, DETAIL_CUT)
    return fragment


@kernel
def _parse_chain(row: int, at: int, caplen: int, l3: int, n_tags: int) -> int:
    """IPv6 with extension headers, all but the addresses; returns the ports that the flow has, with its protocol << 32 | marked << 40."""
    found, next_header = chain_of(at, caplen, l3), load8(at + l3 + IP6_NEXT)
    behind, fragment, long, l4 = found & 255, found >> CHAIN_FRAGMENT & 255, found >> CHAIN_LONG & 1, l3 + (found >> CHAIN_AT)
    protocol, ports, detail, odd, ends = IP6_AT + next_header, _NO_PORTS, DETAIL_NONE, 0, 0
    if next_header == FRAGMENT:
        if caplen <= l4:
            ports, detail, odd = _CUT_PORTS, DETAIL_CUT, 1
        else:
            protocol = FRAGMENT6_AT + behind
            if caplen < l4 + FRAGMENT_BYTES:
                ports, detail = _CUT_PORTS, _no_detail(behind, 1, DETAIL_CUT)
            elif fragment in (FRAGMENT_FIRST, FRAGMENT_ATOMIC):
                ports, detail = _ports_at(at, caplen, l4 + FRAGMENT_BYTES), _detail_at(at, caplen, l4 + FRAGMENT_BYTES, behind, 1)
            else:
                ports, detail = _HIDDEN_PORTS, _no_detail(behind, 1, DETAIL_HIDDEN)
            if not _has_ports(behind):
                ports = _NO_PORTS
    if long:
        ports, detail = _HIDDEN_PORTS, DETAIL_HIDDEN
    if fragment == FRAGMENT_NONE and _has_ports(behind) and caplen >= l4 + 4:
        ends = load_be16(at + l4) | load_be16(at + l4 + 2) << 16
    _store_rest(row, ETH_IP6, protocol, ports, KIND_IP6, n_tags, odd, fragment, detail)
    return ends | behind << 32 | (fragment | long) << 40


@kernel
def _parse_ip6(row: int, at: int, caplen: int, l3: int, n_tags: int) -> int:
    source_high, source_low = load_be64(at + l3 + IP6_SOURCE), load_be64(at + l3 + IP6_SOURCE + 8)
    high, low = load_be64(at + l3 + IP6_DESTINATION), load_be64(at + l3 + IP6_DESTINATION + 8)
    next_header, l4 = load8(at + l3 + IP6_NEXT), l3 + IP6_BYTES
    if is_extension(next_header) or next_header == FRAGMENT:
        ends = _parse_chain(row, at, caplen, l3, n_tags)
    else:
        ports = _ports_at(at, caplen, l4) if _has_ports(next_header) else _NO_PORTS
        detail = _detail_at(at, caplen, l4, next_header, 1)
        _store_rest(row, ETH_IP6, IP6_AT + next_header, ports, KIND_IP6, n_tags, 0, FRAGMENT_NONE, detail)
        ends = ports & 0xFFFFFFFF | next_header << 32
    _store_addresses(row, source_high, source_low, high, low)
    flow = flow_hash(source_high, source_low, ends & 0xFFFF, high, low, ends >> 16 & 0xFFFF, ends >> 32 & 255)
    store32(row + _FLOW, flow)
    return ends >> 40


@kernel
def _half_at(at: int, caplen: int, field: int) -> int:
    return load_be64(at + field) if caplen >= field + 8 else 0


@kernel
def _parse_ip6_cut(row: int, at: int, caplen: int, l3: int, n_tags: int) -> None:
    """IPv6 that ends within the fixed header."""
    source, destination = l3 + IP6_SOURCE, l3 + IP6_DESTINATION
    _store_addresses(
        row, _half_at(at, caplen, source), _half_at(at, caplen, source + 8), _half_at(at, caplen, destination), 0
    )  # fmt: skip
    protocol, ports, detail = NOT_IP, _CUT_PORTS, DETAIL_CUT
    if caplen > l3 + IP6_NEXT:
        next_header = load8(at + l3 + IP6_NEXT)
        protocol = IP6_AT + next_header
        if next_header != FRAGMENT:
            ports = _CUT_PORTS if _has_ports(next_header) else _NO_PORTS
            detail = _no_detail(next_header, 1, DETAIL_CUT)
    store32(row + _FLOW, link_flow(at, caplen, ETH_IP6))
    _store_rest(row, ETH_IP6, protocol, ports, KIND_IP6, n_tags, 1, FRAGMENT_NONE, detail)


@kernel
def _parse_any(row: int, at: int, caplen: int) -> int:
    if caplen < ETHERNET_BYTES:
        _parse_other(row, at, caplen, 0, 0, 1, KIND_OTHER)
        return 0
    ethertype, l3, n_tags = load_be16(at + ETHERTYPE), ETHERNET_BYTES, 0
    while n_tags < MAX_TAGS and _is_tag(ethertype):
        n_tags += 1
        l3 += TAG_BYTES
        if caplen < l3:
            _parse_other(row, at, caplen, ethertype, n_tags, 1, KIND_OTHER)
            return 0
        ethertype = load_be16(at + l3 - 2)
    if ethertype == ETH_IP:
        if caplen > l3 + IP_PROTOCOL:
            return _parse_ip(row, at, caplen, l3, n_tags)
        return _parse_ip_cut(row, at, caplen, l3, n_tags)
    if ethertype == ETH_IP6:
        if caplen >= l3 + IP6_BYTES:
            return _parse_ip6(row, at, caplen, l3, n_tags)
        _parse_ip6_cut(row, at, caplen, l3, n_tags)
    elif ethertype in (ETH_ARP, ETH_RARP):
        source = load_be32(at + l3 + ARP_SOURCE) if caplen >= l3 + ARP_SOURCE + 4 else 0
        destination = load_be32(at + l3 + ARP_DESTINATION) if caplen >= l3 + ARP_BYTES else 0
        _store_addresses(row, 0, source, 0, destination)
        _parse_other(row, at, caplen, ethertype, n_tags, 1 if caplen < l3 + ARP_BYTES else 0, KIND_ARP)
    else:
        _parse_other(row, at, caplen, ethertype, n_tags, 0, KIND_OTHER)
    return 0


@kernel
def parse_packet(row: int, at: int, caplen: int) -> int:
    """Not 0: a fragment, or its IPv6 chain is too long; `follow_fragments` looks at it."""
    store64(row + _AT, at)
    store32(row + _CAPLEN, caplen)
    if caplen < _FAST_BYTES:
        return _parse_any(row, at, caplen)
    ethertype, l3, n_tags = load_be16(at + ETHERTYPE), ETHERNET_BYTES, 0
    if ethertype == ETH_VLAN:
        ethertype, l3, n_tags = load_be16(at + ETHERTYPE + TAG_BYTES), ETHERNET_BYTES + TAG_BYTES, 1
    if ethertype == ETH_IP:
        protocol = load8(at + l3 + IP_PROTOCOL)
        whole = load_be16(at + l3 + IP_FRAGMENT) & IP_MORE_OR_OFFSET_BITS == 0
        if whole and load8(at + l3) == _PLAIN_IP and (protocol in (TCP, UDP)):
            source, destination = load_be32(at + l3 + IP_SOURCE), load_be32(at + l3 + IP_DESTINATION)
            one, two = load_be16(at + l3 + IP_BYTES), load_be16(at + l3 + IP_BYTES + 2)
            detail = load8(at + l3 + IP_BYTES + TCP_FLAGS) if protocol == TCP else DETAIL_NONE
            _store_addresses(row, 0, source, 0, destination)
            store32(row + _FLOW, flow_hash(0, source, one, 0, destination, two, protocol))
            _store_rest(row, ETH_IP, protocol, one | two << 16 | _SEEN_PORTS, KIND_IP, n_tags, 0, FRAGMENT_NONE, detail)
            return 0
    elif ethertype == ETH_IP6 and caplen > l3 + IP6_BYTES + TCP_FLAGS:
        protocol = load8(at + l3 + IP6_NEXT)
        if protocol in (TCP, UDP):
            source_high, source_low = load_be64(at + l3 + IP6_SOURCE), load_be64(at + l3 + IP6_SOURCE + 8)
            high, low = load_be64(at + l3 + IP6_DESTINATION), load_be64(at + l3 + IP6_DESTINATION + 8)
            one, two = load_be16(at + l3 + IP6_BYTES), load_be16(at + l3 + IP6_BYTES + 2)
            detail = load8(at + l3 + IP6_BYTES + TCP_FLAGS) if protocol == TCP else DETAIL_NONE
            _store_addresses(row, source_high, source_low, high, low)
            store32(row + _FLOW, flow_hash(source_high, source_low, one, high, low, two, protocol))
            _store_rest(row, ETH_IP6, IP6_AT + protocol, one | two << 16 | _SEEN_PORTS, KIND_IP6, n_tags, 0, FRAGMENT_NONE, detail)
            return 0
    return _parse_any(row, at, caplen)


@kernel
def parse_bare_packet(row: int, at: int, caplen: int, ethertype: int) -> int:
    """The same of an IP packet without a link-layer header, which begins at `at`; of anything else nothing is known."""
    store64(row + _AT, at)
    store32(row + _CAPLEN, caplen)
    if ethertype == ETH_IP and caplen > IP_PROTOCOL:
        return _parse_ip(row, at, caplen, 0, 0)
    if ethertype == ETH_IP6 and caplen >= IP6_BYTES:
        return _parse_ip6(row, at, caplen, 0, 0)
    _store_rest(row, ethertype, NOT_IP, _NO_PORTS, KIND_OTHER, 0, 1, FRAGMENT_NONE, DETAIL_NONE)
    return 0


@kernel
def parse_packets(packets_at: int, first: int, last: int, data_at: int, data_bytes: int, rows_at: int) -> int:
    """KEY row 0 is packet `first`. A packet that lies outside the block's data is taken for an empty one.

    Not 0: at least one row is there for `follow_fragments` to look at.
    """
    marked = 0
    for i in range(first, last):
        packet = packets_at + i * _PACKET_BYTES
        offset, caplen = load32(packet + _DATA_AT), load32(packet + _PACKET_CAPLEN)
        if offset + caplen > data_bytes:
            offset, caplen = 0, 0
        if i + _AHEAD < last:
            ahead = data_at + load32(packet + _AHEAD * _PACKET_BYTES + _DATA_AT)
            prefetch(ahead)
            prefetch(ahead + 64)
        marked |= parse_packet(rows_at + (i - first) * _ROW_BYTES, data_at + offset, caplen)
    return marked
