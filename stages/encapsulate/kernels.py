"""Frames and their outer headers: list them, number them, write them.

All work on one block; addresses and sizes are those of its `Batch`.

`numbers`, int64[TOOLS], is private: `list_frames` leaves the number of frames of each tool in it, `take_tickets` turns that into the
number of the first, and `write_headers` counts on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from broker.core import layout
from broker.core.layout import TOOLS
from broker.core.metrics import index
from stages.encapsulate import templates
from stages.encapsulate.checksum import fold, sum_words
from stages.encapsulate.templates import (
    FIRST_FLOW_PORT,
    HEADER_ROOM,
    PATCH_CHECKSUM,
    PATCH_IPV4,
    PATCH_IPV6,
    PATCH_SEQUENCE,
    PATCH_SOURCE_PORT,
    PATCH_UDP,
    PATCH_UDP_CHECKSUM,
    SHARE_BY_TOOL,
)
from stages.jit import kernel
from stages.memory import (
    add64,
    copy,
    fetch_add,
    load16,
    load32,
    load64,
    load_acquire,
    shift_right,
    store16,
    store32,
    store64,
    store_be16,
    store_be32,
    store_release,
    trailing_zeros,
)


def _offset(dtype: np.dtype[Any], field: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[field][1])


_N_PACKETS, _N_FRAMES, _HEADERS_USED = (_offset(layout.BLOCK, f) for f in ("n_packets", "n_frames", "headers_used"))

_PACKET_BYTES = layout.PACKET.itemsize
_PACKET_DATA_AT, _PACKET_CAPLEN = (_offset(layout.PACKET, f) for f in ("data_at", "caplen"))

_VERDICT_BYTES = layout.VERDICT.itemsize
_VERDICT_BITS, _VERDICT_FLOW = (_offset(layout.VERDICT, f) for f in ("verdict", "flow"))

_FRAME_BYTES = layout.FRAME.itemsize
_FRAME_PACKET, _FRAME_TOOL, _FRAME_HEADER_LEN, _FRAME_HEADER_AT, _FRAME_DATA_AT, _FRAME_DATA_LEN, _FRAME_SHARE = (
    _offset(layout.FRAME, f) for f in ("packet", "tool", "header_len", "header_at", "data_at", "data_len", "share")
)

_TICKET_BYTES = layout.TICKET.itemsize
_TICKET_FIRST = _offset(layout.TICKET, "first")

_TEMPLATE_BYTES = templates.TEMPLATE.itemsize
_KNOWN, _HEADER_LEN, _PATCHES, _MAX_DATA_LEN, _IP_LEN, _TUNNEL_AT, _CHECKSUM_AT, _SEQUENCE_AT, _IP_SUM, _PSEUDO_SUM = (
    _offset(templates.TEMPLATE, f)
    for f in (
        "known", "header_len", "patches", "max_data_len", "ip_len", "tunnel_at", "checksum_at", "sequence_at", "ip_sum", "pseudo_sum",
    )
)  # fmt: skip

_FRAMED_FRAMES, _FRAMED_BYTES, _TOO_LONG, _NO_ROOM, _NO_TOOL, _DAMAGED = (
    index("encapsulate", name)
    for name in (
        "framed_frames", "framed_bytes", "dropped_too_long", "dropped_no_room", "dropped_no_tool", "dropped_damaged_packet",
    )
)  # fmt: skip

_IPV6_HEADER = 40  # not part of the payload length
_ANY_CHECKSUM = PATCH_CHECKSUM | PATCH_UDP_CHECKSUM


@kernel
def list_frames(
    block_at: int,
    packets_at: int,
    verdicts_at: int,
    frames_at: int,
    max_packets: int,
    max_frames: int,
    header_bytes: int,
    data_bytes: int,
    templates_at: int,
    numbers_at: int,
    counters_at: int,
) -> int:
    """Write a FRAME row for each set verdict bit that can be served, in packet order, tools in slot order; count the others by reason.

    Returns the number of frames; the block gets it too, with the header bytes they need. `numbers` gets the frames of each tool.
    """
    n_packets = min(max(load64(block_at + _N_PACKETS), 0), max_packets)
    n_frames = 0
    headers_used = 0
    for tool in range(TOOLS):
        store64(numbers_at + 8 * tool, 0)
    for p in range(n_packets):
        verdict = verdicts_at + p * _VERDICT_BYTES
        bits = load64(verdict + _VERDICT_BITS)
        if bits == 0:
            continue
        packet = packets_at + p * _PACKET_BYTES
        data_at = load32(packet + _PACKET_DATA_AT)
        data_len = load32(packet + _PACKET_CAPLEN)
        tool = -1
        while bits != 0:
            step = trailing_zeros(bits)
            tool += step + 1
            bits = shift_right(shift_right(bits, step), 1)  # by 64 at once would be undefined
            counters = counters_at + 8 * tool
            template = templates_at + tool * _TEMPLATE_BYTES
            header_len = load32(template + _HEADER_LEN)
            if load32(template + _KNOWN) == 0:
                add64(counters + 8 * _NO_TOOL, 1)
            elif data_at + data_len > data_bytes:
                add64(counters + 8 * _DAMAGED, 1)
            elif data_len > load32(template + _MAX_DATA_LEN):
                add64(counters + 8 * _TOO_LONG, 1)
            elif n_frames == max_frames or headers_used + header_len > header_bytes:
                add64(counters + 8 * _NO_ROOM, 1)
            else:
                frame = frames_at + n_frames * _FRAME_BYTES
                share = tool if load32(template + _PATCHES) & SHARE_BY_TOOL else load32(verdict + _VERDICT_FLOW)
                store32(frame + _FRAME_PACKET, p)
                store16(frame + _FRAME_TOOL, tool)
                store16(frame + _FRAME_HEADER_LEN, header_len)
                store32(frame + _FRAME_HEADER_AT, headers_used)
                store32(frame + _FRAME_DATA_AT, data_at)
                store32(frame + _FRAME_DATA_LEN, data_len)
                store32(frame + _FRAME_SHARE, share)
                add64(numbers_at + 8 * tool, 1)
                add64(counters + 8 * _FRAMED_BYTES, header_len + data_len)
                n_frames += 1
                headers_used += header_len
    for tool in range(TOOLS):
        add64(counters_at + 8 * (_FRAMED_FRAMES + tool), load64(numbers_at + 8 * tool))
    store64(block_at + _N_FRAMES, n_frames)
    store64(block_at + _HEADERS_USED, headers_used)
    return n_frames


@kernel
def tickets_reached(tickets_at: int, n_rows: int, seq: int) -> int:
    """1 if block `seq` may take its numbers: the block before it has taken its own."""
    if seq == 0:
        return 1
    return 1 if load_acquire(tickets_at + (seq - 1) % n_rows * _TICKET_BYTES) == seq else 0


@kernel
def take_tickets(tickets_at: int, n_rows: int, seq: int, tool_sequence_at: int, numbers_at: int) -> None:
    """Turn the counts in `numbers` into first numbers, once for block `seq` however often it is done again.

    Lanes share the numbers of a tool, so they are taken with fetch_add; a worker killed between that and the store of its row leaves a
    gap, which the receiver takes for the loss of one block.
    """
    row = tickets_at + seq % n_rows * _TICKET_BYTES
    again = load_acquire(row) == seq + 1
    for tool in range(TOOLS):
        n = load64(numbers_at + 8 * tool)
        if n != 0:
            first_at = row + _TICKET_FIRST + 8 * tool
            if not again:
                store64(first_at, fetch_add(tool_sequence_at + 8 * tool, n))
            store64(numbers_at + 8 * tool, load64(first_at))
    if not again:
        store_release(row, seq + 1)


@kernel
def write_headers(
    frames_at: int, n_frames: int, headers_at: int, data_at: int, verdicts_at: int, templates_at: int, numbers_at: int
) -> None:
    """Write the outer header of each of the frames that `list_frames` has just listed (and bounded)."""
    for f in range(n_frames):
        frame = frames_at + f * _FRAME_BYTES
        tool = load16(frame + _FRAME_TOOL) & (TOOLS - 1)
        template = templates_at + tool * _TEMPLATE_BYTES
        patches = load32(template + _PATCHES)
        if patches & (PATCH_IPV4 | PATCH_IPV6) == 0:  # bare
            continue
        header_len = load32(template + _HEADER_LEN)
        header = headers_at + load32(frame + _FRAME_HEADER_AT)
        total_len = header_len + load32(frame + _FRAME_DATA_LEN)
        number = load64(numbers_at + 8 * tool)
        store64(numbers_at + 8 * tool, number + 1)
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
                flow = load32(verdicts_at + load32(frame + _FRAME_PACKET) * _VERDICT_BYTES + _VERDICT_FLOW)
                store_be16(udp, FIRST_FLOW_PORT + (flow & (65_536 - FIRST_FLOW_PORT - 1)))
        if patches & _ANY_CHECKSUM:
            write_checksums(template, header, data_at + load32(frame + _FRAME_DATA_AT), total_len - header_len)


@kernel
def write_checksums(template: int, header: int, data: int, data_len: int) -> None:
    """The GRE checksum (RFC 2784 section 2.3), and then the UDP checksum over it (RFC 768; RFC 8200 section 8.1), as the template asks."""
    patches = load32(template + _PATCHES)
    header_len = load32(template + _HEADER_LEN)
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
