"""One block of packets, each counted in its flow.

| kernel | does |
|---|---|
| meter_block | all packets of a block, its counters; returns how many it has looked at |
| skip_block | counts them as skipped |

Three passes over CHUNK packets, so that the memory of the next step is on its way while the others are done: SEEN and hash; the entry that
the index names; the flow itself.

A packet of a flow that goes on, in this order: after `idle_ns` of silence it is another flow; of a connection that is closed it is another
one if it is a SYN, or comes CLOSED_NS later; `active_ns` after the first packet a record of what was is written, and the flow is continued.
"""

from __future__ import annotations

from broker.core import layout
from broker.core.flow_layout import END_ACTIVE, END_IDLE, END_SEEN, ENTRY, FLOWS, STATE, TRANSACTION, WHAT_PROTOCOL
from broker.core.metrics import index
from stages.flows.index import WHAT, fetch_index, find_entry, hash_key, look_ahead, way_of
from stages.flows.lifecycle import (
    BYTES,
    CLOSED_NS,
    FIRST,
    LAST,
    MAX_BYTES,
    MIN_BYTES,
    PACKETS,
    STATE_AT,
    STATE_BEGAN,
    STATE_CONTINUED,
    STATE_FRAGMENTS,
    TOS,
    begin_flow,
    clear_entry,
    end_flow,
    is_closed,
    write_record,
)
from stages.flows.names import note_name
from stages.flows.seen import (
    AT,
    END,
    ENTRY_AHEAD,
    FLAGS,
    HASH,
    IS_FRAGMENT,
    L4,
    N_BYTES,
    NO_FLAGS,
    SEEN_BYTES,
    SEEN_CUT,
    SEEN_FLOW,
    SEEN_NOT_IP,
    SEEN_SAMPLED,
    SEEN_UNWANTED,
    TS,
    WHY,
    see_packet,
    see_plain,
)
from stages.flows.seen import TOS as SEEN_TOS
from stages.flows.table import ENTRY_BYTES, TABLE, save_entry
from stages.flows.tcp import ACK, SYN, payload_of_tcp, track_tcp
from stages.jit import kernel
from stages.memory import add64, load8, load16, load32, load64, prefetch, store8, store16, store32, store64
from stages.wire.fragments import follow_fragments
from stages.wire.headers import TCP, UDP
from stages.wire.key import KEY
from stages.wire.parse import parse_packet
from stages.wire.sampling import COMMON_KEY, sample_flow, sample_packet

assert ENTRY.fields is not None
assert FLOWS.fields is not None
assert KEY.fields is not None
assert TRANSACTION.fields is not None
assert STATE.fields is not None
assert TABLE.fields is not None
assert layout.BLOCK.fields is not None
assert layout.PACKET.fields is not None
assert layout.VERDICT.fields is not None
_ENTRIES_AT, _STATE, _IDLE_NS, _ACTIVE_NS = (TABLE.fields[name][1] for name in ("entries_at", "state_at", "idle_ns", "active_ns"))
_ONE_IN, _BY_PACKET, _INNER, _FORWARDED, _USE_NAMES, _NUMBER = (
    TABLE.fields[name][1] for name in ("one_in", "by_packet", "inner", "forwarded", "use_names", "number")
)
_FRAGMENTS_AT, _IGNORED_AT, _KEY_AT, _SEEN_AT, _COUNTERS_AT, _CLOSER = (
    TABLE.fields[name][1] for name in ("fragments_at", "ignored_at", "key_at", "seen_at", "counters_at", "closer")
)
_HEADER_AT = TABLE.fields["header_at"][1]
_NOW = STATE.fields["now_ns"][1]
_UNDO = ENTRY.fields["undo"][1]
_TRANSACTION = FLOWS.fields["transaction"][1] + TRANSACTION.fields["number"][1]
_KEY_FLOW = KEY.fields["flow"][1]
_PACKET_BYTES, _VERDICT_BYTES = layout.PACKET.itemsize, layout.VERDICT.itemsize
_DATA_AT, _CAPLEN = layout.PACKET.fields["data_at"][1], layout.PACKET.fields["caplen"][1]
_N_PACKETS, _VERDICT = layout.BLOCK.fields["n_packets"][1], layout.VERDICT.fields["verdict"][1]
_METERED, _METERED_BYTES, _NEW_FLOWS = (8 * index("flows", name) for name in ("metered_packets", "metered_bytes", "new_flows"))
_NOT_IP, _CUT, _SAMPLED, _UNWANTED, _SKIPPED = (
    8 * index("flows", f"unmetered_{name}") for name in ("not_ip", "cut", "sampled", "unwanted", "skipped")
)

CHUNK = 64
_AHEAD = 12  # packets: how far the fetch of packet bytes runs before their use
_MOST_PACKETS = (1 << 32) - 1  # of a direction, in one record
_MOST_BYTES = 65_535


