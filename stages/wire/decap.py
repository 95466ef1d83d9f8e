"""What an endpoint makes of a packet that was sent to it through a tunnel: checked as a receiver has to, and where the frame inside begins.

(`tunnel.py` looks into tunnels that pass by: it finds what it can and refuses nothing.)

| tunnel | header, source | refused when |
|---|---|---|
| GRE | RFC 2784, key and sequence number RFC 2890; protocol 0x6558 carries Ethernet (NVGRE, RFC 7637: with a key), 0x0800 and 0x86dd IP | \
bits 1, 4 and 5 (RFC 2784 section 2.1), another version, a checksum that is wrong |
| ERSPAN | GRE 0x88be without sequence number (type I), with one (type II, version 1); 0x22eb (type III, version 2); \
draft-foschiano-erspan-03 | another version |
| VXLAN | RFC 7348 | no VNI, or the bit that says that the inside need not be Ethernet (VXLAN-GPE) |
| Geneve | RFC 8926; options are stepped over | another version, control packets, critical options (section 3.5: none is understood) |

A packet that is carried without an Ethernet header gets one: 14 bytes are written over the end of the tunnel header, both addresses
00:00:00:00:00:00, as on a loopback interface, and the ethertype of its IP version. An ERSPAN header that says which VLAN tag the switch
has taken off a frame changes nothing in the frame.
"""

from __future__ import annotations

import numpy as np

from stages.jit import kernel
from stages.memory import load8, load_be16, load_be32, store64, store_be16, store_be32
from stages.wire.checksum import sum_words
from stages.wire.headers import ETH_IP, ETH_IP6, ETHERNET_BYTES, IP6_BYTES, IP_BYTES

LISTEN_GRE, LISTEN_VXLAN, LISTEN_GENEVE = range(3)
"""What an endpoint takes; GRE in UDP (RFC 8086) is GRE to it."""

TAKEN, MALFORMED, PROTOCOL, CHECKSUM = range(4)
"""What `decapsulate` returns: malformed (contradicts itself, or is too short), a protocol, version or option that is not known, a checksum
that is wrong."""

KIND_GRE, KIND_ERSPAN1, KIND_ERSPAN2, KIND_ERSPAN3, KIND_VXLAN, KIND_GENEVE = range(6)
NONE = -1

INSIDE = np.dtype([(name, "<i8") for name in ("at", "kind", "key", "session", "sequence", "stamp", "stamp_ns")])
"""What was found, *written* by `decapsulate`: `at`: offset of the frame inside from the tunnel header, -10 at least; `kind`: KIND_*;
`key` of GRE, `session`: VNI, or session id of ERSPAN; `sequence`: 32 bits; `stamp`: 32 bits, in units of `stamp_ns`. NONE: it has none."""

HEADROOM = 16
"""Writable bytes that must lie before the tunnel header, for the Ethernet header of a packet that has none."""

assert INSIDE.fields is not None
_AT, _KIND, _KEY, _SESSION, _SEQUENCE, _STAMP, _STAMP_NS = (INSIDE.fields[name][1] for name in INSIDE.names or ())

_ETHERNET, _ERSPAN, _ERSPAN3 = 0x6558, 0x88BE, 0x22EB
_GRE_CHECKSUM, _GRE_KEY, _GRE_SEQUENCE, _GRE_REFUSED, _GRE_VERSION = 0x8000, 0x2000, 0x1000, 0x4C00, 7
_ERSPAN2_BYTES, _ERSPAN3_BYTES, _ERSPAN3_MORE_BYTES, _SESSION_BITS = 8, 12, 8, 0x3FF
_VERSION2, _VERSION3 = 1, 2  # as the header has them
_ERSPAN3_IP, _ERSPAN3_ETHERNET = 2, 0
_UNITS_NS = (100_000, 100)  # of the granularities 0 and 1; 2 is IEEE 1588, 3 the switch's own
_VXLAN_BYTES, _VXLAN_HAS_VNI, _VXLAN_HAS_TYPE = 8, 0x08, 0x04
_GENEVE_BYTES, _GENEVE_CONTROL, _GENEVE_CRITICAL = 8, 0x80, 0x40


@kernel
def _carries(tunnel: int, at: int, n_bytes: int, protocol: int, inside: int) -> int:
    """The frame inside begins at offset `at`, or the packet that gets its Ethernet header here."""
    if protocol == _ETHERNET:
        store64(inside + _AT, at)
        return TAKEN if n_bytes >= at + ETHERNET_BYTES else MALFORMED
    if protocol != ETH_IP and protocol != ETH_IP6:
        return PROTOCOL
    if n_bytes < at + (IP_BYTES if protocol == ETH_IP else IP6_BYTES) or load8(tunnel + at) >> 4 != (4 if protocol == ETH_IP else 6):
        return MALFORMED
    at -= ETHERNET_BYTES
    store_be32(tunnel + at, 0)
    store_be32(tunnel + at + 4, 0)
    store_be32(tunnel + at + 8, 0)
    store_be16(tunnel + at + 12, protocol)
    store64(inside + _AT, at)
    return TAKEN


