"""One block of packets: parse, class, look up, and on a miss run the program.

| kernel | does |
|---|---|
| judge_block | VERDICT rows and BLOCK.n_wanted of a block, and its counters; returns packets judged |
| judge_packet | the program of every map over one packet -> the number of its outcome |
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import DROP, IMAGE, NONE, PASS
from broker.core import layout
from broker.core.layout import CAUSE_COLLECTED, CAUSE_FILTERED, CAUSE_FORWARDED, CAUSE_RULE, CAUSE_UNDETERMINED, INPUTS, TOOLS
from broker.core.metrics import index
from stages.filter.classes import pack_keys
from stages.filter.program import run_map
from stages.filter.state import (
    BITS_PER_MAP,
    CHUNK,
    MEMO,
    OUTCOME,
    POLICY_KEY_BUCKET,
    POLICY_KEY_BYTES,
    RESULT_DROP,
    RESULT_NONE,
    RESULT_PASS,
    RESULT_UNDETERMINED,
    RESULT_WORDS,
    STATE,
)
from stages.jit import kernel
from stages.memory import add64, copy, load8, load16, load32, load64, mix, shift_right, store32, store64
from stages.wire.fragments import follow_fragments
from stages.wire.key import FRAGMENT_FIRST, KEY
from stages.wire.parse import parse_packets

assert STATE.fields is not None
assert OUTCOME.fields is not None
assert IMAGE.fields is not None
assert KEY.fields is not None
assert MEMO.fields is not None
assert image.MAP.fields is not None
assert layout.BLOCK.fields is not None
assert layout.PACKET.fields is not None
assert layout.VERDICT.fields is not None

_ROWS_AT, _KEYS_AT, _OUTCOMES_AT = (STATE.fields[name][1] for name in ("rows_at", "keys_at", "outcomes_at"))
_N_OUTCOMES, _INDEX_AT, _INDEX_MASK = (STATE.fields[name][1] for name in ("n_outcomes", "index_at", "index_mask"))
_TOUCHED_AT, _N_TOUCHED, _MEMO_AT, _MEMO_MASK = (STATE.fields[name][1] for name in ("touched_at", "n_touched", "memo_at", "memo_mask"))
_SEED, _USE_MEMO, _N_RUNS, _TABLE_AT = (STATE.fields[name][1] for name in ("seed", "use_memo", "n_runs", "table_at"))

_VERDICT, _CAUSE, _UNDETERMINED = (OUTCOME.fields[name][1] for name in ("verdict", "cause", "undetermined"))
_WANTED, _PACKETS, _BYTES = (OUTCOME.fields[name][1] for name in ("n_wanted", "n_packets", "n_bytes"))
_OUTCOME_BYTES = OUTCOME.itemsize
_MAPS_PER_WORD = 64 // BITS_PER_MAP
_MAP_SHIFT = _MAPS_PER_WORD.bit_length() - 1

_N_MAPS, _MAPS_AT, _TESTS_AT = (IMAGE.fields[name][1] for name in ("n_maps", "maps_at", "tests_at"))
_COLLECTOR, _MEMO = IMAGE.fields["collector"][1], IMAGE.fields["memo"][1]
_FIRST, _INPUTS, _TOOLS, _SLOT = (image.MAP.fields[name][1] for name in ("first", "inputs", "tools", "slot"))
_DELIVER, _MAP_BYTES = image.MAP.fields["deliver"][1], image.MAP.itemsize

_KEY_BYTES = KEY.itemsize
_KEY_AT, _KEY_CAPLEN = KEY.fields["at"][1], KEY.fields["caplen"][1]
_KEY_FLOW, _KEY_ODD, _KEY_FRAGMENT = KEY.fields["flow"][1], KEY.fields["odd"][1], KEY.fields["fragment"][1]
_ENTRY_BYTES, _ENTRY_OUTCOME = MEMO.itemsize, MEMO.fields["outcome"][1]

_BLOCK_N_PACKETS, _BLOCK_N_WANTED = layout.BLOCK.fields["n_packets"][1], layout.BLOCK.fields["n_wanted"][1]
_PACKET_BYTES, _VERDICT_BYTES = layout.PACKET.itemsize, layout.VERDICT.itemsize
_PACKET_WIRELEN, _PACKET_INPUT = layout.PACKET.fields["wirelen"][1], layout.PACKET.fields["input"][1]
_OUT_VERDICT, _OUT_FLOW, _OUT_CAUSE = (layout.VERDICT.fields[name][1] for name in ("verdict", "flow", "cause"))

_JUDGED, _FORWARDED, _COLLECTED = (8 * index("filter", f"{name}_packets") for name in ("judged", "forwarded", "collected"))
_FILTERED, _DROPPED_RULE = 8 * index("filter", "filtered_packets"), 8 * index("filter", "dropped_rule")
_DROPPED_UNDETERMINED, _UNDETERMINED_PACKETS = 8 * index("filter", "dropped_undetermined"), 8 * index("filter", "undetermined_packets")
_MAP_PASSED, _MAP_PASSED_BYTES = 8 * index("filter", "map_passed_packets"), 8 * index("filter", "map_passed_bytes")
_MAP_DROPPED, _MAP_DROPPED_BYTES = 8 * index("filter", "map_dropped_packets"), 8 * index("filter", "map_dropped_bytes")
_MAP_UNDETERMINED, _TOOL_WANTED = 8 * index("filter", "map_undetermined_packets"), 8 * index("filter", "wanted_frames")


@kernel
def _run_maps(scratch: int, image_at: int, frame: int, caplen: int, wirelen: int, input_slot: int) -> None:
    """`scratch`: a zeroed OUTCOME that gets everything but the counts."""
    maps, tests_at = image_at + load64(image_at + _MAPS_AT), image_at + load64(image_at + _TESTS_AT)
    verdict, dropped, undetermined = 0, 0, 0
    for m in range(load64(image_at + _N_MAPS)):
        row = maps + m * _MAP_BYTES
        inputs = load64(row + _INPUTS)
        if inputs != -1 and (input_slot >= INPUTS or (shift_right(inputs, input_slot) & 1) == 0):
            continue
        answer = run_map(load64(row + _FIRST), tests_at, image_at, frame, caplen, wirelen)
        result = RESULT_NONE
        if answer == PASS:
            result = RESULT_PASS
            verdict |= load64(row + _TOOLS)
        elif answer == DROP:
            result = RESULT_DROP
            dropped = 1
        elif answer != NONE:
            result = RESULT_UNDETERMINED
            undetermined |= 1
            if load64(row + _DELIVER):
                verdict |= load64(row + _TOOLS)
            else:
                undetermined |= 2
        word = scratch + 8 * (m >> _MAP_SHIFT)
        store64(word, load64(word) | result << (BITS_PER_MAP * (m & (_MAPS_PER_WORD - 1))))
    cause = CAUSE_FORWARDED
    if verdict == 0:
        if dropped:
            cause = CAUSE_RULE
        elif undetermined & 2:
            cause = CAUSE_UNDETERMINED
        else:
            verdict = load64(image_at + _COLLECTOR)
            cause = CAUSE_FILTERED if verdict == 0 else CAUSE_COLLECTED
    wanted = 0
    for t in range(TOOLS):
        wanted += shift_right(verdict, t) & 1
    store64(scratch + _VERDICT, verdict)
    store64(scratch + _CAUSE, cause)
    store64(scratch + _UNDETERMINED, undetermined & 1)
    store64(scratch + _WANTED, wanted)


@kernel
def _same_results(one: int, two: int) -> bool:
    differences = 0
    for word in range(RESULT_WORDS):
        differences |= load64(one + 8 * word) ^ load64(two + 8 * word)
    return differences == 0


@kernel
def judge_packet(state: int, image_at: int, frame: int, caplen: int, wirelen: int, input_slot: int) -> int:
    """There is always room for one more outcome: `State.make_room` saw to it before the block."""
    add64(state + _N_RUNS, 1)
    outcomes, n_outcomes = load64(state + _OUTCOMES_AT), load64(state + _N_OUTCOMES)
    scratch = outcomes + n_outcomes * _OUTCOME_BYTES
    for word in range(RESULT_WORDS):
        store64(scratch + 8 * word, 0)
    _run_maps(scratch, image_at, frame, caplen, wirelen, input_slot)
    place = load64(state + _SEED)
    for word in range(RESULT_WORDS):
        place = mix(place ^ load64(scratch + 8 * word), 0x2545F4914F6CDD1D)
    index_at, mask = load64(state + _INDEX_AT), load64(state + _INDEX_MASK)
    place &= mask
    while True:  # at most a quarter of the index is in use
        known = load64(index_at + 8 * place) - 1
        if known < 0:
            break
        if _same_results(outcomes + known * _OUTCOME_BYTES, scratch):
            return known
        place = (place + 1) & mask
    store64(scratch + _PACKETS, 0)
    store64(scratch + _BYTES, 0)
    store64(index_at + 8 * place, n_outcomes + 1)
    store64(state + _N_OUTCOMES, n_outcomes + 1)
    return n_outcomes


@kernel
def _recall(entry: int, key: int) -> int:
    """Outcome of the key if this memo entry is about it, else -1."""
    if load64(entry) == load64(key) and load64(entry + 8) == load64(key + 8) and load64(entry + 16) == load64(key + 16):
        return load64(entry + _ENTRY_OUTCOME) - 1
    return -1


@kernel
def _outcome_of(state: int, image_at: int, row: int, key: int, packet: int, use_memo: int) -> int:
    frame, caplen = load64(row + _KEY_AT), load32(row + _KEY_CAPLEN)
    wirelen, input_slot = load32(packet + _PACKET_WIRELEN), load16(packet + _PACKET_INPUT)
    # the program looks for ports in the packet itself, where those of such a fragment are not
    if use_memo == 0 or load8(row + _KEY_ODD) != 0 or load8(row + _KEY_FRAGMENT) > FRAGMENT_FIRST:
        return judge_packet(state, image_at, frame, caplen, wirelen, input_slot)
    bucket = load64(state + _MEMO_AT) + load64(key + POLICY_KEY_BUCKET) * 2 * _ENTRY_BYTES
    outcome = _recall(bucket, key)
    if outcome < 0:
        outcome = _recall(bucket + _ENTRY_BYTES, key)
    if outcome < 0:
        outcome = judge_packet(state, image_at, frame, caplen, wirelen, input_slot)
        copy(bucket + _ENTRY_BYTES, bucket, _ENTRY_BYTES)  # the older of both goes
        copy(bucket, key, _ENTRY_OUTCOME)
        store64(bucket + _ENTRY_OUTCOME, outcome + 1)
    return outcome


@kernel
def _count(outcome: int, image_at: int, counters: int) -> None:
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
    for t in range(TOOLS):
        if shift_right(verdict, t) & 1:
            add64(counters + _TOOL_WANTED + 8 * t, n)
    maps = image_at + load64(image_at + _MAPS_AT)
    for m in range(load64(image_at + _N_MAPS)):
        result = shift_right(load64(outcome + 8 * (m >> _MAP_SHIFT)), BITS_PER_MAP * (m & (_MAPS_PER_WORD - 1))) & 3
        slot = 8 * load64(maps + m * _MAP_BYTES + _SLOT)
        if result == RESULT_PASS:
            add64(counters + _MAP_PASSED + slot, n)
            add64(counters + _MAP_PASSED_BYTES + slot, n_bytes)
        elif result == RESULT_DROP:
            add64(counters + _MAP_DROPPED + slot, n)
            add64(counters + _MAP_DROPPED_BYTES + slot, n_bytes)
        elif result == RESULT_UNDETERMINED:
            add64(counters + _MAP_UNDETERMINED + slot, n)
    store64(outcome + _PACKETS, 0)
    store64(outcome + _BYTES, 0)


@kernel
def judge_block(
    block: int, max_packets: int, packets: int, verdicts: int, data: int, data_bytes: int, image_at: int, state: int, counters: int
) -> int:
    n_packets = max(0, min(load64(block + _BLOCK_N_PACKETS), max_packets))
    rows, keys, outcomes = load64(state + _ROWS_AT), load64(state + _KEYS_AT), load64(state + _OUTCOMES_AT)
    use_memo = load64(state + _USE_MEMO) & load64(image_at + _MEMO)
    touched, n_touched, n_wanted = load64(state + _TOUCHED_AT), 0, 0
    for first in range(0, n_packets, CHUNK):
        last = min(first + CHUNK, n_packets)
        if parse_packets(packets, first, last, data, data_bytes, rows):
            follow_fragments(rows, packets + first * _PACKET_BYTES, last - first, load64(state + _TABLE_AT), counters)
        if use_memo:
            chunk = packets + first * _PACKET_BYTES
            pack_keys(
                keys, image_at, rows, chunk, last - first, load64(state + _SEED), load64(state + _MEMO_AT), load64(state + _MEMO_MASK)
            )
        for i in range(first, last):
            row, key, packet = rows + (i - first) * _KEY_BYTES, keys + (i - first) * POLICY_KEY_BYTES, packets + i * _PACKET_BYTES
            number = _outcome_of(state, image_at, row, key, packet, use_memo)
            outcome, verdict = outcomes + number * _OUTCOME_BYTES, verdicts + i * _VERDICT_BYTES
            if load64(outcome + _PACKETS) == 0:
                store64(touched + 8 * n_touched, number)
                n_touched += 1
            add64(outcome + _PACKETS, 1)
            add64(outcome + _BYTES, load32(packet + _PACKET_WIRELEN))
            n_wanted += load64(outcome + _WANTED)
            store64(verdict + _OUT_VERDICT, load64(outcome + _VERDICT))
            store32(verdict + _OUT_FLOW, load32(row + _KEY_FLOW))
            store32(verdict + _OUT_CAUSE, load64(outcome + _CAUSE))  # and the padding behind it
    for i in range(n_touched):
        _count(outcomes + load64(touched + 8 * i) * _OUTCOME_BYTES, image_at, counters)
    store64(block + _BLOCK_N_WANTED, n_wanted)
    return n_packets
