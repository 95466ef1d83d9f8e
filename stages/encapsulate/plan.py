"""What the kernels of a block share: where its parts lie, and how far they are. Private memory of a worker."""

from __future__ import annotations

import numpy as np

from broker.core import layout
from broker.core.batch import BATCH
from broker.core.metrics import index
from stages.encapsulate import templates
from stages.encapsulate.ways import ROUTE, WAY
from stages.jit import kernel
from stages.memory import add64, load64, store32, store64

PLAN = np.dtype(
    [
        (name, "<i8")
        for name in (
            *(BATCH.names or ()),  # of the block in hand, put there by `block.encapsulate_block`
            "tickets_at", "n_tickets",  # TICKET[n_tickets] of the lane
            "tool_sequence_at",  # int64[TOOLS], shared by all lanes
            "ways_at", "routes_at", "templates_at", "counters_at",
            "numbers_at",  # int64[TOOLS]: frames of each tool, then the number of the first, then counted on
            "scratch_at",  # uint8[SCRATCH_BYTES]
            "shed_at",  # int64[MAX_PRIORITY + 1]: of each priority, how many of 2^32 flows are shed
            "n_frames", "headers_used", "shaped_used",  # so far
            "last_header_at",  # of the frame before
        )
    ]
)  # fmt: skip
SCRATCH_BYTES = 1024

assert PLAN.fields is not None
FRAMES, HEADERS, DATA = (PLAN.fields[f][1] for f in ("frames_at", "headers_at", "data_at"))
PACKETS, VERDICTS, BLOCK = (PLAN.fields[f][1] for f in ("packets_at", "verdicts_at", "block_at"))
MAX_PACKETS, MAX_FRAMES, HEADER_BYTES = (PLAN.fields[f][1] for f in ("max_packets", "max_frames", "header_bytes"))
DATA_BYTES, SHAPED_FROM, WINDOW_BYTES, SEQ = (PLAN.fields[f][1] for f in ("data_bytes", "shaped_from", "window_bytes", "seq"))
WAYS, ROUTES, TEMPLATES, COUNTERS = (PLAN.fields[f][1] for f in ("ways_at", "routes_at", "templates_at", "counters_at"))
TICKETS, N_TICKETS, TOOL_SEQUENCE = (PLAN.fields[f][1] for f in ("tickets_at", "n_tickets", "tool_sequence_at"))
NUMBERS, SCRATCH, SHED_SHARES = (PLAN.fields[f][1] for f in ("numbers_at", "scratch_at", "shed_at"))
N_FRAMES, HEADERS_USED, SHAPED_USED = (PLAN.fields[f][1] for f in ("n_frames", "headers_used", "shaped_used"))
LAST_HEADER = PLAN.fields["last_header_at"][1]

assert layout.PACKET.fields is not None
PACKET_BYTES = layout.PACKET.itemsize
PACKET_TS, PACKET_DATA_AT, PACKET_CAPLEN, PACKET_WIRELEN = (layout.PACKET.fields[f][1] for f in ("ts_ns", "data_at", "caplen", "wirelen"))

assert layout.VERDICT.fields is not None
VERDICT_BYTES = layout.VERDICT.itemsize
VERDICT_BITS, VERDICT_FLOW = (layout.VERDICT.fields[f][1] for f in ("verdict", "flow"))

assert layout.FRAME.fields is not None
FRAME_BYTES = layout.FRAME.itemsize
_ORDER = ("packet", "tool", "header_len", "header_at", "data_at", "data_len", "wirelen", "share")
assert [layout.FRAME.fields[name][1] for name in _ORDER] == [0, 4, 6, 8, 12, 16, 20, 24]  # `write_row` stands on it

assert ROUTE.fields is not None
assert WAY.fields is not None
ROUTE_BYTES, WAY_BYTES = ROUTE.itemsize, WAY.itemsize

assert templates.TEMPLATE.fields is not None
TEMPLATE_BYTES = templates.TEMPLATE.itemsize
TEMPLATE_KNOWN, TEMPLATE_HEADER_LEN, TEMPLATE_PATCHES, TEMPLATE_MAX_DATA = (
    templates.TEMPLATE.fields[f][1] for f in ("known", "header_len", "patches", "max_data_len")
)

FRAMED_BYTES, TOO_LONG, NOT_IP, NO_ROOM, NO_TOOL, DAMAGED, SAMPLED, DUPLICATE, LIMITED, MTU = (
    8 * index("encapsulate", name)
    for name in (
        "framed_bytes", "dropped_too_long", "dropped_not_ip",
        "dropped_no_room", "dropped_no_tool", "dropped_damaged_packet", "dropped_sampled",
        "dropped_duplicate", "dropped_limited", "dropped_mtu",
    )
)  # fmt: skip
MERGED, GIVEN, SLICED, STRIPPED, UNSTRIPPED, MASKED, SEGMENTED, UNSEGMENTED = (
    8 * index("encapsulate", f"{name}_frames")
    for name in ("merged", "given", "sliced", "stripped", "unstripped", "masked", "segmented", "unsegmented")
)
SHARED, SHED = 8 * index("encapsulate", "shared_packets"), 8 * index("encapsulate", "dropped_shed")


@kernel
def has_room(plan: int, header_len: int) -> bool:
    """For one more frame with this header."""
    return load64(plan + N_FRAMES) < load64(plan + MAX_FRAMES) and load64(plan + HEADERS_USED) + header_len <= load64(plan + HEADER_BYTES)


@kernel
def write_row(
    frame: int, p: int, tool: int, share: int, header_at: int, header_len: int, data_at: int, data_len: int, wirelen: int
) -> None:
    """A FRAME row, by words. `header_len` is below 32768."""
    store64(frame, p | tool << 32 | header_len << 48)
    store64(frame + 8, header_at | data_at << 32)
    store64(frame + 16, data_len | wirelen << 32)
    store32(frame + 24, share)


@kernel
def add_frame(plan: int, p: int, tool: int, share: int, header_len: int, data_at: int, data_len: int, wirelen: int) -> None:
    """A row whose header is the next `header_len` bytes. There must be room."""
    n_frames, header_at = load64(plan + N_FRAMES), load64(plan + HEADERS_USED)
    write_row(load64(plan + FRAMES) + n_frames * FRAME_BYTES, p, tool, share, header_at, header_len, data_at, data_len, wirelen)
    add64(load64(plan + NUMBERS) + 8 * tool, 1)
    add64(load64(plan + COUNTERS) + 8 * tool + FRAMED_BYTES, header_len + data_len)
    store64(plan + LAST_HEADER, header_at)
    store64(plan + HEADERS_USED, header_at + header_len)
    store64(plan + N_FRAMES, n_frames + 1)


@kernel
def count(plan: int, slot: int, counter: int) -> None:
    add64(load64(plan + COUNTERS) + 8 * slot + counter, 1)


@kernel
def original_length(wirelen: int, data_len: int, header_len: int) -> int:
    """Bare, it stays as it was read, even where a capture file says less than it holds."""
    return header_len + (max(wirelen, data_len) if header_len else wirelen)