@kernel
def _erspan3(tunnel: int, at: int, n_bytes: int, inside: int) -> int:
    if n_bytes < at + _ERSPAN3_BYTES:
        return MALFORMED
    if load8(tunnel + at) >> 4 != _VERSION3:
        return PROTOCOL
    bits = load_be16(tunnel + at + 10)
    type_, granularity = bits >> 10 & 0x1F, bits >> 1 & 3
    store64(inside + _KIND, KIND_ERSPAN3)
    store64(inside + _SESSION, load_be16(tunnel + at + 2) & _SESSION_BITS)
    if granularity <= 1:
        store64(inside + _STAMP, load_be32(tunnel + at + 4))
        store64(inside + _STAMP_NS, _UNITS_NS[granularity])
    frame = at + _ERSPAN3_BYTES + (_ERSPAN3_MORE_BYTES if bits & 1 else 0)
    if type_ == _ERSPAN3_ETHERNET:
        return _carries(tunnel, frame, n_bytes, _ETHERNET, inside)
    if type_ != _ERSPAN3_IP:
        return PROTOCOL
    if n_bytes <= frame:
        return MALFORMED
    return _carries(tunnel, frame, n_bytes, ETH_IP6 if load8(tunnel + frame) >> 4 == 6 else ETH_IP, inside)


@kernel
def _gre(tunnel: int, n_bytes: int, inside: int) -> int:
    if n_bytes < 4:
        return MALFORMED
    flags, protocol, at = load_be16(tunnel), load_be16(tunnel + 2), 4
    if flags & _GRE_VERSION:
        return PROTOCOL
    if flags & _GRE_REFUSED:
        return MALFORMED
    length = 4 + (4 if flags & _GRE_CHECKSUM else 0) + (4 if flags & _GRE_KEY else 0) + (4 if flags & _GRE_SEQUENCE else 0)
    if n_bytes < length:
        return MALFORMED
    store64(inside + _KIND, KIND_GRE)
    if flags & _GRE_CHECKSUM:
        if sum_words(tunnel, n_bytes) != 0xFFFF:
            return CHECKSUM
        at += 4
    if flags & _GRE_KEY:
        store64(inside + _KEY, load_be32(tunnel + at))
        at += 4
    if flags & _GRE_SEQUENCE:
        store64(inside + _SEQUENCE, load_be32(tunnel + at))
        at += 4
    if protocol == _ERSPAN3:
        return _erspan3(tunnel, at, n_bytes, inside)
    if protocol != _ERSPAN:
        return _carries(tunnel, at, n_bytes, protocol, inside)
    if flags & _GRE_SEQUENCE == 0:
        store64(inside + _KIND, KIND_ERSPAN1)
        return _carries(tunnel, at, n_bytes, _ETHERNET, inside)
    if n_bytes < at + _ERSPAN2_BYTES:
        return MALFORMED
    if load8(tunnel + at) >> 4 != _VERSION2:
        return PROTOCOL
    store64(inside + _KIND, KIND_ERSPAN2)
    store64(inside + _SESSION, load_be16(tunnel + at + 2) & _SESSION_BITS)
    return _carries(tunnel, at + _ERSPAN2_BYTES, n_bytes, _ETHERNET, inside)


@kernel
def _vxlan(tunnel: int, n_bytes: int, inside: int) -> int:
    if n_bytes < _VXLAN_BYTES:
        return MALFORMED
    flags = load8(tunnel)
    if flags & _VXLAN_HAS_VNI == 0:
        return MALFORMED
    if flags & _VXLAN_HAS_TYPE:
        return PROTOCOL
    store64(inside + _KIND, KIND_VXLAN)
    store64(inside + _SESSION, load_be32(tunnel + 4) >> 8)
    return _carries(tunnel, _VXLAN_BYTES, n_bytes, _ETHERNET, inside)


@kernel
def _geneve(tunnel: int, n_bytes: int, inside: int) -> int:
    if n_bytes < _GENEVE_BYTES:
        return MALFORMED
    first, bits = load8(tunnel), load8(tunnel + 1)
    if first >> 6 != 0 or bits & (_GENEVE_CONTROL | _GENEVE_CRITICAL):
        return PROTOCOL
    store64(inside + _KIND, KIND_GENEVE)
    store64(inside + _SESSION, load_be32(tunnel + 4) >> 8)
    return _carries(tunnel, _GENEVE_BYTES + 4 * (first & 0x3F), n_bytes, load_be16(tunnel + 2), inside)


@kernel
def decapsulate(listen: int, tunnel: int, n_bytes: int, inside: int) -> int:
    """The `n_bytes` at address `tunnel`, which begin with the tunnel header. TAKEN, and INSIDE[1] at `inside` is *written*; or why not.

    Only a packet without an Ethernet header is changed: HEADROOM before `tunnel` must be writable.
    """
    store64(inside + _KEY, NONE)
    store64(inside + _SESSION, NONE)
    store64(inside + _SEQUENCE, NONE)
    store64(inside + _STAMP, NONE)
    if listen == LISTEN_GRE:
        return _gre(tunnel, n_bytes, inside)
    return _vxlan(tunnel, n_bytes, inside) if listen == LISTEN_VXLAN else _geneve(tunnel, n_bytes, inside)
