"""A packet on its way to one tool, where something is to be done with it: sampled, told from duplicates, stripped, tagged, masked, cut
into segments, sliced, held against what the path takes and against a limit; in this order.

What leaves is a head of new bytes behind the outer header, and a window of the packet. Only where bytes in the middle change (masks), or a
changed packet has to be looked at again, is it copied into `shaped`, and the window is there.
"""

from __future__ import annotations

from stages.encapsulate.cards import mask_cards
from stages.encapsulate.dedup import digest_packet, is_duplicate
from stages.encapsulate.layers import (
    HEAD_ROOM,
    STRIP_DONE,
    WHOLE,
    head_len_of,
    push_tag,
    strip_code_of,
    strip_layers,
    window_at_of,
    window_end_of,
)
from stages.encapsulate.limit import admit_packet
from stages.encapsulate.masks import fix_checksums, mask_payload, mask_range
from stages.encapsulate.patches import SHARE_BY_TOOL, WINDOW_IP
from stages.encapsulate.plan import (
    COUNTERS,
    DATA,
    DUPLICATE,
    GIVEN,
    HEADER_BYTES,
    HEADERS,
    HEADERS_USED,
    LAST_HEADER,
    LIMITED,
    MASKED,
    MTU,
    N_FRAMES,
    NO_ROOM,
    NOT_IP,
    PACKET_BYTES,
    PACKET_CAPLEN,
    PACKET_DATA_AT,
    PACKET_TS,
    PACKET_WIRELEN,
    PACKETS,
    SAMPLED,
    SCRATCH,
    SEGMENTED,
    SEQ,
    SHAPED_FROM,
    SHAPED_USED,
    SHED,
    SHED_SHARES,
    SLICED,
    STRIPPED,
    TEMPLATE_BYTES,
    TEMPLATE_HEADER_LEN,
    TEMPLATE_MAX_DATA,
    TEMPLATE_PATCHES,
    TEMPLATES,
    TOO_LONG,
    UNSEGMENTED,
    UNSTRIPPED,
    WINDOW_BYTES,
    add_frame,
    count,
    has_room,
    original_length,
)
from stages.encapsulate.segment import (
    header_len_of as segment_header_len_of,
)
from stages.encapsulate.segment import (
    mss_of,
    n_segments_of,
    plan_segments,
    segment_at,
    segment_len,
    write_segment_header,
)
from stages.encapsulate.slices import kept_by_slice
from stages.encapsulate.templates import HEADER_ROOM
from stages.encapsulate.ways import MASK, MASK_CARDS, MASK_PAYLOAD, ROUTE
from stages.encapsulate.windows import find_ip
from stages.jit import kernel
from stages.memory import add64, copy, load32, load64, mix, shift_right, store64
from stages.wire.headers import ETH_VLAN, ETHERNET_BYTES
from stages.wire.sampling import COMMON_KEY, sample_flow, sample_packet

assert ROUTE.fields is not None
assert MASK.fields is not None
_TOOL, _DEDUP, _LIMIT, _STRIP, _PUSH = (ROUTE.fields[f][1] for f in ("tool", "dedup_at", "limit_at", "strip", "push_vlan"))
_ONE_IN, _BY_PACKET, _COUNTED = (ROUTE.fields[f][1] for f in ("sample_one_in", "sample_packets", "counted"))
_MASKS, _N_MASKS, _CHECKSUMS = (ROUTE.fields[f][1] for f in ("masks_at", "n_masks", "mask_checksums"))
_AFTER, _SLICE, _SEGMENT = (ROUTE.fields[f][1] for f in ("slice_after", "slice_bytes", "segment_bytes"))
_MAX_BYTES, _CUT = ROUTE.fields["max_bytes"][1], ROUTE.fields["cut_to_mtu"][1]
_MASK_BYTES, _WHAT, _BASE, _AT, _N_BYTES = MASK.itemsize, *(MASK.fields[f][1] for f in ("what", "base", "at", "n_bytes"))
_DIGITS_KEPT, _STAR = 4, 0x2A

_PRIORITY = ROUTE.fields["priority"][1]
_SHED_KEY = 0x6A09_E667_F3BC_C908  # other flows than those that a sample leaves out

_ROW_BITS = 20  # a position is block << _ROW_BITS | row


