"""Where the headers of a layer begin, as one number: offsets of link-layer header, ethertype and payload, from the start of the frame.

A packet that a tunnel carries without a link-layer header has NO_LINK in its place. Where nothing but its own first four bits says what it
is, the ethertype's offset is that of the payload. Offsets may lie beyond the frame's end: who reads there asks `caplen`.
"""

from __future__ import annotations

from stages.jit import kernel
from stages.wire.headers import ETHERNET_BYTES, ETHERTYPE

_BITS = 20
_OFFSET = (1 << _BITS) - 1
NO_LINK = _OFFSET


@kernel
def pack_place(link: int, type_: int, payload: int) -> int:
    return link << 2 * _BITS | type_ << _BITS | payload


@kernel
def ethernet_place(at: int) -> int:
    return pack_place(at, at + ETHERTYPE, at + ETHERNET_BYTES)


@kernel
def bare_place(at: int) -> int:
    """IPv4 or IPv6, as its first four bits say."""
    return pack_place(NO_LINK, at, at)


@kernel
def link_at(place: int) -> int:
    return place >> 2 * _BITS


@kernel
def type_at(place: int) -> int:
    return place >> _BITS & _OFFSET


@kernel
def payload_at(place: int) -> int:
    return place & _OFFSET
