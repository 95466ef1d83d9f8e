"""The index: from the key of a packet, in either direction, to the entry of its flow.

Open addressing, linear probing; a word is the upper 40 bits of the hash, and the number of an entry + 1. What is removed leaves no
mark: the words behind it move up. The hash is keyed, so that nobody can choose traffic that collides.

| kernel | does |
|---|---|
| hash_key | 64 bits of addresses, ports, `what` and `link`; the same in both directions |
| look_ahead | the first entry whose hash looks right, + 1, and has it fetched |
| find_entry | the number of the entry << 1 | 1 if the packet goes from destination to source; -1: there is none |
| insert_entry, remove_entry | |
| rebuild_index | index and free entries anew, from the entries |
"""

from __future__ import annotations

from broker.core.flow_layout import STATE, WHAT_TTL
from stages.flows.table import ENTRY_BYTES, TABLE
from stages.jit import kernel
from stages.memory import load64, mix, prefetch, shift_right, store32, store64

assert TABLE.fields is not None
assert STATE.fields is not None
_INDEX_AT, _N_INDEX, _ENTRIES_AT, _MAX_FLOWS = (TABLE.fields[name][1] for name in ("index_at", "n_index", "entries_at", "max_flows"))
_SEED_A, _SEED_B, _FREE_AT, _N_FREE = (TABLE.fields[name][1] for name in ("seed_a", "seed_b", "free_at", "n_free"))
_STATE_AT, _N_FLOWS = TABLE.fields["state_at"][1], STATE.fields["n_flows"][1]

# A key: as ENTRY begins.
SOURCE_HIGH, SOURCE_LOW, DESTINATION_HIGH, DESTINATION_LOW, WHAT, LINK = (8 * n for n in range(6))

_SPREAD_A, _SPREAD_B = 0x2D358DCCAA6C78A5, 0x0BB67AE8584CAA73  # odd
_PROBES = 3
_ENTRY_BITS = 24
_ENTRY_MASK = (1 << _ENTRY_BITS) - 1
_KEY_MASK = (1 << WHAT_TTL) - 1
_PORTS_MASK = (1 << 32) - 1


@kernel
def hash_key(table: int, key: int) -> int:
    seed_a, seed_b, what = load64(table + _SEED_A), load64(table + _SEED_B), load64(key + WHAT) & _KEY_MASK
    one = mix(load64(key + SOURCE_LOW) ^ seed_a, load64(key + SOURCE_HIGH) ^ seed_b ^ (what & 0xFFFF) << 40)
    two = mix(load64(key + DESTINATION_LOW) ^ seed_a, load64(key + DESTINATION_HIGH) ^ seed_b ^ (what >> 16 & 0xFFFF) << 40)
    return one + two ^ ((what >> 32) + load64(key + LINK) * _SPREAD_B) * _SPREAD_A


@kernel
def _home(word: int, n_index: int) -> int:
    return shift_right(word, 32) * n_index >> 32


@kernel
def _swapped(what: int) -> int:
    return what & ~_PORTS_MASK | (what & 0xFFFF) << 16 | what >> 16 & 0xFFFF


@kernel
def way_of(entry: int, key: int) -> int:
    """0: from the source; 1: from the destination; -1: another flow."""
    what, mine = load64(key + WHAT) & _KEY_MASK, load64(entry + WHAT) & _KEY_MASK
    if load64(key + LINK) != load64(entry + LINK):
        return -1
    if (
        what == mine
        and load64(key + SOURCE_LOW) == load64(entry + SOURCE_LOW)
        and load64(key + DESTINATION_LOW) == load64(entry + DESTINATION_LOW)
        and load64(key + SOURCE_HIGH) == load64(entry + SOURCE_HIGH)
        and load64(key + DESTINATION_HIGH) == load64(entry + DESTINATION_HIGH)
    ):
        return 0
    if (
        _swapped(what) == mine
        and load64(key + SOURCE_LOW) == load64(entry + DESTINATION_LOW)
        and load64(key + DESTINATION_LOW) == load64(entry + SOURCE_LOW)
        and load64(key + SOURCE_HIGH) == load64(entry + DESTINATION_HIGH)
        and load64(key + DESTINATION_HIGH) == load64(entry + SOURCE_HIGH)
    ):
        return 1
    return -1


