"""Which frames a block has: a row for each tool that wants a packet and can be served.

`numbers`, int64[TOOLS], is private: `list_frames` leaves the number of frames of each tool in it, `tickets.take_tickets` turns that into
the number of the first, and `headers.write_headers` counts on.

What is to be done with packets on their way is in the ROUTE that leads to a tool; one with nothing to do is served here, the others by
`shaped.add_shaped`.
"""

from __future__ import annotations

from broker.core import layout
from broker.core.layout import TOOLS
from broker.core.metrics import index
from stages.encapsulate.group_hash import bucket_of
from stages.encapsulate.patches import SHARE_BY_TOOL, WINDOW_IP
from stages.encapsulate.plan import (
    BLOCK,
    COUNTERS,
    DAMAGED,
    DATA,
    DATA_BYTES,
    FRAME_BYTES,
    FRAMED_BYTES,
    FRAMES,
    GIVEN,
    HEADER_BYTES,
    HEADERS_USED,
    LAST_HEADER,
    MAX_FRAMES,
    MAX_PACKETS,
    MERGED,
    N_FRAMES,
    NO_ROOM,
    NO_TOOL,
    NOT_IP,
    NUMBERS,
    PACKET_BYTES,
    PACKET_CAPLEN,
    PACKET_DATA_AT,
    PACKET_WIRELEN,
    PACKETS,
    ROUTE_BYTES,
    ROUTES,
    SHAPED_USED,
    SHARED,
    TEMPLATE_BYTES,
    TEMPLATE_HEADER_LEN,
    TEMPLATE_KNOWN,
    TEMPLATE_MAX_DATA,
    TEMPLATE_PATCHES,
    TEMPLATES,
    TOO_LONG,
    VERDICT_BITS,
    VERDICT_BYTES,
    VERDICT_FLOW,
    VERDICTS,
    WAY_BYTES,
    WAYS,
    add_frame,
    count,
    has_room,
    original_length,
    write_row,
)
from stages.encapsulate.shaped import add_shaped
from stages.encapsulate.ways import ROUTE, WAY, WAY_ALL, WAY_NONE, WAY_PLAIN, WAY_SHARE
from stages.encapsulate.windows import find_ip
from stages.jit import kernel
from stages.memory import add64, load8, load32, load64, shift_right, store64, trailing_zeros

assert layout.BLOCK.fields is not None
assert WAY.fields is not None
assert ROUTE.fields is not None

_N_PACKETS, _N_FRAMES, _HEADERS_USED = (layout.BLOCK.fields[f][1] for f in ("n_packets", "n_frames", "headers_used"))
_KIND, _FIRST, _N, _BEFORE, _BUCKETS = (WAY.fields[f][1] for f in ("kind", "first", "n", "before", "buckets_at"))
_WAY_TOOL, _WAY_HEADER_LEN, _WAY_MAX_DATA, _WAY_BY_TOOL = (WAY.fields[f][1] for f in ("tool", "header_len", "max_data_len", "by_tool"))
_TOOL, _PLAIN, _ALIVE = (ROUTE.fields[f][1] for f in ("tool", "plain", "alive"))
_FRAMED_FRAMES = index("encapsulate", "framed_frames")


@kernel
def _add_plain(plan: int, p: int, tool: int, flow: int) -> None:
    packet = load64(plan + PACKETS) + p * PACKET_BYTES
    data_at, data_len, wirelen = load32(packet + PACKET_DATA_AT), load32(packet + PACKET_CAPLEN), load32(packet + PACKET_WIRELEN)
    template = load64(plan + TEMPLATES) + tool * TEMPLATE_BYTES
    header_len = load32(template + TEMPLATE_HEADER_LEN)
    skip = find_ip(load64(plan + DATA) + data_at, data_len) if load32(template + TEMPLATE_PATCHES) & WINDOW_IP else 0
    if skip < 0:
        count(plan, tool, NOT_IP)
        return
    data_at, data_len, wirelen = data_at + skip, data_len - skip, max(0, wirelen - skip)
    if data_len > load32(template + TEMPLATE_MAX_DATA):
        count(plan, tool, TOO_LONG)
    elif not has_room(plan, header_len):
        count(plan, tool, NO_ROOM)
    else:
        share = tool if load32(template + TEMPLATE_PATCHES) & SHARE_BY_TOOL else flow
        add_frame(plan, p, tool, share, header_len, data_at, data_len, original_length(wirelen, data_len, header_len))


@kernel
def _follow(plan: int, route: int, p: int, flow: int, taken: int) -> int:
    """Serve the tool at the end, if it is not in `taken`, the tools that this packet has gone to already; returns these and it."""
    tool = load64(route + _TOOL)
    if taken >> tool & 1:
        count(plan, tool, MERGED)
        return taken
    packet = load64(plan + PACKETS) + p * PACKET_BYTES
    if load32(load64(plan + TEMPLATES) + tool * TEMPLATE_BYTES + TEMPLATE_KNOWN) == 0:
        count(plan, tool, NO_TOOL)
    elif load32(packet + PACKET_DATA_AT) + load32(packet + PACKET_CAPLEN) > load64(plan + DATA_BYTES):
        count(plan, tool, DAMAGED)
    elif load64(route + _PLAIN):
        _add_plain(plan, p, tool, flow)
    else:
        add_shaped(plan, route, p, flow)
    return taken | 1 << tool


