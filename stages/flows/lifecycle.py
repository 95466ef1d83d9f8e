"""How flows begin and end: free entries, records, and the search for what is over.

| kernel | does |
|---|---|
| begin_flow | an entry for the flow of a SEEN packet; where none is free, the longest silent of a few must go |
| write_record | FLOW of an entry, or counts it as dropped where the exporter has not taken those before |
| end_flow | write_record, then the entry is free |
| sweep | ends flows that are silent for too long, or closed, from where it stopped the last time |
| end_some | ends whatever is left |
"""

from __future__ import annotations

from broker.core.flow_layout import (
    END_FORCED,
    END_IDLE,
    END_RESOURCES,
    END_SEEN,
    ENTRY,
    FLOW,
    FLOW_BEGAN,
    FLOW_CONTINUED,
    FLOW_FRAGMENTS,
    FLOW_NAME_CUT,
    FLOW_SAMPLED,
    FLOWS,
    NAME,
    STATE,
    WHAT_DESTINATION_PORT,
    WHAT_INPUT,
    WHAT_IP6,
    WHAT_PROTOCOL,
    WHAT_TTL,
    WHAT_TUNNEL,
)
from stages.flows.index import (
    DESTINATION_HIGH,
    DESTINATION_LOW,
    LINK,
    SOURCE_HIGH,
    SOURCE_LOW,
    WHAT,
    hash_key,
    insert_entry,
    remove_entry,
)
from stages.flows.table import ENTRY_BYTES, TABLE, count, save_entry
from stages.jit import kernel
from stages.memory import (
    add64,
    copy,
    load8,
    load16,
    load32,
    load64,
    load_acquire,
    shift_right,
    store8,
    store16,
    store32,
    store64,
    store_be64,
)
from stages.wire.headers import ICMP, ICMP6

assert ENTRY.fields is not None
assert FLOW.fields is not None
assert FLOWS.fields is not None
assert NAME.fields is not None
assert STATE.fields is not None
assert TABLE.fields is not None

FIRST, LAST, BYTES, PACKETS, MIN_BYTES, MAX_BYTES, NEXT, RTT, RETRANSMITTED, TCP_FLAGS, TOS, NAME_NUMBER, STATE_AT = (
    ENTRY.fields[name][1]
    for name in (
        "first_ns", "last_ns", "bytes", "packets", "min_bytes", "max_bytes", "next_sequence", "rtt_us", "retransmitted", "tcp_flags",
        "tos", "name", "state",
    )
)  # fmt: skip

# `state` of an entry
RTT_STATE = 7  # RTT_*
STATE_FIN, STATE_FIN_BACK, STATE_RST, STATE_CONTINUED, STATE_BEGAN = 8, 16, 32, 64, 128
STATE_KNOWN, STATE_KNOWN_BACK = 256, 512  # `next_sequence` is
STATE_FRAGMENTS = 1024
STATE_BOTH = STATE_FIN | STATE_FIN_BACK
RTT_NONE, RTT_SYN, RTT_SPOILT, RTT_ANSWERED, RTT_HALF, RTT_DONE = range(6)
"""The SYN came once; more than once; the SYN with ACK came once; more than once; the ACK came."""

CLOSED_NS = 2_000_000_000
"""For so long what is left of a connection that is closed may still come."""
_LOOKED_AT = 8  # flows of which the longest silent goes

