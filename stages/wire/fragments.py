"""Later fragments follow their first: a bounded memory of fragmented datagrams.

| kernel | does |
|---|---|
| follow_fragments | KEY rows of fragments: ports and detail of the first to later ones, conflicts, and all counters of fragments |

A datagram is told by its addresses, identification, input and outer two VLANs, with IPv4 by its protocol too (RFC 791, 8200). It is
forgotten 60 s after the first to come of its fragments (RFC 8200 section 4.5: what a host waits; who forgets earlier can be made to take
another fragment for the first one than the host does), or 1 s if all of it has come (its number may be in use anew, RFC 4963), or when its
bucket is full of younger ones: seeded, so that nobody can choose which. Times are those of the packets.

A datagram is a conflict from the fragment on that

| | |
|---|---|
| overlaps another without being its exact repetition | RFC 1858, 5722; teardrop |
| is a second first one with other ports, flags or type | |
| ends behind the last one, is a second last one with another end, or ends behind 65,535 | "ping of death" |
| names another protocol (IPv6) | RFC 8200 would have the first one's; nobody sends such |
| leaves more than RUNS separate pieces, or repeats one of a piece of many different lengths | what cannot be remembered |

Nothing is held back: what came before that fragment, or before the first one, has been judged by what was known then.
"""

from __future__ import annotations

from broker.core import layout
from broker.core.metrics import index
from stages.jit import kernel
from stages.memory import add64, copy, load8, load16, load32, load64, load_be16, load_be32, mix, store8, store16, store32, store64
from stages.wire.chain import CHAIN_AT, CHAIN_LONG, chain_of
from stages.wire.fragment_table import (
    COMPLETE_LIFETIME,
    ENTRY,
    ENTRY_CONFLICT,
    ENTRY_FREE,
    ENTRY_KNOWN,
    ENTRY_TINY,
    ENTRY_WAITING,
    LIFETIME,
    RUN,
    RUNS,
    TABLE,
    TICK_BITS,
    WAYS,
)
from stages.wire.headers import (
    ETHERNET_BYTES,
    ETHERTYPE,
    FRAGMENT_BYTES,
    FRAGMENT_IDENTIFICATION,
    FRAGMENT_MORE_BIT,
    FRAGMENT_OFFSET,
    FRAGMENT_OFFSET_BITS,
    IP6_BYTES,
    IP6_LENGTH,
    IP_FRAGMENT,
    IP_IDENTIFICATION,
    IP_LENGTH,
    IP_MORE_BIT,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
    TAG_BYTES,
)
from stages.wire.key import (
    DETAIL_HIDDEN,
    DETAIL_NONE,
    FRAGMENT_ATOMIC,
    FRAGMENT_CONFLICT,
    FRAGMENT_FOLLOWED,
    FRAGMENT_LATER,
    FRAGMENT_NONE,
    FRAGMENT_TINY,
    KEY,
    KIND_IP6,
    PORT_HIDDEN,
    PORT_NONE,
)

assert KEY.fields is not None
assert ENTRY.fields is not None
assert TABLE.fields is not None
assert RUN.fields is not None
assert layout.PACKET.fields is not None
_ROW_BYTES, _ROW_AT, _ROW_CAPLEN = KEY.itemsize, KEY.fields["at"][1], KEY.fields["caplen"][1]
_ROW_ADDRESSES, _ADDRESS_BYTES = KEY.fields["source_high"][1], 32
_ROW_SOURCE_PORT, _ROW_DESTINATION_PORT = KEY.fields["source_port"][1], KEY.fields["destination_port"][1]
_ROW_SOURCE_STATE, _ROW_DESTINATION_STATE = KEY.fields["source_state"][1], KEY.fields["destination_state"][1]
_ROW_KIND, _ROW_N_TAGS, _ROW_ODD = KEY.fields["kind"][1], KEY.fields["n_tags"][1], KEY.fields["odd"][1]
_ROW_FRAGMENT, _ROW_DETAIL = KEY.fields["fragment"][1], KEY.fields["detail"][1]

_KEY, _TIME, _END, _REACH, _COVERED = (ENTRY.fields[name][1] for name in ("key", "time", "end", "reach", "covered"))
_SOURCE_PORT, _DESTINATION_PORT, _DETAIL = (ENTRY.fields[name][1] for name in ("source_port", "destination_port", "detail"))
_SOURCE_STATE, _DESTINATION_STATE = ENTRY.fields["source_state"][1], ENTRY.fields["destination_state"][1]
_STATE, _N_RUNS, _PROTOCOL, _RUNS = (ENTRY.fields[name][1] for name in ("state", "n_runs", "protocol", "runs"))
_RUN_START, _RUN_LENGTH, _RUN_END = (RUN.fields[name][1] for name in ("start", "length", "end"))
_ENTRY_BYTES, _RUN_BYTES, _KEY_WORDS = ENTRY.itemsize, RUN.itemsize, 6
_MASK, _SEED_A, _SEED_B, _WANTED = (TABLE.fields[name][1] for name in ("mask", "seed_a", "seed_b", "wanted"))
_TABLE_BYTES = TABLE.itemsize