@kernel
def _share(plan: int, way: int, slot: int, p: int, flow: int, taken: int) -> int:
    """Give the packet to the members of a group whose turn it is."""
    counters, routes = load64(plan + COUNTERS), load64(plan + ROUTES) + load64(way + _FIRST) * ROUTE_BYTES
    count(plan, slot, SHARED)
    if load64(way + _KIND) == WAY_SHARE:
        member = min(load8(load64(way + _BUCKETS) + bucket_of(plan, way, p, flow)), load64(way + _N) - 1)
        route = routes + member * ROUTE_BYTES
        add64(counters + 8 * load64(route + _TOOL) + GIVEN, 1)
        return _follow(plan, route, p, flow, taken)
    for member in range(load64(way + _N)):
        route = routes + member * ROUTE_BYTES
        if load64(route + _ALIVE):
            add64(counters + 8 * load64(route + _TOOL) + GIVEN, 1)
            taken = _follow(plan, route, p, flow, taken)
    return taken


@kernel
def _serve(plan: int, way: int, slot: int, p: int, wanted: int, flow: int, taken: int) -> int:
    """One wish, wherever it leads; returns the tools that the packet has gone to by then."""
    kind = load64(way + _KIND)
    if kind == WAY_NONE:
        count(plan, slot, NO_TOOL)
    elif wanted & load64(way + _BEFORE):
        count(plan, slot, MERGED)
    elif kind in (WAY_SHARE, WAY_ALL):
        return _share(plan, way, slot, p, flow, taken)
    else:
        return _follow(plan, load64(plan + ROUTES) + load64(way + _FIRST) * ROUTE_BYTES, p, flow, taken)
    return taken


@kernel
def list_frames(plan: int) -> int:
    """Write the FRAME rows of the block, in packet order, those of a packet in slot order; count what cannot be served by reason.

    Returns the number of frames; the block gets it too, with the header bytes they need. `numbers` gets the frames of each tool.
    """
    block, numbers, counters = load64(plan + BLOCK), load64(plan + NUMBERS), load64(plan + COUNTERS)
    verdicts, ways = load64(plan + VERDICTS), load64(plan + WAYS)
    n_packets = min(max(load64(block + _N_PACKETS), 0), load64(plan + MAX_PACKETS))
    for field in (N_FRAMES, HEADERS_USED, SHAPED_USED, LAST_HEADER):
        store64(plan + field, 0)
    for tool in range(TOOLS):
        store64(numbers + 8 * tool, 0)
    packets, frames = load64(plan + PACKETS), load64(plan + FRAMES)
    max_frames, header_bytes, data_bytes = load64(plan + MAX_FRAMES), load64(plan + HEADER_BYTES), load64(plan + DATA_BYTES)
    n_frames = headers_used = 0
    for p in range(n_packets):
        verdict = verdicts + p * VERDICT_BYTES
        wanted = load64(verdict + VERDICT_BITS)
        if wanted == 0:
            continue
        flow, bits, slot, taken = load32(verdict + VERDICT_FLOW), wanted, -1, 0
        packet = packets + p * PACKET_BYTES
        data_at, data_len, wirelen = load32(packet + PACKET_DATA_AT), load32(packet + PACKET_CAPLEN), load32(packet + PACKET_WIRELEN)
        while bits != 0:
            step = trailing_zeros(bits)
            slot += step + 1
            bits = shift_right(shift_right(bits, step), 1)  # by 64 at once would be undefined
            way = ways + slot * WAY_BYTES
            if load64(way + _KIND) != WAY_PLAIN:
                store64(plan + N_FRAMES, n_frames)
                store64(plan + HEADERS_USED, headers_used)
                taken = _serve(plan, way, slot, p, wanted, flow, taken)
                n_frames, headers_used = load64(plan + N_FRAMES), load64(plan + HEADERS_USED)
                continue
            tool, header_len = load64(way + _WAY_TOOL), load64(way + _WAY_HEADER_LEN)
            if data_at + data_len > data_bytes:
                count(plan, tool, DAMAGED)
            elif data_len > load64(way + _WAY_MAX_DATA):
                count(plan, tool, TOO_LONG)
            elif n_frames == max_frames or headers_used + header_len > header_bytes:
                count(plan, tool, NO_ROOM)
            else:
                share = tool if load64(way + _WAY_BY_TOOL) else flow
                wire = original_length(wirelen, data_len, header_len)
                write_row(frames + n_frames * FRAME_BYTES, p, tool, share, headers_used, header_len, data_at, data_len, wire)
                store64(plan + LAST_HEADER, headers_used)
                add64(numbers + 8 * tool, 1)
                add64(counters + 8 * tool + FRAMED_BYTES, header_len + data_len)
                n_frames += 1
                headers_used += header_len
    for tool in range(TOOLS):
        add64(counters + 8 * (_FRAMED_FRAMES + tool), load64(numbers + 8 * tool))
    store64(block + _N_FRAMES, n_frames)
    store64(block + _HEADERS_USED, headers_used)
    return n_frames
