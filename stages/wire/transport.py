"""Where the transport header is: behind all extension headers, wherever they put it.

| kernel | does |
|---|---|
| transport_of | IPv4 or IPv6 header -> protocol | its offset << AT | HIDDEN_BIT in a later fragment, MORE_BIT in a first one; or a code |
| payload_of | the same of what it carries: behind TCP's data offset, 8 bytes of UDP, UDP-Lite, ICMP and ICMPv6, 12 of SCTP; or a code |
| end_of_ip | offset of the end of the packet, as its IP header has it |
| next_of | one step along the chain of extension headers |

Codes are negative: UNKNOWN beyond `caplen` or not to be understood (over-long chain, a header that says it is shorter than it can be),
NOT_THERE where there is none, HIDDEN where it is in another fragment. Offsets count from the start of the frame.
"""

from __future__ import annotations

from stages.jit import kernel
from stages.memory import load8, load_be16
from stages.wire.chain import is_extension
from stages.wire.headers import (
    AUTHENTICATION,
    FRAGMENT,
    FRAGMENT_BYTES,
    FRAGMENT_MORE_BIT,
    FRAGMENT_OFFSET,
    FRAGMENT_OFFSET_BITS,
    ICMP,
    ICMP6,
    IP6_BYTES,
    IP6_LENGTH,
    IP6_NEXT,
    IP_BYTES,
    IP_FRAGMENT,
    IP_LENGTH,
    IP_MORE_BIT,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
    MAX_CHAIN,
    MAX_CHAIN_BYTES,
    NO_NEXT,
    SCTP,
    TCP,
    UDP,
)

UNKNOWN, NOT_THERE, HIDDEN, END = -1, -2, -3, -4
AT = 8
HIDDEN_BIT, MORE_BIT = 1 << 40, 1 << 41
_OFFSET = (1 << 32) - 1
NO_END = 1 << 32

_UDP_LITE = 136
_TCP_OFFSET, _TCP_BYTES = 12, 20
_UDP_BYTES, _ICMP_BYTES, _SCTP_BYTES = 8, 8, 12


@kernel
def protocol_in(found: int) -> int:
    return found & 255


@kernel
def offset_in(found: int) -> int:
    return found >> AT & _OFFSET


@kernel
def next_of(protocol: int, at: int, is_ip6: int, frame: int, caplen: int) -> int:
    """Over one extension header at `at`: the next protocol | its offset << AT | bits of a fragment; END: it is no extension header."""
    if protocol == FRAGMENT and is_ip6:
        if caplen < at + FRAGMENT_BYTES:
            return UNKNOWN
        found, bits = load8(frame + at) | (at + FRAGMENT_BYTES) << AT, load_be16(frame + at + FRAGMENT_OFFSET)
        if bits & FRAGMENT_OFFSET_BITS:
            return found | HIDDEN_BIT
        return found | MORE_BIT if bits & FRAGMENT_MORE_BIT else found
    if protocol != AUTHENTICATION and (is_ip6 == 0 or not is_extension(protocol)):
        return END
    if caplen < at + 2:
        return UNKNOWN
    length = load8(frame + at + 1)
    return load8(frame + at) | (at + (4 * (length + 2) if protocol == AUTHENTICATION else 8 * (length + 1))) << AT


@kernel
def transport_of(frame: int, caplen: int, l3: int, is_ip6: int) -> int:
    if caplen < l3 + (IP6_NEXT if is_ip6 else IP_PROTOCOL) + 1:
        return UNKNOWN
    flags = 0
    if is_ip6:
        protocol, l4 = load8(frame + l3 + IP6_NEXT), l3 + IP6_BYTES
    else:
        protocol, bits, l4 = load8(frame + l3 + IP_PROTOCOL), load_be16(frame + l3 + IP_FRAGMENT), l3 + 4 * (load8(frame + l3) & 15)
        if bits & IP_OFFSET_BITS:
            return protocol | l4 << AT | HIDDEN_BIT
        if l4 < l3 + IP_BYTES:
            return UNKNOWN
        flags = MORE_BIT if bits & IP_MORE_BIT else 0
    limit, left, fragments = l4 + MAX_CHAIN_BYTES, MAX_CHAIN, 0
    while left >= 0 and fragments < 2 and l4 <= limit:
        found = next_of(protocol, l4, is_ip6, frame, caplen)
        if found == END:
            return NOT_THERE if protocol == NO_NEXT else protocol | l4 << AT | flags
        if found < 0 or found & HIDDEN_BIT:
            return found
        if protocol == FRAGMENT:
            fragments += 1
        else:
            left -= 1
        protocol, l4, flags = protocol_in(found), offset_in(found), flags | found & MORE_BIT
    return UNKNOWN


@kernel
def payload_of(frame: int, caplen: int, l3: int, is_ip6: int) -> int:
    found = transport_of(frame, caplen, l3, is_ip6)
    if found < 0:
        return found
    protocol, l4 = protocol_in(found), offset_in(found)
    n_bytes = 0
    if protocol in (UDP, _UDP_LITE):
        n_bytes = _UDP_BYTES
    elif protocol == SCTP:
        n_bytes = _SCTP_BYTES
    elif protocol == (ICMP6 if is_ip6 else ICMP):
        n_bytes = _ICMP_BYTES
    elif protocol != TCP:
        return HIDDEN if found & HIDDEN_BIT and is_ip6 and is_extension(protocol) else NOT_THERE
    if found & HIDDEN_BIT:
        return HIDDEN
    if protocol == TCP:
        if caplen < l4 + _TCP_OFFSET + 1:
            return UNKNOWN
        n_bytes = 4 * (load8(frame + l4 + _TCP_OFFSET) >> 4)
        if n_bytes < _TCP_BYTES:
            return UNKNOWN
    return protocol | (l4 + n_bytes) << AT | found & MORE_BIT


@kernel
def end_of_ip(frame: int, l3: int, is_ip6: int) -> int:
    """NO_END: the header says 0, as it does where the sender's network card cuts packets (and of jumbograms). The fixed header is there."""
    n_bytes = load_be16(frame + l3 + (IP6_LENGTH if is_ip6 else IP_LENGTH))
    if n_bytes == 0:
        return NO_END
    return l3 + n_bytes + (IP6_BYTES if is_ip6 else 0)