@kernel
def fetch_index(table: int, hashed: int) -> None:
    """The line that a search begins in, and the next one if it is likely to end there."""
    at = load64(table + _INDEX_AT) + 8 * _home(hashed, load64(table + _N_INDEX))
    prefetch(at)
    prefetch(at + 8 * _PROBES)


@kernel
def look_ahead(table: int, hashed: int) -> int:
    index, n_index = load64(table + _INDEX_AT), load64(table + _N_INDEX)
    at = _home(hashed, n_index)
    word = load64(index + 8 * at)
    while word != 0:
        if shift_right(word ^ hashed, _ENTRY_BITS) == 0:
            entry = load64(table + _ENTRIES_AT) + ((word & _ENTRY_MASK) - 1) * ENTRY_BYTES
            prefetch(entry)
            prefetch(entry + 64)
            return word & _ENTRY_MASK
        at = at + 1 if at + 1 < n_index else 0
        word = load64(index + 8 * at)
    return 0


@kernel
def find_entry(table: int, hashed: int, key: int) -> int:
    index, n_index, entries = load64(table + _INDEX_AT), load64(table + _N_INDEX), load64(table + _ENTRIES_AT)
    at = _home(hashed, n_index)
    word = load64(index + 8 * at)
    while word != 0:  # a third of the words is always 0
        if shift_right(word ^ hashed, _ENTRY_BITS) == 0:
            number = (word & _ENTRY_MASK) - 1
            way = way_of(entries + number * ENTRY_BYTES, key)
            if way >= 0:
                return number << 1 | way
        at = at + 1 if at + 1 < n_index else 0
        word = load64(index + 8 * at)
    return -1


@kernel
def insert_entry(table: int, hashed: int, number: int) -> None:
    index, n_index = load64(table + _INDEX_AT), load64(table + _N_INDEX)
    at = _home(hashed, n_index)
    while load64(index + 8 * at) != 0:
        at = at + 1 if at + 1 < n_index else 0
    store64(index + 8 * at, hashed & ~_ENTRY_MASK | number + 1)


@kernel
def remove_entry(table: int, hashed: int, number: int) -> None:
    index, n_index = load64(table + _INDEX_AT), load64(table + _N_INDEX)
    hole = _home(hashed, n_index)
    word = load64(index + 8 * hole)
    while word & _ENTRY_MASK != number + 1:
        if word == 0:
            return
        hole = hole + 1 if hole + 1 < n_index else 0
        word = load64(index + 8 * hole)
    at = hole
    while True:
        at = at + 1 if at + 1 < n_index else 0
        word = load64(index + 8 * at)
        if word == 0:
            break
        home = _home(word, n_index)
        # It may move into the hole unless its home lies behind the hole, up to where it is now.
        stays = hole < home <= at if hole <= at else home > hole or home <= at
        if not stays:
            store64(index + 8 * hole, word)
            hole = at
    store64(index + 8 * hole, 0)


@kernel
def rebuild_index(table: int) -> int:
    """The index must be zeroed. Returns how many entries are in use."""
    entries, max_flows, free, n_free, n_flows = load64(table + _ENTRIES_AT), load64(table + _MAX_FLOWS), load64(table + _FREE_AT), 0, 0
    for number in range(max_flows - 1, -1, -1):
        entry = entries + number * ENTRY_BYTES
        if load64(entry + WHAT) == 0:
            store32(free + 4 * n_free, number)
            n_free += 1
        else:
            insert_entry(table, hash_key(table, entry), number)
            n_flows += 1
    store64(table + _N_FREE, n_free)
    store64(load64(table + _STATE_AT) + _N_FLOWS, n_flows)
    return n_flows
