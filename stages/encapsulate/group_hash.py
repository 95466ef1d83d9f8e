"""Which bucket of a group a packet falls into: by its addresses, protocol and ports, or by those of what it carries in a tunnel."""

from __future__ import annotations

from broker.core import layout
from stages.encapsulate.layers import (
    STRIP_ERSPAN,
    STRIP_GENEVE,
    STRIP_GRE,
    STRIP_GTP,
    STRIP_IPIP,
    STRIP_MPLS,
    STRIP_VXLAN,
    head_len_of,
    strip_layers,
    window_at_of,
    window_end_of,
)
from stages.encapsulate.plan import DATA, DATA_BYTES, PACKET_BYTES, PACKET_CAPLEN, PACKET_DATA_AT, PACKETS, SCRATCH
from stages.encapsulate.ways import BUCKETS, WAY
from stages.jit import kernel
from stages.memory import copy, load16, load32, load64, mix, store32
from stages.wire.flow import flow_hash
from stages.wire.key import KEY
from stages.wire.parse import parse_packets

assert WAY.fields is not None
assert KEY.fields is not None
assert layout.PACKET.fields is not None
_BALANCE, _OF_INNER = WAY.fields["balance"][1], WAY.fields["of_inner"][1]
_SOURCE, _DESTINATION = KEY.fields["source_high"][1], KEY.fields["destination_high"][1]
_FLOW, _PROTOCOL = KEY.fields["flow"][1], KEY.fields["protocol"][1]
_FIVE, _THREE = 0, 1

_TUNNELS = STRIP_GRE | STRIP_ERSPAN | STRIP_VXLAN | STRIP_GENEVE | STRIP_GTP | STRIP_MPLS | STRIP_IPIP
_LOOKED_AT = 320  # bytes of an inner packet: Ethernet, tags, IPv6 and its chain
_SEED = 0x3F84D5B5B5470917

# in the scratch memory: a KEY row, a PACKET row, a frame
_PACKET_AT = KEY.itemsize
_FRAME_AT = 2 * KEY.itemsize


@kernel
def bucket_of(plan: int, way: int, p: int, flow: int) -> int:
    """0..BUCKETS - 1; both directions of a flow, and all fragments of a datagram, fall into the same. `flow`: that of the verdict, which
    decides too where a packet does not lie within the block."""
    balance, packet = load64(way + _BALANCE), load64(plan + PACKETS) + p * PACKET_BYTES
    is_there = load32(packet + PACKET_DATA_AT) + load32(packet + PACKET_CAPLEN) <= load64(plan + DATA_BYTES)
    if is_there and (load64(way + _OF_INNER) or balance != _FIVE):
        flow = _hash_of(plan, p, balance, load64(way + _OF_INNER))
    return mix(flow ^ _SEED, _SEED) & (BUCKETS - 1)


@kernel
def _hash_of(plan: int, p: int, balance: int, of_inner: int) -> int:
    row = load64(plan + SCRATCH)
    packet = load64(plan + PACKETS) + p * PACKET_BYTES
    frame, caplen = load64(plan + DATA) + load32(packet + PACKET_DATA_AT), load32(packet + PACKET_CAPLEN)
    head_len, window_at, window_end = 0, 0, caplen
    if of_inner:
        shape = strip_layers(frame, caplen, _TUNNELS, row + _FRAME_AT)
        head_len, window_at, window_end = head_len_of(shape), window_at_of(shape), min(window_end_of(shape), caplen)
    n = max(0, min(window_end - window_at, _LOOKED_AT))
    copy(row + _FRAME_AT + head_len, frame + window_at, n)
    store32(row + _PACKET_AT + PACKET_DATA_AT, 0)
    store32(row + _PACKET_AT + PACKET_CAPLEN, head_len + n)
    parse_packets(row + _PACKET_AT, 0, 1, row + _FRAME_AT, head_len + n, row)
    if balance == _FIVE:
        return load32(row + _FLOW)
    protocol = load16(row + _PROTOCOL) if balance == _THREE else 0
    return flow_hash(
        load64(row + _SOURCE), load64(row + _SOURCE + 8), 0, load64(row + _DESTINATION), load64(row + _DESTINATION + 8), 0, protocol
    )