@kernel
def _left_out(plan: int, route: int, p: int, flow: int) -> bool:
    """Shed, by the sample, or as a duplicate; counted."""
    tool, one_in = load64(route + _TOOL), load64(route + _ONE_IN)
    share = load64(load64(plan + SHED_SHARES) + 8 * load64(route + _PRIORITY))
    if share and shift_right(mix(flow ^ _SHED_KEY, _SHED_KEY), 32) < share:
        count(plan, tool, SHED)
        return True
    packet = load64(plan + PACKETS) + p * PACKET_BYTES
    if one_in > 1:
        if load64(route + _BY_PACKET):
            number = load64(route + _COUNTED)
            store64(route + _COUNTED, number + 1)
            taken = sample_packet(number, COMMON_KEY, one_in)
        else:
            taken = sample_flow(flow, COMMON_KEY, one_in)
        if taken == 0:
            count(plan, tool, SAMPLED)
            return True
    if load64(route + _DEDUP):
        table, digest, position = load64(route + _DEDUP), load64(plan + SCRATCH), load64(plan + SEQ) << _ROW_BITS | p
        frame, caplen = load64(plan + DATA) + load32(packet + PACKET_DATA_AT), load32(packet + PACKET_CAPLEN)
        digest_packet(table, frame, caplen, load32(packet + PACKET_WIRELEN), digest)
        if is_duplicate(table, digest, load64(packet + PACKET_TS), position):
            count(plan, tool, DUPLICATE)
            return True
    return False


@kernel
def _mask(plan: int, route: int, frame: int, caplen: int) -> None:
    """Overwrite what the masks of the route say, in place."""
    changed = 0
    for i in range(load64(route + _N_MASKS)):
        mask = load64(route + _MASKS) + i * _MASK_BYTES
        what = load64(mask + _WHAT)
        if what == MASK_CARDS:
            changed += mask_cards(frame, caplen, _DIGITS_KEPT, _STAR)
        elif what == MASK_PAYLOAD:
            changed += mask_payload(frame, caplen, 0)
        else:
            changed += mask_range(frame, caplen, load64(mask + _BASE), load64(mask + _AT), load64(mask + _N_BYTES), 0)
    if changed:
        count(plan, load64(route + _TOOL), MASKED)
        if load64(route + _CHECKSUMS):
            fix_checksums(frame, caplen)


@kernel
def _emit(plan: int, route: int, p: int, share: int, head_len: int, data_at: int, data_len: int, wirelen: int, kept: int) -> None:
    """One frame, or a counted drop. The head is written behind the outer header already. `wirelen`: of what the window is a part of.
    `kept`: bytes of head and window, by the slice."""
    tool = load64(route + _TOOL)
    template = load64(plan + TEMPLATES) + tool * TEMPLATE_BYTES
    outer = load32(template + TEMPLATE_HEADER_LEN)
    wirelen, sliced = original_length(wirelen, data_len, outer + head_len), 0
    if kept < head_len + data_len:
        head_len = min(head_len, kept)
        data_len = kept - head_len
        sliced = 1
    most = load64(route + _MAX_BYTES)
    excess = outer + head_len + data_len - most
    if most and excess > 0:
        if load64(route + _CUT) == 0 or excess > data_len:
            count(plan, tool, MTU)
            return
        data_len -= excess
        sliced = 1
    if head_len + data_len > load32(template + TEMPLATE_MAX_DATA):
        count(plan, tool, TOO_LONG)
        return
    if not has_room(plan, outer + head_len):
        count(plan, tool, NO_ROOM)
        return
    packet = load64(plan + PACKETS) + p * PACKET_BYTES
    if load64(route + _LIMIT) and admit_packet(load64(route + _LIMIT), load64(packet + PACKET_TS), 8 * (outer + head_len + data_len)) == 0:
        count(plan, tool, LIMITED)
        return
    if sliced:
        count(plan, tool, SLICED)
    add_frame(plan, p, tool, share, outer + head_len, data_at, data_len, wirelen)


@kernel
def _copied(plan: int, head: int, head_len: int, window: int, n: int) -> int:
    """Head and window one behind the other in `shaped`; the offset from the block's data, or -1 if there is no room."""
    used = load64(plan + SHAPED_USED)
    data_at = load64(plan + SHAPED_FROM) + used
    if load64(plan + SHAPED_FROM) + used + head_len + n > load64(plan + WINDOW_BYTES):
        return -1
    to = load64(plan + DATA) + data_at
    copy(to, head, head_len)
    copy(to + head_len, window, n)
    store64(plan + SHAPED_USED, used + (head_len + n + 15 & -16))
    return data_at


@kernel
def _head_at(plan: int, outer: int, head_len: int) -> int:
    """Where the head of the next frame goes, or 0 if there is no room. Outer headers are written later, in whole lines that may go beyond
    their end: what lies there by then must not be a head."""
    used = load64(plan + HEADERS_USED)
    if load64(plan + N_FRAMES):
        used = max(used, load64(plan + LAST_HEADER) + HEADER_ROOM)
    if used + outer + head_len > load64(plan + HEADER_BYTES):
        return 0
    store64(plan + HEADERS_USED, used)
    return load64(plan + HEADERS) + used + outer