_PACKET_BYTES = layout.PACKET.itemsize
_PACKET_TS, _PACKET_INPUT = layout.PACKET.fields["ts_ns"][1], layout.PACKET.fields["input"][1]

_FRAGMENTS, _FOLLOWED, _UNKNOWN, _TINY, _OVERLAPPING, _ATOMIC = (
    8 * index("filter", f"fragments_{name}packets") for name in ("", "followed_", "unknown_", "tiny_", "overlapping_", "atomic_")
)
_EVICTED, _CHAIN_LONG = 8 * index("filter", "fragments_evicted"), 8 * index("filter", "ip6_chain_long_packets")

_MAX_END = 65_535
_IS_IP6 = 1 << 40
_IS_DEAD, _IS_COMPLETE = 1 << 20, 1 << 18  # above any age that counts


@kernel
def _identify(table: int, row: int, packet: int, at: int, l3: int, header: int) -> int:
    """Writes the datagram's key to TABLE.wanted; `header`: of the fragment header, 0: IPv4. Returns the key's hash."""
    wanted = table + _WANTED
    copy(wanted, row + _ROW_ADDRESSES, _ADDRESS_BYTES)
    if header:
        name = load_be32(at + header + FRAGMENT_IDENTIFICATION) | _IS_IP6
    else:
        name = load_be16(at + l3 + IP_IDENTIFICATION) | load8(at + l3 + IP_PROTOCOL) << 32
    n_tags, place = load8(row + _ROW_N_TAGS), 0
    for i in range(min(n_tags, 2)):
        place = place << 12 | (load_be16(at + ETHERTYPE + 2 + TAG_BYTES * i) & 0xFFF)
    store64(wanted + _ADDRESS_BYTES, name | load16(packet + _PACKET_INPUT) << 48)
    store64(wanted + _ADDRESS_BYTES + 8, place | n_tags << 24)
    place = 0
    for i in range(0, 8 * _KEY_WORDS, 16):
        place = mix(place ^ load64(wanted + i) ^ load64(table + _SEED_A), load64(wanted + i + 8) ^ load64(table + _SEED_B))
    return place


@kernel
def _is_complete(entry: int) -> bool:
    return load32(entry + _END) != 0 and load32(entry + _COVERED) == load32(entry + _END)


@kernel
def _is_about(entry: int, wanted: int) -> bool:
    differences = 0
    for i in range(0, 8 * _KEY_WORDS, 8):
        differences |= load64(entry + _KEY + i) ^ load64(wanted + i)
    return differences == 0


@kernel
def _entry_of(table: int, hashed: int, now: int, counters: int) -> int:
    """The entry about TABLE.wanted; a new one takes the place of one that is dead, or of the oldest in its bucket, best a complete one."""
    bucket = table + _TABLE_BYTES + (hashed & load64(table + _MASK)) * WAYS * _ENTRY_BYTES
    chosen, most = bucket, -(1 << 32)
    for way in range(WAYS):
        entry = bucket + way * _ENTRY_BYTES
        age, complete = now - load64(entry + _TIME), _is_complete(entry)
        lifetime = COMPLETE_LIFETIME if complete else LIFETIME
        rank = age + _IS_COMPLETE if complete else age
        if load8(entry + _STATE) == ENTRY_FREE or age < -LIFETIME or age >= lifetime:  # far in the future: the clock was set back
            rank = _IS_DEAD
        elif _is_about(entry, table + _WANTED):
            return entry
        if rank > most:
            chosen, most = entry, rank
    if most < _IS_COMPLETE - LIFETIME:
        add64(counters + _EVICTED, 1)
    copy(chosen + _KEY, table + _WANTED, 8 * _KEY_WORDS)
    store64(chosen + _TIME, now)
    for i in range(_END, _ENTRY_BYTES, 8):
        store64(chosen + i, 0)
    store8(chosen + _STATE, ENTRY_WAITING)
    return chosen


@kernel
def _joins(run: int, length: int) -> bool:
    return run != 0 and load16(run + _RUN_LENGTH) == length


