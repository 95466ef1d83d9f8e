"""Which frames a block has: a row for each tool that wants a packet and can be served.

`numbers`, int64[TOOLS], is private: `list_frames` leaves the number of frames of each tool in it, `tickets.take_tickets` turns that into
the number of the first, and `headers.write_headers` counts on.
"""

from __future__ import annotations

from broker.core import layout
from broker.core.layout import TOOLS
from broker.core.metrics import index
from stages.encapsulate import templates
from stages.encapsulate.patches import SHARE_BY_TOOL, WINDOW_IP
from stages.encapsulate.windows import find_ip
from stages.jit import kernel
from stages.memory import add64, load32, load64, shift_right, store16, store32, store64, trailing_zeros

assert layout.BLOCK.fields is not None
assert layout.PACKET.fields is not None
assert layout.VERDICT.fields is not None
assert layout.FRAME.fields is not None
assert templates.TEMPLATE.fields is not None

_N_PACKETS, _N_FRAMES, _HEADERS_USED = (layout.BLOCK.fields[f][1] for f in ("n_packets", "n_frames", "headers_used"))

_PACKET_BYTES = layout.PACKET.itemsize
_PACKET_DATA_AT, _PACKET_CAPLEN, _PACKET_WIRELEN = (layout.PACKET.fields[f][1] for f in ("data_at", "caplen", "wirelen"))

_VERDICT_BYTES = layout.VERDICT.itemsize
_VERDICT_BITS, _VERDICT_FLOW = (layout.VERDICT.fields[f][1] for f in ("verdict", "flow"))

_FRAME_BYTES = layout.FRAME.itemsize
_FRAME_PACKET, _FRAME_TOOL, _FRAME_HEADER_LEN, _FRAME_HEADER_AT, _FRAME_DATA_AT, _FRAME_DATA_LEN, _FRAME_SHARE, _FRAME_WIRELEN = (
    layout.FRAME.fields[f][1] for f in ("packet", "tool", "header_len", "header_at", "data_at", "data_len", "share", "wirelen")
)

_TEMPLATE_BYTES = templates.TEMPLATE.itemsize
_KNOWN, _HEADER_LEN, _PATCHES, _MAX_DATA_LEN = (templates.TEMPLATE.fields[f][1] for f in ("known", "header_len", "patches", "max_data_len"))

_FRAMED_FRAMES, _FRAMED_BYTES, _TOO_LONG, _NOT_IP, _NO_ROOM, _NO_TOOL, _DAMAGED = (
    index("encapsulate", name)
    for name in (
        "framed_frames", "framed_bytes", "dropped_too_long", "dropped_not_ip", "dropped_no_room", "dropped_no_tool",
        "dropped_damaged_packet",
    )
)  # fmt: skip


@kernel
def list_frames(
    block_at: int,
    packets_at: int,
    verdicts_at: int,
    frames_at: int,
    max_packets: int,
    max_frames: int,
    header_bytes: int,
    block_data_at: int,
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
            skip = 0
            if load32(template + _PATCHES) & WINDOW_IP and data_at + data_len <= data_bytes:
                skip = find_ip(block_data_at + data_at, data_len)
            if load32(template + _KNOWN) == 0:
                add64(counters + 8 * _NO_TOOL, 1)
            elif data_at + data_len > data_bytes:
                add64(counters + 8 * _DAMAGED, 1)
            elif skip < 0:
                add64(counters + 8 * _NOT_IP, 1)
            elif data_len - skip > load32(template + _MAX_DATA_LEN):
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
                store32(frame + _FRAME_DATA_AT, data_at + skip)
                store32(frame + _FRAME_DATA_LEN, data_len - skip)
                store32(frame + _FRAME_SHARE, share)
                wirelen = load32(packet + _PACKET_WIRELEN)  # bare, it stays as it was read, even where a file says less than it holds
                store32(frame + _FRAME_WIRELEN, header_len - skip + (max(wirelen, data_len) if header_len else wirelen))
                add64(numbers_at + 8 * tool, 1)
                add64(counters + 8 * _FRAMED_BYTES, header_len + data_len - skip)
                n_frames += 1
                headers_used += header_len
    for tool in range(TOOLS):
        add64(counters_at + 8 * (_FRAMED_FRAMES + tool), load64(numbers_at + 8 * tool))
    store64(block_at + _N_FRAMES, n_frames)
    store64(block_at + _HEADERS_USED, headers_used)
    return n_frames