@kernel
def _add_segments(plan: int, route: int, p: int, share: int, outer: int, data_at: int, data_len: int, kept: int, skip: int) -> bool:
    """The frame at `data_at` as segments, each without its first `skip` bytes. False: it stays whole."""
    tool, frame, longest = load64(route + _TOOL), load64(plan + DATA) + data_at, load64(route + _SEGMENT)
    segments = plan_segments(frame, data_len, 0)
    if segments < 0:
        count(plan, tool, UNSEGMENTED)
        return False
    mss = mss_of(segments, longest)
    n, header_len = n_segments_of(segments, mss), segment_header_len_of(segments)
    if n < 2:
        return False
    count(plan, tool, SEGMENTED)
    add64(load64(plan + COUNTERS) + 8 * tool + GIVEN, n - 1)
    for i in range(n):
        # What is skipped is written where the outer header will be.
        head = _head_at(plan, max(outer, skip), header_len - skip)
        if head == 0:
            count(plan, tool, NO_ROOM)
        else:
            write_segment_header(head - skip, frame, segments, mss, i)
            add64(plan + HEADERS_USED, max(0, skip - outer))
            n_bytes = segment_len(segments, mss, i)
            _emit(plan, route, p, share, header_len - skip, data_at + segment_at(segments, mss, i), n_bytes, n_bytes, kept - skip)
    return True


@kernel
def _ip_in(plan: int, head: int, head_len: int, window: int, n: int) -> int:
    """Where the IP header begins in head and window; -1: there is none."""
    if head_len == 0:
        return find_ip(window, n)
    scratch, looked_at = load64(plan + SCRATCH), min(n, HEAD_ROOM)
    copy(scratch, head, head_len)
    copy(scratch + head_len, window, looked_at)
    return find_ip(scratch, head_len + looked_at)


@kernel
def add_shaped(plan: int, route: int, p: int, flow: int) -> None:
    """Serve the tool of the route with packet `p`, which lies within the block: a frame, or several, or a counted drop."""
    if _left_out(plan, route, p, flow):
        return
    tool = load64(route + _TOOL)
    template = load64(plan + TEMPLATES) + tool * TEMPLATE_BYTES
    outer, share = load32(template + TEMPLATE_HEADER_LEN), tool if load32(template + TEMPLATE_PATCHES) & SHARE_BY_TOOL else flow
    packet = load64(plan + PACKETS) + p * PACKET_BYTES
    data_at, caplen, wirelen = load32(packet + PACKET_DATA_AT), load32(packet + PACKET_CAPLEN), load32(packet + PACKET_WIRELEN)
    frame = load64(plan + DATA) + data_at
    strip, push, head, shape = load64(route + _STRIP), load64(route + _PUSH), 0, WHOLE
    if strip or push >= 0:
        head = _head_at(plan, outer, HEAD_ROOM)
        if head == 0:
            count(plan, tool, NO_ROOM)
            return
        if strip:
            shape = strip_layers(frame, caplen, strip, head)
            if strip_code_of(shape) != STRIP_DONE:
                count(plan, tool, UNSTRIPPED)
            elif shape != WHOLE:
                count(plan, tool, STRIPPED)
        if push >= 0:
            shape = push_tag(shape, frame, caplen, ETH_VLAN, push, head)
    head_len, window_at, window_end = head_len_of(shape), window_at_of(shape), window_end_of(shape)
    data_len, wirelen = max(0, min(caplen, window_end) - window_at), max(0, min(wirelen, window_end) - window_at)
    data_at += window_at
    after, longest = load64(route + _AFTER), load64(route + _SEGMENT)
    segment = longest and head_len + data_len > longest + ETHERNET_BYTES
    if load64(route + _N_MASKS) or (head_len and (segment or after)):
        data_at = _copied(plan, head, head_len, frame + window_at, data_len)
        if data_at < 0:
            count(plan, tool, NO_ROOM)
            return
        data_len, wirelen, head_len = head_len + data_len, head_len + wirelen, 0
        if load64(route + _N_MASKS):
            _mask(plan, route, load64(plan + DATA) + data_at, data_len)
    kept = kept_by_slice(load64(plan + DATA) + data_at, head_len + data_len, after, load64(route + _SLICE))
    skip = 0
    if load32(template + TEMPLATE_PATCHES) & WINDOW_IP:
        skip = _ip_in(plan, head, head_len, load64(plan + DATA) + data_at, data_len)
        if skip < 0:
            count(plan, tool, NOT_IP)
            return
        kept = max(kept, skip)
    if segment and _add_segments(plan, route, p, share, outer, data_at, data_len, kept, skip):
        return
    if skip:
        gone = skip - head_len  # a head has nothing of IP
        head_len, data_at, data_len, wirelen, kept = 0, data_at + gone, data_len - gone, max(0, wirelen - gone), kept - skip
    _emit(plan, route, p, share, head_len, data_at, data_len, wirelen, kept)
