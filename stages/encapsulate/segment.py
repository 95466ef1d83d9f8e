"""Super-frames, as TSO and GRO make them, back into the segments that are on the wire: a new header each, the payload stays where it is.

| kernel | does |
|---|---|
| plan_segments | frame -> a plan: where its headers are and how much payload it has; or why it cannot be segmented |
| header_len_of | plan -> bytes of each new header |
| n_segments_of | plan, mss -> how many segments |
| segment_at, segment_len | plan, mss, i -> the window of the frame that is the payload of segment i |
| write_segment_header | Ethernet, tags, IP and TCP or UDP of segment i into `out` |

A frame that leaves is header_len_of bytes of `out`, then the window. `mss` is the payload of a segment in bytes; the last may have less,
and a packet without payload is one segment. What changes from one segment to the next is what a network card changes (Linux,
Documentation/networking/segmentation-offloads.rst):

| field | of segment i |
|---|---|
| IPv4 total length, IPv6 payload length, UDP length | its own |
| IPv4 identification | that of the packet + i |
| TCP sequence number | that of the packet + i * mss |
| FIN, PSH | in the last only |
| CWR | in the first only (RFC 3168 section 6.1.2) |
| checksums | right, whatever the packet's were; a UDP checksum of 0 (none, over IPv4) stays 0 |

All else is copied: tags, IP options, extension headers, TCP options, acknowledgement, window. Ethernet padding goes.

UDP is segmented into datagrams of their own only where `udp` says so: right where it is known that the sender (UDP_SEGMENT) or the
receiving kernel (UDP_GRO) had joined datagrams of `mss` bytes each. Without that knowledge a long UDP packet is one datagram, seen before
fragmentation, and its receiver must not be handed more than one. What a tunnel carries is not looked into.

| why not | |
|---|---|
| SEGMENT_NOT_IP | neither IPv4 nor IPv6 behind at most MAX_TAGS tags |
| SEGMENT_NOT_TCP | neither TCP nor, where `udp` says so, UDP |
| SEGMENT_FRAGMENT | a fragment |
| SEGMENT_CUT | not all of its bytes are there, or a header says that it is shorter than it can be or longer than its packet |
| SEGMENT_LONG | the IPv6 chain is too long, routes to where only it names, or has the packet's length in it (a jumbogram, RFC 2675) |
| SEGMENT_FLAGS | SYN, RST or URG: not made by segmentation, and what they say of the sequence cannot be divided |
"""

from __future__ import annotations

from stages.encapsulate.checksum import is_routed, sum_pseudo, sum_words, transport_checksum, write_ip_checksum
from stages.encapsulate.layers import NETWORK_AT, skip_tags
from stages.jit import kernel
from stages.memory import copy, load8, load_be16, load_be32, store8, store_be16, store_be32
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETHERTYPE,
    HOPOPTS,
    IP6_BYTES,
    IP6_LENGTH,
    IP6_NEXT,
    IP_BYTES,
    IP_IDENTIFICATION,
    IP_LENGTH,
    TCP,
    TCP_FLAGS,
    UDP,
)
from stages.wire.transport import (
    HIDDEN,
    HIDDEN_BIT,
    MORE_BIT,
    NO_END,
    end_of_ip,
    offset_in,
    payload_of,
    protocol_in,
    transport_of,
)

SEGMENT_NOT_IP, SEGMENT_NOT_TCP, SEGMENT_FRAGMENT, SEGMENT_CUT, SEGMENT_LONG, SEGMENT_FLAGS = range(-1, -7, -1)
SEGMENT_HEADER_ROOM = 512  # 14 of Ethernet, 24 of tags, 40 and 256 of IPv6 and its chain, which may end in 60 of TCP, rounded up

_FIN, _SYN, _RST, _PSH, _URG, _CWR = 1, 2, 4, 8, 32, 128
_TCP_SEQUENCE, _TCP_CHECKSUM, _UDP_LENGTH, _UDP_CHECKSUM = 4, 16, 4, 6

# a plan: header length | l4 << 10 | l3 << 20 | payload length << 27 | IPv6 << 48 | UDP << 49
_L4_AT, _L3_AT, _PAYLOAD_AT, _IP6_AT, _UDP_AT = 10, 20, 27, 48, 49
_HEADER_BITS, _L3_BITS, _PAYLOAD_BITS = (1 << 10) - 1, (1 << 7) - 1, (1 << 21) - 1


@kernel
def _l3_of(frame: int, caplen: int) -> int:
    """Offset | IPv6 << NETWORK_AT, of a fixed header that is there; or SEGMENT_*."""
    at = skip_tags(frame, caplen, ETHERTYPE)
    if at < 0:
        return SEGMENT_CUT
    type_, l3 = load_be16(frame + at), at + 2
    if type_ not in (ETH_IP, ETH_IP6):
        return SEGMENT_NOT_IP
    is_ip6 = 1 if type_ == ETH_IP6 else 0
    if caplen < l3 + (IP6_BYTES if is_ip6 else IP_BYTES):
        return SEGMENT_CUT
    return l3 | is_ip6 << NETWORK_AT if load8(frame + l3) >> 4 == (6 if is_ip6 else 4) else SEGMENT_NOT_IP


