"""Internet checksums of the headers of packets that were changed; the sums themselves are in `wire`, since receivers verify them too."""

from __future__ import annotations

from stages.jit import kernel
from stages.memory import load8, store_be16
from stages.wire.chain import is_extension
from stages.wire.checksum import fold, sum_words
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

__all__ = ["fold", "is_routed", "sum_pseudo", "sum_words", "transport_checksum", "write_ip_checksum"]

_SEGMENTS_LEFT = 3  # of a routing header, RFC 8200 section 4.4


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