_STATE, _ENTRIES_AT, _MAX_FLOWS, _FREE_AT, _N_FREE = (
    TABLE.fields[name][1] for name in ("state_at", "entries_at", "max_flows", "free_at", "n_free")
)
_HEADER_AT, _RECORDS_AT, _N_RECORDS, _LANE, _ONE_IN, _IDLE_NS = (
    TABLE.fields[name][1] for name in ("header_at", "records_at", "n_records", "lane", "one_in", "idle_ns")
)
_NAMES_AT, _NAMES_FREE_AT, _N_NAMES, _NAMES_TAIL = (
    TABLE.fields[name][1] for name in ("names_at", "names_free_at", "n_names", "names_tail")
)
_TAKEN = FLOWS.fields["taken"][1]
_HEAD, _N_FLOWS, _NOW, _HAND, _NAMES_IN_USE = (STATE.fields[name][1] for name in ("head", "n_flows", "now_ns", "hand", "names_in_use"))
_RECORDS_IDLE = STATE.fields["records_idle"][1]  # and those behind it, in the order of END_*
_DROPPED, _DROPPED_PACKETS, _DROPPED_BYTES = (
    STATE.fields[name][1] for name in ("dropped_records", "dropped_record_packets", "dropped_record_bytes")
)
_NAME_BYTES = NAME.itemsize
_NAME_TYPE, _NAME_CODE, _NAME_KIND, _NAME_LEN, _NAME_CUT, _NAME_TEXT = (
    NAME.fields[name][1] for name in ("dns_type", "dns_code", "kind", "len", "cut", "text")
)
_FLOW_BYTES = FLOW.itemsize
(
    _F_FIRST, _F_LAST, _F_BYTES, _F_PACKETS, _F_SOURCE, _F_DESTINATION, _F_NUMBER, _F_SOURCE_PORT, _F_DESTINATION_PORT, _F_ICMP, _F_VLAN,
    _F_TUNNEL_ID, _F_MIN, _F_MAX, _F_RTT, _F_RETRANSMITTED, _F_ONE_IN, _F_INPUT, _F_LANE, _F_VERSION, _F_PROTOCOL, _F_TCP_FLAGS, _F_TOS,
    _F_TTL, _F_END, _F_TUNNEL, _F_FLAGS, _F_NAMED, _F_NAME_LEN, _F_DNS_TYPE, _F_DNS_CODE, _F_PAD, _F_NAME,
) = (FLOW.fields[name][1] for name in FLOW.names or ())  # fmt: skip
_TEXT_BYTES = FLOW.itemsize - _F_NAME


@kernel
def is_closed(state: int) -> bool:
    return state & STATE_BOTH == STATE_BOTH or state & STATE_RST != 0


@kernel
def _write_name(row: int, name: int) -> None:
    store8(row + _F_NAMED, load8(name + _NAME_KIND))
    store8(row + _F_NAME_LEN, load8(name + _NAME_LEN))
    store16(row + _F_DNS_TYPE, load16(name + _NAME_TYPE))
    store8(row + _F_DNS_CODE, load8(name + _NAME_CODE))
    copy(row + _F_NAME, name + _NAME_TEXT, min(load8(name + _NAME_LEN), _TEXT_BYTES))


@kernel
def _icmp_of(what: int) -> int:
    """Type << 8 | code of the first packet: of a type that has an answer the second number is its type, and the code 0."""
    protocol, is_ip6 = what >> WHAT_PROTOCOL & 255, what >> WHAT_IP6 & 1
    if protocol != (ICMP6 if is_ip6 else ICMP):
        return 0
    type_, other = what & 0xFFFF, what >> WHAT_DESTINATION_PORT & 0xFFFF
    pairs = type_ in (128, 130, 133, 135, 139, 144, 129, 131, 134, 136, 140, 145) if is_ip6 else type_ in (0, 8, 9, 10) or 13 <= type_ <= 18
    return type_ << 8 | (0 if pairs else other & 255)