@kernel
def _see(table: int, seen: int, row: int, packet: int, verdict: int, data: int, data_bytes: int) -> int:
    if load64(table + _FORWARDED) and load64(verdict + _VERDICT) == 0:
        return SEEN_UNWANTED
    at, caplen = load32(packet + _DATA_AT), load32(packet + _CAPLEN)
    if at + caplen > data_bytes:
        at, caplen = 0, 0
    if load64(table + _CLOSER) or see_plain(seen, packet, data + at, caplen) == 0:
        if parse_packet(row, data + at, caplen):
            follow_fragments(row, packet, 1, load64(table + _FRAGMENTS_AT), load64(table + _IGNORED_AT))
        why = see_packet(seen, row, packet, load64(table + _INNER))
        if why != SEEN_FLOW:
            return why
    one_in = load64(table + _ONE_IN)
    if one_in > 1:
        number = load64(table + _NUMBER)
        store64(table + _NUMBER, number + 1)
        by_packet = load64(table + _BY_PACKET)
        kept = sample_packet(number, COMMON_KEY, one_in) if by_packet else sample_flow(load32(row + _KEY_FLOW), COMMON_KEY, one_in)
        if kept == 0:
            return SEEN_SAMPLED
    hashed = hash_key(table, seen)
    store64(seen + HASH, hashed)
    fetch_index(table, hashed)
    return SEEN_FLOW


@kernel
def _count_unmetered(counters: int, why: int) -> None:
    if why == SEEN_NOT_IP:
        add64(counters + _NOT_IP, 1)
    elif why == SEEN_CUT:
        add64(counters + _CUT, 1)
    elif why == SEEN_SAMPLED:
        add64(counters + _SAMPLED, 1)
    else:
        add64(counters + _UNWANTED, 1)


@kernel
def _over(entry: int, ts: int, flags: int, way: int, idle_ns: int, active_ns: int) -> int:
    """END_* if this packet does not belong to what the entry has counted so far; 0."""
    silent_ns = ts - load64(entry + LAST)
    if silent_ns > idle_ns:
        return END_IDLE
    if is_closed(load16(entry + STATE_AT)) and (silent_ns > CLOSED_NS or flags & (SYN | ACK) == SYN):
        return END_SEEN
    is_full = load32(entry + PACKETS + 4 * way) == _MOST_PACKETS
    return END_ACTIVE if is_full or ts - load64(entry + FIRST) >= active_ns else 0


@kernel
def _begin_another(table: int, seen: int, found: int, over: int, flags: int, counters: int) -> int:
    """For a packet whose flow is not there (`found` < 0), or is `over`: what `find_entry` would say of its record."""
    entries, hashed = load64(table + _ENTRIES_AT), load64(seen + HASH)
    if over == END_ACTIVE:
        entry = entries + (found >> 1) * ENTRY_BYTES
        save_entry(table, entry)
        write_record(table, entry, END_ACTIVE)
        clear_entry(entry)
        store16(entry + STATE_AT, load16(entry + STATE_AT) | STATE_CONTINUED)
        return found
    if over != 0:
        end_flow(table, found >> 1, hashed, over)
    add64(counters + _NEW_FLOWS, 1)
    number = begin_flow(table, hashed, seen)
    entry = entries + number * ENTRY_BYTES
    if flags & SYN:
        store16(entry + STATE_AT, STATE_BEGAN)
        if flags & ACK:
            _turn(entry)
            return number << 1 | 1
    return number << 1


@kernel
def _turn(entry: int) -> None:
    """Source and destination change places: the first packet was an answer."""
    for at in (0, 8):
        mine = load64(entry + at)
        store64(entry + at, load64(entry + 16 + at))
        store64(entry + 16 + at, mine)
    source = load16(entry + WHAT)
    store16(entry + WHAT, load16(entry + WHAT + 2))
    store16(entry + WHAT + 2, source)


@kernel
def _count_packet(entry: int, seen: int, way: int) -> None:
    n_bytes, ts, n = load32(seen + N_BYTES), load64(seen + TS), load32(entry + PACKETS + 4 * way)
    short = min(n_bytes, _MOST_BYTES)
    if n == 0:
        store8(entry + TOS + way, load8(seen + SEEN_TOS))
        store16(entry + MIN_BYTES + 2 * way, short)
        store16(entry + MAX_BYTES + 2 * way, short)
        if load32(entry + PACKETS + 4 * (1 - way)) == 0:
            store64(entry + FIRST, ts)
            store64(entry + LAST, ts)
    else:
        store16(entry + MIN_BYTES + 2 * way, min(short, load16(entry + MIN_BYTES + 2 * way)))
        store16(entry + MAX_BYTES + 2 * way, max(short, load16(entry + MAX_BYTES + 2 * way)))
    store32(entry + PACKETS + 4 * way, n + 1)
    add64(entry + BYTES + 8 * way, n_bytes)
    if ts > load64(entry + LAST):
        store64(entry + LAST, ts)
    elif ts < load64(entry + FIRST):
        store64(entry + FIRST, ts)