@kernel
def _add_bytes(entry: int, start: int, end: int) -> int:
    """Remembers that [start, end) has come; 1: it contradicts what had."""
    length, n_runs = end - start, load8(entry + _N_RUNS)
    left, right = 0, 0
    for i in range(n_runs):
        run = entry + _RUNS + i * _RUN_BYTES
        run_start, run_end = 8 * load16(run + _RUN_START), load32(run + _RUN_END)
        if start < run_end and end > run_start:
            repeats = load16(run + _RUN_LENGTH) == length and start >= run_start and (start - run_start) % length == 0
            return 0 if repeats else 1
        if run_end == start:
            left = run
        if run_start == end:
            right = run
    store32(entry + _COVERED, load32(entry + _COVERED) + length)
    if _joins(left, length):
        store32(left + _RUN_END, end)
        if _joins(right, length):
            store32(left + _RUN_END, load32(right + _RUN_END))
            store64(right, load64(entry + _RUNS + (n_runs - 1) * _RUN_BYTES))
            store8(entry + _N_RUNS, n_runs - 1)
    elif _joins(right, length):
        store16(right + _RUN_START, start >> 3)
    elif n_runs < RUNS:
        run = entry + _RUNS + n_runs * _RUN_BYTES
        store16(run + _RUN_START, start >> 3)
        store16(run + _RUN_LENGTH, length)
        store32(run + _RUN_END, end)
        store8(entry + _N_RUNS, n_runs + 1)
    elif left:
        store32(left + _RUN_END, end)
        store16(left + _RUN_LENGTH, 0)
    elif right:
        store16(right + _RUN_START, start >> 3)
        store16(right + _RUN_LENGTH, 0)
    else:
        return 1
    return 0


@kernel
def _is_other_first(entry: int, row: int) -> bool:
    state = ENTRY_TINY if load8(row + _ROW_FRAGMENT) == FRAGMENT_TINY else ENTRY_KNOWN
    return (
        load8(entry + _STATE) != state
        or load16(entry + _SOURCE_PORT) != load16(row + _ROW_SOURCE_PORT)
        or load16(entry + _DESTINATION_PORT) != load16(row + _ROW_DESTINATION_PORT)
        or load8(entry + _SOURCE_STATE) != load8(row + _ROW_SOURCE_STATE)
        or load8(entry + _DESTINATION_STATE) != load8(row + _ROW_DESTINATION_STATE)
        or load16(entry + _DETAIL) != load16(row + _ROW_DETAIL)
    )


@kernel
def _contradicts(entry: int, row: int, start: int, end: int, more: int, protocol: int) -> bool:
    """Adds the fragment to what is known of its datagram, unless it contradicts it."""
    known_end, reach, known_protocol = load32(entry + _END), load32(entry + _REACH), load16(entry + _PROTOCOL)
    if end > _MAX_END or (known_protocol != 0 and known_protocol != protocol + 1):
        return True
    if known_end != 0 and (end > known_end or (more == 0 and end != known_end)):
        return True
    if more == 0 and end < reach:
        return True
    if start == 0 and load8(entry + _STATE) != ENTRY_WAITING and _is_other_first(entry, row):
        return True
    if end > start and _add_bytes(entry, start, end):
        return True
    store16(entry + _PROTOCOL, protocol + 1)
    store32(entry + _REACH, max(end, reach))
    if more == 0:
        store32(entry + _END, end)
    return False


@kernel
def _learn(entry: int, row: int) -> None:
    store16(entry + _SOURCE_PORT, load16(row + _ROW_SOURCE_PORT))
    store16(entry + _DESTINATION_PORT, load16(row + _ROW_DESTINATION_PORT))
    store8(entry + _SOURCE_STATE, load8(row + _ROW_SOURCE_STATE))
    store8(entry + _DESTINATION_STATE, load8(row + _ROW_DESTINATION_STATE))
    store16(entry + _DETAIL, load16(row + _ROW_DETAIL))
    store8(entry + _STATE, ENTRY_TINY if load8(row + _ROW_FRAGMENT) == FRAGMENT_TINY else ENTRY_KNOWN)


@kernel
def _follow(row: int, entry: int) -> None:
    """What the first does not show, as it is not looked for behind other extension headers, stays hidden."""
    if load8(entry + _SOURCE_STATE) != PORT_NONE:
        store16(row + _ROW_SOURCE_PORT, load16(entry + _SOURCE_PORT))
        store16(row + _ROW_DESTINATION_PORT, load16(entry + _DESTINATION_PORT))
        store8(row + _ROW_SOURCE_STATE, load8(entry + _SOURCE_STATE))
        store8(row + _ROW_DESTINATION_STATE, load8(entry + _DESTINATION_STATE))
    if load16(entry + _DETAIL) != DETAIL_NONE:
        store16(row + _ROW_DETAIL, load16(entry + _DETAIL))
    store8(row + _ROW_FRAGMENT, FRAGMENT_FOLLOWED)


