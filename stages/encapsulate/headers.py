"""The outer header of each frame: a tool's template, and what changes from frame to frame."""

from __future__ import annotations

from broker.core import layout
from broker.core.layout import TOOLS
from stages.encapsulate import templates
from stages.encapsulate.checksum import fold, sum_words
from stages.encapsulate.patches import (
    PATCH_CHECKSUM,
    PATCH_ERSPAN,
    PATCH_FLOW_ID,
    PATCH_IPV4,
    PATCH_IPV6,
    PATCH_SEQUENCE,
    PATCH_SOURCE_PORT,
    PATCH_SUBHEADER,
    PATCH_TIMESTAMP,
    PATCH_UDP,
    PATCH_UDP_CHECKSUM,
    WINDOW_IP,
)
from stages.encapsulate.templates import FIRST_FLOW_PORT, HEADER_ROOM
from stages.jit import kernel
from stages.memory import copy, load8, load16, load32, load64, load_be16, load_be32, store8, store64, store_be16, store_be32
from stages.wire.headers import ETH_IP, ETH_IP6, ETH_QINQ, ETH_VLAN, ETHERNET_BYTES, ETHERTYPE, TAG_BYTES

assert layout.PACKET.fields is not None
assert layout.VERDICT.fields is not None
assert layout.FRAME.fields is not None
assert templates.TEMPLATE.fields is not None

_PACKET_BYTES, _PACKET_TS_NS = layout.PACKET.itemsize, layout.PACKET.fields["ts_ns"][1]
_VERDICT_BYTES, _VERDICT_FLOW = layout.VERDICT.itemsize, layout.VERDICT.fields["flow"][1]

_FRAME_BYTES = layout.FRAME.itemsize
_FRAME_PACKET, _FRAME_TOOL, _FRAME_HEADER_LEN, _FRAME_HEADER_AT, _FRAME_DATA_AT, _FRAME_DATA_LEN, _FRAME_WIRELEN = (
    layout.FRAME.fields[f][1] for f in ("packet", "tool", "header_len", "header_at", "data_at", "data_len", "wirelen")
)

_TEMPLATE_BYTES = templates.TEMPLATE.itemsize
_HEADER_LEN, _PATCHES, _IP_LEN, _TUNNEL_AT, _CHECKSUM_AT, _SEQUENCE_AT, _IP_SUM, _PSEUDO_SUM, _TAG_MASK, _TICK_NS = (
    templates.TEMPLATE.fields[f][1]
    for f in (
        "header_len", "patches", "ip_len", "tunnel_at", "checksum_at", "sequence_at", "ip_sum", "pseudo_sum", "tag_mask", "tick_ns",
    )
)  # fmt: skip

_SHORT = 32  # GRE with a key over IPv4
_IPV6_HEADER = 40  # not part of the payload length
_ANY_CHECKSUM = PATCH_CHECKSUM | PATCH_UDP_CHECKSUM
_RARE = WINDOW_IP | PATCH_FLOW_ID | PATCH_ERSPAN
_GRE_TYPE, _NVGRE_FLOW_ID = 2, 7
_ERSPAN = 4  # behind the sequence number
_TIMESTAMP, _UPPER_TIMESTAMP = _ERSPAN + 4, _ERSPAN + 16
_TRUNCATED = 0x400
_TAG_IS_IN_THE_FRAME = 3 << 11
_SECOND_NS = 1_000_000_000
_NO_TAG = -1


