"""One block of packets: parse, class, look up, and on a miss run the rules that are left.

| kernel | does |
|---|---|
| judge_block | VERDICT rows and BLOCK.n_wanted of a block, its counters and those of its rules; returns packets judged |
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import IMAGE
from broker.core import layout
from broker.core.batch import BATCH
from broker.core.layout import CAUSE_COLLECTED, CAUSE_FILTERED, CAUSE_RULE, CAUSE_UNDETERMINED
from broker.core.metrics import index
from stages.filter.classes import pack_keys
from stages.filter.index import judge_packet
from stages.filter.program import TEST_BYTES
from stages.filter.rule_counts import begin_counts, count_rule
from stages.filter.rules import answer_test
from stages.filter.state import (
    CHUNK,
    MAX_ASKED,
    MEMO,
    NODE,
    OUTCOME,
    POLICY_KEY_BUCKET,
    POLICY_KEY_BYTES,
    RESULT_BITS,
    RESULT_DROP,
    RESULT_NONE,
    RESULT_PASS,
    STATE,
)
from stages.jit import kernel
from stages.memory import add64, copy, load8, load32, load64, store32, store64, trailing_zeros
from stages.wire.fragments import follow_fragments
from stages.wire.key import FRAGMENT_CONFLICT, FRAGMENT_TINY, KEY
from stages.wire.parse import parse_packets

assert BATCH.fields is not None
assert STATE.fields is not None
assert OUTCOME.fields is not None
assert IMAGE.fields is not None
assert KEY.fields is not None
assert MEMO.fields is not None
assert NODE.fields is not None
assert image.MAP.fields is not None
assert layout.BLOCK.fields is not None
assert layout.PACKET.fields is not None
assert layout.VERDICT.fields is not None

_ROWS_AT, _KEYS_AT, _OUTCOMES_AT, _OUTCOME_BYTES = (
    STATE.fields[name][1] for name in ("rows_at", "keys_at", "outcomes_at", "outcome_bytes")
)
_TOUCHED_AT, _MEMO_AT, _MEMO_MASK = (STATE.fields[name][1] for name in ("touched_at", "memo_at", "memo_mask"))
_NODES_AT, _N_NODES, _MAX_NODES = (STATE.fields[name][1] for name in ("nodes_at", "n_nodes", "max_nodes"))
_ASKED_AT, _N_ASKED = (STATE.fields[name][1] for name in ("asked_at", "n_asked"))
_SEED, _USE_MEMO, _TABLE_AT = (STATE.fields[name][1] for name in ("seed", "use_memo", "table_at"))
_COUNTING_AT, _COUNTERS_AT, _IMAGE_AT = (STATE.fields[name][1] for name in ("counting_at", "counters_at", "image_at"))

_BATCH_SEQ, _BATCH_BLOCK, _BATCH_PACKETS, _BATCH_VERDICTS, _BATCH_DATA, _BATCH_DATA_BYTES, _BATCH_MAX_PACKETS = (
    BATCH.fields[name][1] for name in ("seq", "block_at", "packets_at", "verdicts_at", "data_at", "data_bytes", "max_packets")
)

_VERDICT, _CAUSE, _UNDETERMINED = (OUTCOME.fields[name][1] for name in ("verdict", "cause", "undetermined"))
_WANTED, _PACKETS, _BYTES = (OUTCOME.fields[name][1] for name in ("n_wanted", "n_packets", "n_bytes"))
_RESULTS = OUTCOME.itemsize

_N_MAPS, _MAPS_AT, _TESTS_AT, _PREDICATES_AT = (IMAGE.fields[name][1] for name in ("n_maps", "maps_at", "tests_at", "predicates_at"))
_SLOT, _MAP_BYTES = image.MAP.fields["slot"][1], image.MAP.itemsize

_KEY_BYTES = KEY.itemsize
_KEY_FLOW, _KEY_ODD, _KEY_FRAGMENT = (KEY.fields[name][1] for name in ("flow", "odd", "fragment"))
_ENTRY_BYTES, _ENTRY_LINK = MEMO.itemsize, MEMO.fields["link"][1]
_NODE_BYTES, _LINKS = NODE.itemsize, NODE.fields["links"][1]

_BLOCK_N_PACKETS, _BLOCK_N_WANTED = layout.BLOCK.fields["n_packets"][1], layout.BLOCK.fields["n_wanted"][1]
_PACKET_BYTES, _VERDICT_BYTES = layout.PACKET.itemsize, layout.VERDICT.itemsize
_PACKET_WIRELEN = layout.PACKET.fields["wirelen"][1]
_OUT_VERDICT, _OUT_FLOW, _OUT_CAUSE = (layout.VERDICT.fields[name][1] for name in ("verdict", "flow", "cause"))

_JUDGED, _FORWARDED, _COLLECTED = (8 * index("filter", f"{name}_packets") for name in ("judged", "forwarded", "collected"))
_FILTERED, _DROPPED_RULE = 8 * index("filter", "filtered_packets"), 8 * index("filter", "dropped_rule")
_DROPPED_UNDETERMINED, _UNDETERMINED_PACKETS = 8 * index("filter", "dropped_undetermined"), 8 * index("filter", "undetermined_packets")
_MAP_PASSED, _MAP_PASSED_BYTES = 8 * index("filter", "map_passed_packets"), 8 * index("filter", "map_passed_bytes")
_MAP_DROPPED, _MAP_DROPPED_BYTES = 8 * index("filter", "map_dropped_packets"), 8 * index("filter", "map_dropped_bytes")
_MAP_UNDETERMINED, _TOOL_WANTED = 8 * index("filter", "map_undetermined_packets"), 8 * index("filter", "wanted_frames")


@kernel
def _link_of(entry: int, key: int) -> int:
    """Address of the link if this memo entry is about the key, else 0."""
    if load64(entry) == load64(key) and load64(entry + 8) == load64(key + 8) and load64(entry + 16) == load64(key + 16):
        return entry + _ENTRY_LINK
    return 0


@kernel
def _follow(link: int, state: int, image_at: int, row: int, packet: int) -> int:
    """Asks the predicates on the way; returns the address of a link that is an outcome, or not known."""
    value = load64(link)
    while value < 0:  # a node has a higher number than the one that leads to it
        node = load64(state + _NODES_AT) - (value + 1) * _NODE_BYTES
        asked = load64(node)
        test = load32(image_at + load64(image_at + _PREDICATES_AT) + 4 * (asked >> 1))
        at = image_at + load64(image_at + _TESTS_AT) + test * TEST_BYTES
        link = node + _LINKS + 8 * answer_test(at, image_at, row, packet, asked & 1)
        value = load64(link)
    return link


@kernel
def _remember(link: int, state: int, outcome: int) -> None:
    """What was asked for this packet leads to its outcome. Full: it is not remembered, and `State.make_room` forgets all."""
    n_asked = load64(state + _N_ASKED)
    if n_asked > MAX_ASKED or load64(state + _N_NODES) + n_asked > load64(state + _MAX_NODES):
        return
    for i in range(n_asked):
        entry, value = load64(load64(state + _ASKED_AT) + 8 * i), load64(link)
        if value == 0:
            number = load64(state + _N_NODES)
            store64(state + _N_NODES, number + 1)
            value = -(number + 1)
            node = load64(state + _NODES_AT) + number * _NODE_BYTES
            store64(node, entry >> 2)
            for answer in range(3):
                store64(node + _LINKS + 8 * answer, 0)
            store64(link, value)
        link = load64(state + _NODES_AT) - (value + 1) * _NODE_BYTES + _LINKS + 8 * (entry & 3)
    store64(link, outcome + 1)


@kernel
def _says_all(row: int) -> bool:
    """Packets with the key of this one are all answered alike."""
    return load8(row + _KEY_ODD) == 0 and load8(row + _KEY_FRAGMENT) not in (FRAGMENT_TINY, FRAGMENT_CONFLICT)


@kernel
def _outcome_of(state: int, image_at: int, row: int, key: int, packet: int, use_memo: int) -> int:
    if use_memo == 0 or not _says_all(row):
        return judge_packet(state, image_at, row, key, packet)
    bucket = load64(state + _MEMO_AT) + load64(key + POLICY_KEY_BUCKET) * 2 * _ENTRY_BYTES
    start = _link_of(bucket, key)
    if start == 0:
        start = _link_of(bucket + _ENTRY_BYTES, key)
    if start != 0:
        outcome = load64(_follow(start, state, image_at, row, packet)) - 1
        if outcome >= 0:
            return outcome
    outcome = judge_packet(state, image_at, row, key, packet)
    if start == 0:
        copy(bucket + _ENTRY_BYTES, bucket, _ENTRY_BYTES)  # the older of both goes
        copy(bucket, key, _ENTRY_LINK)
        start = bucket + _ENTRY_LINK
        store64(start, 0)
    _remember(start, state, outcome)
    return outcome


@kernel
def _count_maps(outcome: int, image_at: int, counters: int, counting: int, n: int, n_bytes: int) -> None:
    maps = image_at + load64(image_at + _MAPS_AT)
    for m in range(load64(image_at + _N_MAPS)):
        decision = load32(outcome + _RESULTS + 4 * m)
        result = decision & ((1 << RESULT_BITS) - 1)
        if result == RESULT_NONE:
            continue
        count_rule(counting, decision, n, n_bytes)
        slot = 8 * load64(maps + m * _MAP_BYTES + _SLOT)
        if result == RESULT_PASS:
            add64(counters + _MAP_PASSED + slot, n)
            add64(counters + _MAP_PASSED_BYTES + slot, n_bytes)
        elif result == RESULT_DROP:
            add64(counters + _MAP_DROPPED + slot, n)
            add64(counters + _MAP_DROPPED_BYTES + slot, n_bytes)
        else:
            add64(counters + _MAP_UNDETERMINED + slot, n)


@kernel
def _count(outcome: int, image_at: int, counters: int, counting: int) -> None:
    """All that the packets of one outcome mean, then its counts start anew."""
    n, n_bytes = load64(outcome + _PACKETS), load64(outcome + _BYTES)
    verdict, cause = load64(outcome + _VERDICT), load64(outcome + _CAUSE)
    add64(counters + _JUDGED, n)
    if verdict != 0:
        add64(counters + _FORWARDED, n)
    if cause == CAUSE_COLLECTED:
        add64(counters + _COLLECTED, n)
    elif cause == CAUSE_FILTERED:
        add64(counters + _FILTERED, n)
    elif cause == CAUSE_RULE:
        add64(counters + _DROPPED_RULE, n)
    elif cause == CAUSE_UNDETERMINED:
        add64(counters + _DROPPED_UNDETERMINED, n)
    if load64(outcome + _UNDETERMINED):
        add64(counters + _UNDETERMINED_PACKETS, n)
    while verdict != 0:
        add64(counters + _TOOL_WANTED + 8 * trailing_zeros(verdict), n)
        verdict &= verdict - 1
    _count_maps(outcome, image_at, counters, counting, n, n_bytes)
    store64(outcome + _PACKETS, 0)
    store64(outcome + _BYTES, 0)


@kernel
def judge_block(batch: int, state: int) -> int:
    block, packets, verdicts = load64(batch + _BATCH_BLOCK), load64(batch + _BATCH_PACKETS), load64(batch + _BATCH_VERDICTS)
    data, data_bytes = load64(batch + _BATCH_DATA), load64(batch + _BATCH_DATA_BYTES)
    image_at, counters = load64(state + _IMAGE_AT), load64(state + _COUNTERS_AT)
    n_packets = max(0, min(load64(block + _BLOCK_N_PACKETS), load64(batch + _BATCH_MAX_PACKETS)))
    rows, keys, outcomes = load64(state + _ROWS_AT), load64(state + _KEYS_AT), load64(state + _OUTCOMES_AT)
    use_memo, size = load64(state + _USE_MEMO), load64(state + _OUTCOME_BYTES)
    touched, n_touched, n_wanted = load64(state + _TOUCHED_AT), 0, 0
    for first in range(0, n_packets, CHUNK):
        last = min(first + CHUNK, n_packets)
        chunk = packets + first * _PACKET_BYTES
        if parse_packets(packets, first, last, data, data_bytes, rows):
            follow_fragments(rows, chunk, last - first, load64(state + _TABLE_AT), counters)
        pack_keys(keys, image_at, rows, chunk, last - first, load64(state + _SEED), load64(state + _MEMO_AT), load64(state + _MEMO_MASK))
        for i in range(first, last):
            row, key, packet = rows + (i - first) * _KEY_BYTES, keys + (i - first) * POLICY_KEY_BYTES, packets + i * _PACKET_BYTES
            number = _outcome_of(state, image_at, row, key, packet, use_memo)
            outcome, verdict = outcomes + number * size, verdicts + i * _VERDICT_BYTES
            if load64(outcome + _PACKETS) == 0:
                store64(touched + 8 * n_touched, number)
                n_touched += 1
            add64(outcome + _PACKETS, 1)
            add64(outcome + _BYTES, load32(packet + _PACKET_WIRELEN))
            n_wanted += load64(outcome + _WANTED)
            store64(verdict + _OUT_VERDICT, load64(outcome + _VERDICT))
            store32(verdict + _OUT_FLOW, load32(row + _KEY_FLOW))
            store32(verdict + _OUT_CAUSE, load64(outcome + _CAUSE))  # and the padding behind it
    counting = load64(state + _COUNTING_AT)
    begin_counts(counting, load64(batch + _BATCH_SEQ))
    for i in range(n_touched):
        _count(outcomes + load64(touched + 8 * i) * size, image_at, counters, counting)
    store64(block + _BLOCK_N_WANTED, n_wanted)
    return n_packets