@kernel
def _hide(row: int) -> None:
    if load8(row + _ROW_SOURCE_STATE) != PORT_NONE:
        store16(row + _ROW_SOURCE_PORT, 0)
        store16(row + _ROW_DESTINATION_PORT, 0)
        store8(row + _ROW_SOURCE_STATE, PORT_HIDDEN)
        store8(row + _ROW_DESTINATION_STATE, PORT_HIDDEN)
    if load16(row + _ROW_DETAIL) != DETAIL_NONE:
        store16(row + _ROW_DETAIL, DETAIL_HIDDEN)
    store8(row + _ROW_FRAGMENT, FRAGMENT_CONFLICT)


@kernel
def _look_up(row: int, packet: int, table: int, l3: int, header: int, counters: int) -> None:
    """`header`: offset of the fragment header, 0: IPv4. Both fixed headers are there; the payload need not be."""
    at = load64(row + _ROW_AT)
    hashed = _identify(table, row, packet, at, l3, header)
    entry = _entry_of(table, hashed, load64(packet + _PACKET_TS) >> TICK_BITS, counters)
    if header:
        bits, protocol = load_be16(at + header + FRAGMENT_OFFSET), load8(at + header)
        start, more = bits & FRAGMENT_OFFSET_BITS, bits & FRAGMENT_MORE_BIT
        n_bytes = l3 + IP6_BYTES + load_be16(at + l3 + IP6_LENGTH) - header - FRAGMENT_BYTES
    else:
        bits, protocol = load_be16(at + l3 + IP_FRAGMENT), load8(at + l3 + IP_PROTOCOL)
        start, more = 8 * (bits & IP_OFFSET_BITS), bits & IP_MORE_BIT
        n_bytes = load_be16(at + l3 + IP_LENGTH) - 4 * (load8(at + l3) & 15)
    if load8(entry + _STATE) != ENTRY_CONFLICT and _contradicts(entry, row, start, start + max(0, n_bytes), more, protocol):
        store8(entry + _STATE, ENTRY_CONFLICT)
    state = load8(entry + _STATE)
    if state == ENTRY_CONFLICT:
        _hide(row)
    elif start == 0:
        _learn(entry, row)
    elif state == ENTRY_KNOWN and load8(row + _ROW_FRAGMENT) == FRAGMENT_LATER:
        _follow(row, entry)


@kernel
def _follow_row(row: int, packet: int, table: int, counters: int) -> None:
    at, caplen, fragment = load64(row + _ROW_AT), load32(row + _ROW_CAPLEN), load8(row + _ROW_FRAGMENT)
    l3, header, shown = ETHERNET_BYTES + TAG_BYTES * load8(row + _ROW_N_TAGS), 0, load8(row + _ROW_ODD) == 0
    if load8(row + _ROW_KIND) == KIND_IP6:
        found = chain_of(at, caplen, l3)
        header = l3 + (found >> CHAIN_AT)
        shown = caplen >= header + FRAGMENT_BYTES
        add64(counters + _CHAIN_LONG, found >> CHAIN_LONG & 1)
    if fragment == FRAGMENT_NONE:
        return
    if shown and fragment != FRAGMENT_ATOMIC:
        _look_up(row, packet, table, l3, header, counters)
        fragment = load8(row + _ROW_FRAGMENT)
    add64(counters + _FRAGMENTS, 1)
    if fragment == FRAGMENT_LATER:
        add64(counters + _UNKNOWN, 1)
    elif fragment == FRAGMENT_FOLLOWED:
        add64(counters + _FOLLOWED, 1)
    elif fragment == FRAGMENT_ATOMIC:
        add64(counters + _ATOMIC, 1)
    elif fragment == FRAGMENT_TINY:
        add64(counters + _TINY, 1)
    elif fragment == FRAGMENT_CONFLICT:
        add64(counters + _OVERLAPPING, 1)


@kernel
def follow_fragments(rows_at: int, packets_at: int, n: int, table_at: int, counters_at: int) -> None:
    """n KEY rows and their PACKET rows; only where `parse_packets` returned something there is anything to do."""
    for i in range(n):
        row = rows_at + i * _ROW_BYTES
        is_hidden_chain = load8(row + _ROW_KIND) == KIND_IP6 and load16(row + _ROW_DETAIL) == DETAIL_HIDDEN
        if load8(row + _ROW_FRAGMENT) != FRAGMENT_NONE or is_hidden_chain:
            _follow_row(row, packets_at + i * _PACKET_BYTES, table_at, counters_at)
