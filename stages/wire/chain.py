"""Which part of a datagram a packet is, and the chain of IPv6 extension headers that has to be walked to know.

| kernel | does |
|---|---|
| fragment_of_ip | IPv4 header -> FRAGMENT_* |
| chain_of | IPv6 header -> protocol, FRAGMENT_*, whether the chain is too long, and where its fragment header or what is behind it stands |

A chain is too long when it has more than MAX_CHAIN headers or MAX_CHAIN_BYTES bytes, when a first fragment does not hold it up to the
transport header (RFC 7112), or when a second fragment header is in it: what is transported is then not looked for.
"""

from __future__ import annotations

from stages.jit import kernel
from stages.memory import load8, load_be16
from stages.wire.headers import (
    AUTHENTICATION,
    DSTOPTS,
    FRAGMENT,
    FRAGMENT_BYTES,
    FRAGMENT_MORE_BIT,
    FRAGMENT_OFFSET,
    FRAGMENT_OFFSET_BITS,
    HOPOPTS,
    ICMP,
    ICMP6,
    IP6_BYTES,
    IP6_LENGTH,
    IP6_NEXT,
    IP_FRAGMENT,
    IP_LENGTH,
    IP_MORE_OR_OFFSET_BITS,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
    MAX_CHAIN,
    MAX_CHAIN_BYTES,
    MOBILITY,
    ROUTING,
    SCTP,
    TCP,
    TCP_FLAGS,
    UDP,
)
from stages.wire.key import FRAGMENT_ATOMIC, FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_NONE, FRAGMENT_TINY

_UNIT = 8  # bytes: fragments start at multiples

# what `chain_of` returns
CHAIN_FRAGMENT, CHAIN_LONG, CHAIN_AT = 8, 16, 17


@kernel
def is_extension(next_header: int) -> bool:
    """The fragment header apart."""
    return next_header in (HOPOPTS, ROUTING, DSTOPTS, AUTHENTICATION, MOBILITY)


@kernel
def _shown_bytes(protocol: int) -> int:
    """How much of a transport header has to be there for its ports, flags or type."""
    if protocol == TCP:
        return TCP_FLAGS + 1
    if protocol in (UDP, SCTP):
        return 4
    return 1 if protocol in (ICMP, ICMP6) else 0


@kernel
def _later(offset: int, protocol: int) -> int:
    return FRAGMENT_TINY if offset == _UNIT and protocol == TCP else FRAGMENT_LATER


@kernel
def fragment_of_ip(at: int, l3: int) -> int:
    """Reads 10 bytes."""
    bits = load_be16(at + l3 + IP_FRAGMENT) & IP_MORE_OR_OFFSET_BITS
    if bits == 0:
        return FRAGMENT_NONE
    protocol, offset = load8(at + l3 + IP_PROTOCOL), (bits & IP_OFFSET_BITS) * _UNIT
    if offset:
        return _later(offset, protocol)
    payload_bytes = load_be16(at + l3 + IP_LENGTH) - 4 * (load8(at + l3) & 15)
    return FRAGMENT_TINY if payload_bytes < _shown_bytes(protocol) else FRAGMENT_FIRST


@kernel
def _walk(at: int, caplen: int, l4: int, limit: int, next_header: int, left: int) -> int:
    """Over at most `left` extension headers, none of which may end behind `limit`: next header | left << 8 | its offset << 16."""
    end = min(caplen, limit)
    while left > 0 and is_extension(next_header) and l4 + 8 <= end:
        step = load8(at + l4 + 1)
        step = (step + 2) * 4 if next_header == AUTHENTICATION else (step + 1) * 8
        next_header = load8(at + l4)
        l4 += step
        left -= 1
    return next_header | left << 8 | l4 << 16


@kernel
def _is_long(next_header: int, left: int, l4: int, limit: int) -> int:
    if is_extension(next_header):
        return 1 if left == 0 or l4 + 8 > limit else 0
    return 1 if l4 > limit else 0


@kernel
def chain_of(at: int, caplen: int, l3: int) -> int:
    """Protocol | FRAGMENT_* << CHAIN_FRAGMENT | too long << CHAIN_LONG | offset << CHAIN_AT; the fixed header is there.

    The protocol is that behind the chain, with a fragment header the one that it names; the offset is, from the start of the IPv6 header,
    that of the fragment header or else where the walk ended.
    """
    limit = l3 + IP6_BYTES + MAX_CHAIN_BYTES
    walked = _walk(at, caplen, l3 + IP6_BYTES, limit, load8(at + l3 + IP6_NEXT), MAX_CHAIN)
    protocol, left, l4 = walked & 255, walked >> 8 & 255, walked >> 16
    found = (l4 - l3) << CHAIN_AT
    if protocol != FRAGMENT:
        return found | protocol | _is_long(protocol, left, l4, limit) << CHAIN_LONG
    long = 1 if l4 + FRAGMENT_BYTES > limit else 0
    if caplen < l4 + FRAGMENT_BYTES:
        if caplen > l4:
            protocol = load8(at + l4)
        return found | protocol | FRAGMENT_LATER << CHAIN_FRAGMENT | long << CHAIN_LONG
    protocol, bits = load8(at + l4), load_be16(at + l4 + FRAGMENT_OFFSET)
    offset = bits & FRAGMENT_OFFSET_BITS
    if offset:
        return found | protocol | _later(offset, protocol) << CHAIN_FRAGMENT | long << CHAIN_LONG
    walked = _walk(at, caplen, l4 + FRAGMENT_BYTES, limit, protocol, left)
    inner, left, l4 = walked & 255, walked >> 8 & 255, walked >> 16
    if inner == FRAGMENT or _is_long(inner, left, l4, limit):
        long = 1
    fragment = FRAGMENT_ATOMIC
    if bits & FRAGMENT_MORE_BIT:
        end = l3 + IP6_BYTES + load_be16(at + l3 + IP6_LENGTH)
        if l4 > end or (is_extension(inner) and l4 + 8 > end):
            long = 1
        fragment = FRAGMENT_TINY if long or l4 + _shown_bytes(inner) > end else FRAGMENT_FIRST
    return found | protocol | fragment << CHAIN_FRAGMENT | long << CHAIN_LONG