@kernel
def _fill_record(table: int, entry: int, row: int, number: int, reason: int) -> None:
    what, link, state = load64(entry + WHAT), load64(entry + LINK), load16(entry + STATE_AT)
    for at in range(0, _FLOW_BYTES, 8):
        store64(row + at, 0)
    store64(row + _F_FIRST, load64(entry + FIRST))
    store64(row + _F_LAST, load64(entry + LAST))
    store_be64(row + _F_SOURCE, load64(entry + SOURCE_HIGH))
    store_be64(row + _F_SOURCE + 8, load64(entry + SOURCE_LOW))
    store_be64(row + _F_DESTINATION, load64(entry + DESTINATION_HIGH))
    store_be64(row + _F_DESTINATION + 8, load64(entry + DESTINATION_LOW))
    store64(row + _F_NUMBER, number)
    for way in range(2):
        store64(row + _F_BYTES + 8 * way, load64(entry + BYTES + 8 * way))
        store64(row + _F_PACKETS + 8 * way, load32(entry + PACKETS + 4 * way))
        store16(row + _F_MIN + 2 * way, load16(entry + MIN_BYTES + 2 * way))
        store16(row + _F_MAX + 2 * way, load16(entry + MAX_BYTES + 2 * way))
        store16(row + _F_RETRANSMITTED + 2 * way, load16(entry + RETRANSMITTED + 2 * way))
        store8(row + _F_TCP_FLAGS + way, load8(entry + TCP_FLAGS + way))
        store8(row + _F_TOS + way, load8(entry + TOS + way))
    rtt = state & RTT_STATE
    if rtt >= RTT_ANSWERED:
        store32(row + _F_RTT + 4, load32(entry + RTT + 4))
    if rtt == RTT_DONE:
        store32(row + _F_RTT, load32(entry + RTT))
    store16(row + _F_SOURCE_PORT, what)
    store16(row + _F_DESTINATION_PORT, what >> WHAT_DESTINATION_PORT)
    store16(row + _F_ICMP, _icmp_of(what))
    store16(row + _F_VLAN, link >> 32)
    store32(row + _F_TUNNEL_ID, link)
    store32(row + _F_ONE_IN, load64(table + _ONE_IN))
    store16(row + _F_INPUT, what >> WHAT_INPUT & 63)
    store16(row + _F_LANE, load64(table + _LANE))
    store8(row + _F_VERSION, 6 if what >> WHAT_IP6 & 1 else 4)
    store8(row + _F_PROTOCOL, what >> WHAT_PROTOCOL)
    store8(row + _F_TTL, shift_right(what, WHAT_TTL))
    store8(row + _F_END, reason)
    store8(row + _F_TUNNEL, what >> WHAT_TUNNEL & 7)
    flags = FLOW_CONTINUED if state & STATE_CONTINUED else 0
    flags |= FLOW_BEGAN if state & STATE_BEGAN else 0
    flags |= FLOW_FRAGMENTS if state & STATE_FRAGMENTS else 0
    flags |= FLOW_SAMPLED if load64(table + _ONE_IN) > 1 else 0
    named = load16(entry + NAME_NUMBER)
    store8(row + _F_DNS_CODE, 255)
    if 0 < named <= load64(table + _N_NAMES):
        name = load64(table + _NAMES_AT) + (named - 1) * _NAME_BYTES
        _write_name(row, name)
        flags |= FLOW_NAME_CUT if load8(name + _NAME_CUT) else 0
    store8(row + _F_FLAGS, flags)


@kernel
def write_record(table: int, entry: int, reason: int) -> None:
    state = load64(table + _STATE)
    head, n_records = load64(state + _HEAD), load64(table + _N_RECORDS)
    add64(state + _RECORDS_IDLE + 8 * (reason - END_IDLE), 1)
    if head - load_acquire(load64(table + _HEADER_AT) + _TAKEN) >= n_records:
        count(table, _DROPPED, 1)
        count(table, _DROPPED_PACKETS, load32(entry + PACKETS) + load32(entry + PACKETS + 4))
        count(table, _DROPPED_BYTES, load64(entry + BYTES) + load64(entry + BYTES + 8))
        return
    number = head + load64(state + _DROPPED)  # so that whoever reads records sees where some are not there
    _fill_record(table, entry, load64(table + _RECORDS_AT) + head % n_records * _FLOW_BYTES, number, reason)
    store64(state + _HEAD, head + 1)


@kernel
def _give_back_name(table: int, entry: int) -> None:
    named = load16(entry + NAME_NUMBER)
    if named == 0:
        return
    tail = load64(table + _NAMES_TAIL)
    store32(load64(table + _NAMES_FREE_AT) + 4 * (tail % load64(table + _N_NAMES)), named - 1)
    store64(table + _NAMES_TAIL, tail + 1)
    count(table, _NAMES_IN_USE, -1)


@kernel
def end_flow(table: int, number: int, hashed: int, reason: int) -> None:
    entry = load64(table + _ENTRIES_AT) + number * ENTRY_BYTES
    save_entry(table, entry)
    write_record(table, entry, reason)
    _give_back_name(table, entry)
    remove_entry(table, hashed, number)
    store64(entry + WHAT, 0)
    store16(entry + NAME_NUMBER, 0)
    n_free = load64(table + _N_FREE)
    store32(load64(table + _FREE_AT) + 4 * n_free, number)
    store64(table + _N_FREE, n_free + 1)
    count(table, _N_FLOWS, -1)