@kernel
def plan_segments(frame: int, caplen: int, udp: int) -> int:
    """A plan, or SEGMENT_*. The length in the IP header is believed; where that is 0 (left to the network card) it is `caplen`."""
    network = _l3_of(frame, caplen)
    if network < 0:
        return network
    l3, is_ip6 = network & (1 << NETWORK_AT) - 1, network >> NETWORK_AT
    found = transport_of(frame, caplen, l3, is_ip6)
    if found < 0:
        return SEGMENT_FRAGMENT if found == HIDDEN else SEGMENT_LONG if is_ip6 else SEGMENT_CUT
    if found & (HIDDEN_BIT | MORE_BIT):
        return SEGMENT_FRAGMENT
    protocol, l4 = protocol_in(found), offset_in(found)
    if protocol != TCP and (protocol != UDP or not udp):
        return SEGMENT_NOT_TCP
    end = end_of_ip(frame, l3, is_ip6)
    if end == NO_END:
        if is_ip6 and load8(frame + l3 + IP6_NEXT) == HOPOPTS:
            return SEGMENT_LONG
        end = caplen
    payload = payload_of(frame, caplen, l3, is_ip6)
    if payload < 0 or end > caplen or offset_in(payload) > end:
        return SEGMENT_CUT
    if is_ip6 and is_routed(frame, l3, l4):
        return SEGMENT_LONG
    if protocol == TCP and load8(frame + l4 + TCP_FLAGS) & (_SYN | _RST | _URG):
        return SEGMENT_FLAGS
    header_len = offset_in(payload)
    is_udp = 1 if protocol == UDP else 0
    return header_len | l4 << _L4_AT | l3 << _L3_AT | (end - header_len) << _PAYLOAD_AT | is_ip6 << _IP6_AT | is_udp << _UDP_AT


@kernel
def header_len_of(plan: int) -> int:
    """At most SEGMENT_HEADER_ROOM."""
    return plan & _HEADER_BITS


@kernel
def payload_len_of(plan: int) -> int:
    return plan >> _PAYLOAD_AT & _PAYLOAD_BITS


@kernel
def n_segments_of(plan: int, mss: int) -> int:
    """`mss` is at least 1."""
    return max((payload_len_of(plan) + mss - 1) // mss, 1)


@kernel
def segment_at(plan: int, mss: int, i: int) -> int:
    """From the start of the frame."""
    return header_len_of(plan) + i * mss


@kernel
def segment_len(plan: int, mss: int, i: int) -> int:
    return min(mss, payload_len_of(plan) - i * mss)


@kernel
def write_segment_header(out: int, frame: int, plan: int, mss: int, i: int) -> None:
    """Writes header_len_of(plan) bytes. `plan`: of this frame, unchanged since; 0 <= i < n_segments_of(plan, mss)."""
    header_len, l4, l3 = header_len_of(plan), plan >> _L4_AT & _HEADER_BITS, plan >> _L3_AT & _L3_BITS
    is_ip6, is_udp = plan >> _IP6_AT & 1, plan >> _UDP_AT & 1
    n_bytes = segment_len(plan, mss, i)
    l4_bytes = header_len - l4 + n_bytes
    copy(out, frame, header_len)
    if is_ip6:
        store_be16(out + l3 + IP6_LENGTH, l4 - l3 - IP6_BYTES + l4_bytes)
    else:
        store_be16(out + l3 + IP_LENGTH, l4 - l3 + l4_bytes)
        store_be16(out + l3 + IP_IDENTIFICATION, load_be16(frame + l3 + IP_IDENTIFICATION) + i)
        write_ip_checksum(out + l3, 4 * (load8(frame + l3) & 15))
    if is_udp:
        store_be16(out + l4 + _UDP_LENGTH, l4_bytes)
        if is_ip6 == 0 and load_be16(frame + l4 + _UDP_CHECKSUM) == 0:
            return
        checksum_at, protocol = out + l4 + _UDP_CHECKSUM, UDP
    else:
        store_be32(out + l4 + _TCP_SEQUENCE, load_be32(frame + l4 + _TCP_SEQUENCE) + i * mss)
        flags = load8(frame + l4 + TCP_FLAGS)
        if i > 0:
            flags &= ~_CWR
        if i < n_segments_of(plan, mss) - 1:
            flags &= ~(_FIN | _PSH)
        store8(out + l4 + TCP_FLAGS, flags)
        checksum_at, protocol = out + l4 + _TCP_CHECKSUM, TCP
    store_be16(checksum_at, 0)
    total = sum_pseudo(out, l3, is_ip6, protocol, l4_bytes) + sum_words(out + l4, header_len - l4)
    store_be16(checksum_at, transport_checksum(protocol, total + sum_words(frame + segment_at(plan, mss, i), n_bytes)))


@kernel
def mss_of(plan: int, max_ip_bytes: int) -> int:
    """The longest payload with which an IP packet has at most `max_ip_bytes`; 1 at least."""
    return max(1, max_ip_bytes - (header_len_of(plan) - (plan >> _L3_AT & (1 << _PAYLOAD_AT - _L3_AT) - 1)))
