"""Internet checksums (RFC 1071) over any length, by 64-bit loads; and of the headers of packets that were changed."""

from __future__ import annotations

from stages.jit import kernel
from stages.memory import load8, load16, load32, load64, shift_right, store_be16
from stages.wire.chain import is_extension
from stages.wire.headers import (
    FRAGMENT,
    IP6_BYTES,
    IP6_NEXT,
    IP6_SOURCE,
    IP_CHECKSUM,
    IP_SOURCE,
    MAX_CHAIN,
    ROUTING,
    UDP,
)
from stages.wire.transport import next_of, offset_in, protocol_in

_SEGMENTS_LEFT = 3  # of a routing header, RFC 8200 section 4.4


@kernel
def fold(total: int) -> int:
    """A sum of 16-bit words, below 2^62, as its 16-bit one's complement sum."""
    total = (total & 0xFFFF_FFFF) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@kernel
def sum_words(at: int, n_bytes: int) -> int:
    """One's complement sum, 0..0xFFFF, of the big-endian words of [at, at + n_bytes); an odd last byte counts as if a zero followed.

    The sum is taken in little-endian order and turned at the end, which gives the same (RFC 1071 section 2 (B)). Each 32-bit half is
    added to a 64-bit sum of its own, which cannot overflow below 16 GiB.
    """
    low = 0
    high = 0
    end = at + n_bytes
    while at + 32 <= end:
        a, b, c, d = load64(at), load64(at + 8), load64(at + 16), load64(at + 24)
        low += (a & 0xFFFF_FFFF) + (b & 0xFFFF_FFFF) + (c & 0xFFFF_FFFF) + (d & 0xFFFF_FFFF)
        high += shift_right(a, 32) + shift_right(b, 32) + shift_right(c, 32) + shift_right(d, 32)
        at += 32
    while at + 4 <= end:
        low += load32(at)
        at += 4
    if at + 2 <= end:
        low += load16(at)
        at += 2
    if at < end:
        low += load8(at)
    words = fold(fold(low) + fold(high))
    return (words & 0xFF) << 8 | words >> 8


@kernel
def sum_pseudo(packet: int, l3: int, is_ip6: int, protocol: int, n_bytes: int) -> int:
    """Sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) of a segment of `n_bytes`, not folded."""
    ends = sum_words(packet + l3 + IP6_SOURCE, 32) if is_ip6 else sum_words(packet + l3 + IP_SOURCE, 8)
    return ends + protocol + n_bytes


@kernel
def is_routed(packet: int, l3: int, l4: int) -> int:
    """1: IPv6 to where only its routing header names, so that `sum_pseudo` does not apply. The chain up to `l4` is there."""
    protocol, at = load8(packet + l3 + IP6_NEXT), l3 + IP6_BYTES
    for _ in range(MAX_CHAIN + 2):
        if at >= l4 or not (is_extension(protocol) or protocol == FRAGMENT):
            return 0
        if protocol == ROUTING and load8(packet + at + _SEGMENTS_LEFT):
            return 1
        found = next_of(protocol, at, 1, packet, l4)
        if found < 0:
            return 0
        protocol, at = protocol_in(found), offset_in(found)
    return 0


@kernel
def write_ip_checksum(header: int, n_bytes: int) -> None:
    """Of an IPv4 header of `n_bytes`, RFC 791."""
    store_be16(header + IP_CHECKSUM, 0)
    store_be16(header + IP_CHECKSUM, ~sum_words(header, n_bytes))


@kernel
def transport_checksum(protocol: int, total: int) -> int:
    """What belongs in the header whose sum, its checksum taken for 0, is `total`. UDP writes all ones for 0 (RFC 768), TCP does not."""
    checksum = ~fold(total) & 0xFFFF
    return 0xFFFF if checksum == 0 and protocol == UDP else checksum