@kernel
def _meter_packet(
    table: int, seen: int, counters: int, entries: int, idle_ns: int, active_ns: int, transaction: int, use_names: int
) -> None:
    """What is the same for all packets of a block comes in registers: read again for each, it would be a third of the work."""
    ahead, flags, found, over = load64(seen + ENTRY_AHEAD), load16(seen + FLAGS), -1, 0
    entry, way = entries + (ahead - 1) * ENTRY_BYTES, -1
    if ahead > 0:
        way = way_of(entry, seen)
        found = (ahead - 1) << 1 | way
    if way < 0:
        found = find_entry(table, load64(seen + HASH), seen)
        entry, way = entries + (found >> 1) * ENTRY_BYTES, found & 1
    known_flags = 0 if flags == NO_FLAGS else flags
    if found >= 0:
        over = _over(entry, load64(seen + TS), known_flags, way, idle_ns, active_ns)
    if found < 0 or over != 0:
        found = _begin_another(table, seen, found, over, known_flags, counters)
        entry, way = entries + (found >> 1) * ENTRY_BYTES, found & 1
    if load32(entry + _UNDO) != transaction:
        save_entry(table, entry)
    _count_packet(entry, seen, way)
    if load8(seen + IS_FRAGMENT):
        store16(entry + STATE_AT, load16(entry + STATE_AT) | STATE_FRAGMENTS)
    what, l4, at = load64(seen + WHAT), load32(seen + L4), load64(seen + AT)
    protocol = what >> WHAT_PROTOCOL & 255
    if l4 == 0 or protocol not in (TCP, UDP):
        return
    payload = l4 + 8
    if protocol == TCP:
        if flags == NO_FLAGS:
            return
        payload = payload_of_tcp(seen)
        track_tcp(entry, seen, way, payload)
    if use_names and payload > 0 and payload < load32(seen + END):
        note_name(table, entry, protocol, what & 0xFFFFFFFF, at + payload, at + load32(seen + END), way)


@kernel
def meter_block(table: int, block: int, max_packets: int, packets: int, verdicts: int, data: int, data_bytes: int) -> int:
    """In a transaction. `verdicts` are looked at with `forwarded` only."""
    n_packets = max(0, min(load64(block + _N_PACKETS), max_packets))
    key, rows, counters, state = load64(table + _KEY_AT), load64(table + _SEEN_AT), load64(table + _COUNTERS_AT), load64(table + _STATE)
    now, n_metered, n_bytes = load64(state + _NOW), 0, 0
    entries, idle_ns, active_ns = load64(table + _ENTRIES_AT), load64(table + _IDLE_NS), load64(table + _ACTIVE_NS)
    transaction, use_names = load64(load64(table + _HEADER_AT) + _TRANSACTION), load64(table + _USE_NAMES)
    for first in range(0, n_packets, CHUNK):
        n, chunk = min(CHUNK, n_packets - first), packets + first * _PACKET_BYTES
        for i in range(n):
            seen, packet = rows + i * SEEN_BYTES, chunk + i * _PACKET_BYTES
            if i + _AHEAD < n:
                prefetch(data + load32(packet + _AHEAD * _PACKET_BYTES + _DATA_AT))
            store8(seen + WHY, _see(table, seen, key, packet, verdicts + (first + i) * _VERDICT_BYTES, data, data_bytes))
        for i in range(n):
            seen = rows + i * SEEN_BYTES
            if load8(seen + WHY) == SEEN_FLOW:
                store64(seen + ENTRY_AHEAD, look_ahead(table, load64(seen + HASH)))
        for i in range(n):
            seen = rows + i * SEEN_BYTES
            if load8(seen + WHY) != SEEN_FLOW:
                _count_unmetered(counters, load8(seen + WHY))
                continue
            now = load64(seen + TS)  # not the latest: the next file may have been captured before
            n_metered += 1
            n_bytes += load32(seen + N_BYTES)
            _meter_packet(table, seen, counters, entries, idle_ns, active_ns, transaction, use_names)
        store64(state + _NOW, now)
    add64(counters + _METERED, n_metered)
    add64(counters + _METERED_BYTES, n_bytes)
    return n_packets


@kernel
def skip_block(counters: int, block: int, max_packets: int) -> int:
    n_packets = max(0, min(load64(block + _N_PACKETS), max_packets))
    add64(counters + _SKIPPED, n_packets)
    return n_packets