@kernel
def _make_room(table: int) -> None:
    """All entries are in use: of a few at the hand, the longest silent goes."""
    state, entries, max_flows = load64(table + _STATE), load64(table + _ENTRIES_AT), load64(table + _MAX_FLOWS)
    hand, oldest = load64(state + _HAND) % max_flows, -1
    for _ in range(min(_LOOKED_AT, max_flows)):
        if oldest < 0 or load64(entries + hand * ENTRY_BYTES + LAST) < load64(entries + oldest * ENTRY_BYTES + LAST):
            oldest = hand
        hand = hand + 1 if hand + 1 < max_flows else 0
    store64(state + _HAND, hand)
    end_flow(table, oldest, hash_key(table, entries + oldest * ENTRY_BYTES), END_RESOURCES)


@kernel
def begin_flow(table: int, hashed: int, key: int) -> int:
    """The number of an entry in the index that has this key and else nothing."""
    if load64(table + _N_FREE) == 0:
        _make_room(table)
    n_free = load64(table + _N_FREE) - 1
    store64(table + _N_FREE, n_free)
    number = load32(load64(table + _FREE_AT) + 4 * n_free)
    entry = load64(table + _ENTRIES_AT) + number * ENTRY_BYTES
    save_entry(table, entry)
    copy(entry, key, FIRST)
    clear_entry(entry)
    store16(entry + NAME_NUMBER, 0)
    store16(entry + STATE_AT, 0)
    insert_entry(table, hashed, number)
    count(table, _N_FLOWS, 1)
    return number


@kernel
def clear_entry(entry: int) -> None:
    """What is counted of a flow; not what is known of it."""
    for at in range(FIRST, NEXT, 8):
        store64(entry + at, 0)
    store32(entry + RETRANSMITTED, 0)
    store16(entry + TCP_FLAGS, 0)
    store16(entry + TOS, 0)


@kernel
def sweep(table: int, n: int, most: int, ahead_ns: int) -> int:
    """Looks at `n` entries from the hand on, and ends `most` flows at most. Returns how many it has looked at.

    A flow whose last packet lies more than `ahead_ns` in the future is over too: the clock has gone back.
    """
    state, entries, max_flows, now = (
        load64(table + _STATE), load64(table + _ENTRIES_AT), load64(table + _MAX_FLOWS), load64(load64(table + _STATE) + _NOW),
    )  # fmt: skip
    hand, idle_ns, ended, looked = load64(state + _HAND) % max_flows, load64(table + _IDLE_NS), 0, 0
    while looked < n and ended < most:
        entry = entries + hand * ENTRY_BYTES
        if load64(entry + WHAT) != 0:
            silent_ns = now - load64(entry + LAST)
            if silent_ns > CLOSED_NS and is_closed(load16(entry + STATE_AT)):
                end_flow(table, hand, hash_key(table, entry), END_SEEN)
                ended += 1
            elif silent_ns > idle_ns or silent_ns < -ahead_ns:
                end_flow(table, hand, hash_key(table, entry), END_IDLE)
                ended += 1
        hand = hand + 1 if hand + 1 < max_flows else 0
        looked += 1
    store64(state + _HAND, hand)
    return looked


@kernel
def end_some(table: int, most: int) -> int:
    """Ends up to `most` flows, while there is room for their records. Returns how many are left."""
    state, entries, max_flows = load64(table + _STATE), load64(table + _ENTRIES_AT), load64(table + _MAX_FLOWS)
    hand = load64(state + _HAND) % max_flows
    for _ in range(max_flows):
        if most == 0 or load64(state + _N_FLOWS) == 0:
            break
        entry = entries + hand * ENTRY_BYTES
        if load64(entry + WHAT) != 0:
            closed = is_closed(load16(entry + STATE_AT))
            end_flow(table, hand, hash_key(table, entry), END_SEEN if closed else END_FORCED)
            most -= 1
        hand = hand + 1 if hand + 1 < max_flows else 0
    store64(state + _HAND, hand)
    return load64(state + _N_FLOWS)


@kernel
def room_for_records(table: int) -> int:
    taken = load_acquire(load64(table + _HEADER_AT) + _TAKEN)
    return max(0, load64(table + _N_RECORDS) - (load64(load64(table + _STATE) + _HEAD) - taken))