@kernel
def write_headers(
    frames_at: int,
    n_frames: int,
    headers_at: int,
    data_at: int,
    packets_at: int,
    verdicts_at: int,
    templates_at: int,
    numbers_at: int,
) -> None:
    """Write the outer header of each of the frames that `list_frames` has just listed (and bounded)."""
    for f in range(n_frames):
        frame = frames_at + f * _FRAME_BYTES
        tool = load16(frame + _FRAME_TOOL) & (TOOLS - 1)
        template = templates_at + tool * _TEMPLATE_BYTES
        patches = load32(template + _PATCHES)
        if patches & (PATCH_IPV4 | PATCH_IPV6) == 0:  # bare
            continue
        header_len = load16(frame + _FRAME_HEADER_LEN)
        header = headers_at + load32(frame + _FRAME_HEADER_AT)
        total_len = header_len + load32(frame + _FRAME_DATA_LEN)
        data = data_at + load32(frame + _FRAME_DATA_AT)
        packet = load32(frame + _FRAME_PACKET)
        number = load64(numbers_at + 8 * tool)
        store64(numbers_at + 8 * tool, number + 1)
        if header_len != load32(template + _HEADER_LEN):  # a head of the packet lies behind it already
            copy(header, template, load32(template + _HEADER_LEN))
        elif header_len <= _SHORT:  # constant lengths are a few instructions
            copy(header, template, _SHORT)
        else:
            copy(header, template, HEADER_ROOM)
        if patches & PATCH_IPV4:
            identification = number & 0xFFFF
            store_be16(header + 2, total_len)
            store_be16(header + 4, identification)
            store_be16(header + 10, ~fold(load32(template + _IP_SUM) + total_len + identification))
        else:
            store_be16(header + 4, total_len - _IPV6_HEADER)
        if patches & PATCH_SEQUENCE:
            store_be32(header + load32(template + _SEQUENCE_AT), number)
        if patches & PATCH_UDP:
            udp = header + load32(template + _IP_LEN)
            store_be16(udp + 4, header + total_len - udp)
            if patches & PATCH_SOURCE_PORT:
                flow = load32(verdicts_at + packet * _VERDICT_BYTES + _VERDICT_FLOW)
                store_be16(udp, FIRST_FLOW_PORT + (flow & (65_536 - FIRST_FLOW_PORT - 1)))
        if patches & _RARE:
            outer_len = load32(template + _HEADER_LEN)
            head, head_len = header + outer_len, header_len - outer_len
            if patches & PATCH_ERSPAN:
                truncated = load32(frame + _FRAME_WIRELEN) > total_len
                tci = _outer_tag(head, head_len, data) if total_len - outer_len >= ETHERNET_BYTES + TAG_BYTES else _NO_TAG
                write_erspan(template, header, tci, truncated, packets_at + packet * _PACKET_BYTES)
            elif patches & PATCH_FLOW_ID:
                store8(
                    header + load32(template + _TUNNEL_AT) + _NVGRE_FLOW_ID, load32(verdicts_at + packet * _VERDICT_BYTES + _VERDICT_FLOW)
                )
            else:
                store_be16(
                    header + load32(template + _TUNNEL_AT) + _GRE_TYPE, ETH_IP if load8(head if head_len else data) >> 4 == 4 else ETH_IP6
                )
        if patches & _ANY_CHECKSUM:
            write_checksums(template, header, header_len, data, total_len - header_len)


@kernel
def _outer_tag(head: int, head_len: int, data: int) -> int:
    """TCI of the outer 802.1Q or 802.1ad tag of the frame that leaves, which begins with its head and is long enough for one; _NO_TAG."""
    type_at = head + ETHERTYPE if head_len > ETHERTYPE else data + ETHERTYPE - head_len
    if load_be16(type_at) not in (ETH_VLAN, ETH_QINQ):
        return _NO_TAG
    return load_be16(head + ETHERNET_BYTES if head_len > ETHERNET_BYTES else data + ETHERNET_BYTES - head_len)


@kernel
def write_erspan(template: int, header: int, tci: int, truncated: int, packet: int) -> None:
    """What differs from frame to frame in ERSPAN II and III (draft-foschiano-erspan-03 sections 4.2, 4.3).

    VLAN, COS and (II) "the tag is still in the frame" are those of the outer tag (`tci`, or _NO_TAG), unless they are configured.
    """
    patches = load32(template + _PATCHES)
    erspan = header + load32(template + _SEQUENCE_AT)
    word = load_be32(erspan + _ERSPAN)
    if truncated:
        word |= _TRUNCATED
    if tci != _NO_TAG:
        word |= ((tci & 0xFFF) << 16 | tci & 0xE000 | _TAG_IS_IN_THE_FRAME) & load32(template + _TAG_MASK)
    store_be32(erspan + _ERSPAN, word)
    if patches & PATCH_TIMESTAMP:
        ts_ns = load64(packet + _PACKET_TS_NS)
        tick_ns = load32(template + _TICK_NS)
        if tick_ns:
            ticks = ts_ns // tick_ns
            upper = ticks >> 32
        else:
            upper = ts_ns // _SECOND_NS
            ticks = ts_ns - upper * _SECOND_NS
        store_be32(erspan + _TIMESTAMP, ticks)
        if patches & PATCH_SUBHEADER:
            store_be32(erspan + _UPPER_TIMESTAMP, upper)


@kernel
def write_checksums(template: int, header: int, header_len: int, data: int, data_len: int) -> None:
    """The GRE checksum (RFC 2784 section 2.3), and then the UDP checksum over it (RFC 768; RFC 8200 section 8.1), as the template asks."""
    patches = load32(template + _PATCHES)
    data_sum = sum_words(data, data_len)  # headers have an even length, so it is a part of both sums as it is
    if patches & PATCH_CHECKSUM:
        tunnel_at = load32(template + _TUNNEL_AT)
        total = data_sum + sum_words(header + tunnel_at, header_len - tunnel_at)
        store_be16(header + load32(template + _CHECKSUM_AT), ~fold(total))
    if patches & PATCH_UDP_CHECKSUM:
        ip_len = load32(template + _IP_LEN)
        udp_len = header_len - ip_len + data_len
        total = data_sum + sum_words(header + ip_len, header_len - ip_len) + load32(template + _PSEUDO_SUM) + udp_len
        checksum = ~fold(total) & 0xFFFF
        store_be16(header + ip_len + 6, checksum if checksum != 0 else 0xFFFF)  # zero means none
