"""What a packet of a kind not met before gets from each map.

| kernel | does |
|---|---|
| judge_packet | every map over one packet -> the number of its outcome |

Of each field of the policy key there is a row of bits, one a term (an alternative of a rule). Where the AND of the rows has no bit, the
rule is false; so the rules of the bits that are left are run, in order, until one is not false. With `use_index` 0 every rule is run.
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import CHUNK_TERMS, FALSE, FIELD_NUMBER, IMAGE, MODE_DROP, MODE_LIBPCAP, PASS, TRUE
from broker.core import layout
from broker.core.layout import CAUSE_COLLECTED, CAUSE_FILTERED, CAUSE_FORWARDED, CAUSE_RULE, CAUSE_UNDETERMINED, INPUTS
from stages.filter.rules import run_rule
from stages.filter.state import (
    OUTCOME,
    RESULT_BITS,
    RESULT_DROP,
    RESULT_NONE,
    RESULT_PASS,
    RESULT_UNDETERMINED,
    STATE,
)
from stages.jit import kernel
from stages.memory import add64, load16, load32, load64, mix, shift_right, store32, store64, trailing_zeros

assert STATE.fields is not None
assert OUTCOME.fields is not None
assert IMAGE.fields is not None
assert image.MAP.fields is not None
assert image.RULE.fields is not None
assert image.FIELD.fields is not None
assert layout.PACKET.fields is not None
_OUTCOMES_AT, _N_OUTCOMES, _OUTCOME_BYTES = (STATE.fields[name][1] for name in ("outcomes_at", "n_outcomes", "outcome_bytes"))
_INDEX_AT, _INDEX_MASK, _SEED = (STATE.fields[name][1] for name in ("index_at", "index_mask", "seed"))
_BITS_AT, _USE_INDEX, _N_RUNS, _N_ASKED = (STATE.fields[name][1] for name in ("bits_at", "use_index", "n_runs", "n_asked"))
_VERDICT, _CAUSE, _UNDETERMINED = (OUTCOME.fields[name][1] for name in ("verdict", "cause", "undetermined"))
_WANTED, _PACKETS, _BYTES, _RESULTS = (*(OUTCOME.fields[name][1] for name in ("n_wanted", "n_packets", "n_bytes")), OUTCOME.itemsize)

_N_MAPS, _MAPS_AT, _TESTS_AT, _RULES_AT = (IMAGE.fields[name][1] for name in ("n_maps", "maps_at", "tests_at", "rules_at"))
_CODE_AT, _TERMS_AT, _COLLECTOR = (IMAGE.fields[name][1] for name in ("code_at", "terms_at", "collector"))
_N_CHUNKS, _CHUNKS_AT = IMAGE.fields["n_chunks"][1], IMAGE.fields["chunks_at"][1]
_FIRST_RULE, _N_RULES, _FIRST_TERM, _N_TERMS = (image.MAP.fields[name][1] for name in ("first_rule", "n_rules", "first_term", "n_terms"))
_INPUTS, _TOOLS, _MODE, _MAP_BYTES = (*(image.MAP.fields[name][1] for name in ("inputs", "tools", "mode")), image.MAP.itemsize)
_FIRST, _N, _ACTION, _RULE_BYTES = (*(image.RULE.fields[name][1] for name in ("first", "n", "action")), image.RULE.itemsize)
_WORD_AT, _SHIFT, _MASK, _ROWS_AT = (image.FIELD.fields[name][1] for name in ("word_at", "shift", "mask", "rows_at"))
_FIELD_BYTES, _IMAGE_BYTES = image.FIELD.itemsize, IMAGE.itemsize
_PACKET_INPUT = layout.PACKET.fields["input"][1]

_CHUNK_BYTES = CHUNK_TERMS // 8
_PARTS = (FIELD_NUMBER["source4"], FIELD_NUMBER["destination6"])  # between them: tables that are part of another field
_SELECTIVE = (FIELD_NUMBER["source"], FIELD_NUMBER["destination"])
_N_FIELDS = len(FIELD_NUMBER)


@kernel
def _add_row(rows: int, n: int, image_at: int, key: int, number: int) -> int:
    """Address of the row of the key's value of field `number`, if any test asks for the field; returns how many there are then."""
    field = image_at + _IMAGE_BYTES + number * _FIELD_BYTES
    if load64(field + _SHIFT) < 0:
        return n
    value = shift_right(load64(key + load64(field + _WORD_AT)), load64(field + _SHIFT)) & load64(field + _MASK)
    store64(rows + 8 * n, image_at + load64(field + _ROWS_AT) + value * 4 * load64(image_at + _N_CHUNKS))
    return n + 1


@kernel
def _find_rows(rows: int, image_at: int, key: int) -> int:
    """The rows of all fields, those first that leave the fewest bits."""
    n = _add_row(rows, 0, image_at, key, _SELECTIVE[0])
    n = _add_row(rows, n, image_at, key, _SELECTIVE[1])
    for number in range(_N_FIELDS):
        if number != _SELECTIVE[0] and number != _SELECTIVE[1] and (number < _PARTS[0] or number > _PARTS[1]):
            n = _add_row(rows, n, image_at, key, number)
    return n


@kernel
def _has_all(rows: int, n_rows: int, chunk: int) -> bool:
    """No row is empty there."""
    for i in range(n_rows):  # noqa: SIM110 - numba knows no generators
        if load32(load64(rows + 8 * i) + 4 * chunk) == 0:
            return False
    return True


@kernel
def _candidates(rows: int, n_rows: int, chunks: int, chunk: int, word: int) -> int:
    bits = -1
    for i in range(n_rows):
        bits &= load64(chunks + load32(load64(rows + 8 * i) + 4 * chunk) * _CHUNK_BYTES + 8 * word)
        if bits == 0:
            break
    return bits


@kernel
def _result_of(answer: int, rule: int, rule_row: int) -> int:
    if answer == TRUE:
        return rule << RESULT_BITS | (RESULT_PASS if load32(rule_row + _ACTION) == PASS else RESULT_DROP)
    return rule << RESULT_BITS | RESULT_UNDETERMINED


@kernel
def _run(map_row: int, rule: int, image_at: int, row: int, packet: int, state: int) -> int:
    """RESULT_NONE if the rule is false."""
    rule_row = image_at + load64(image_at + _RULES_AT) + rule * _RULE_BYTES
    code = image_at + load64(image_at + _CODE_AT) + 4 * load32(rule_row + _FIRST)
    libpcap = 1 if load64(map_row + _MODE) == MODE_LIBPCAP else 0
    tests_at = image_at + load64(image_at + _TESTS_AT)
    answer = run_rule(code, load32(rule_row + _N), tests_at, image_at, row, packet, libpcap, state)
    return RESULT_NONE if answer == FALSE else _result_of(answer, rule, rule_row)


@kernel
def _decide_by_index(map_row: int, rows: int, n_rows: int, image_at: int, row: int, packet: int, state: int) -> int:
    first, n_terms = load64(map_row + _FIRST_TERM), load64(map_row + _N_TERMS)
    terms, chunks = image_at + load64(image_at + _TERMS_AT), image_at + load64(image_at + _CHUNKS_AT)
    end, before = first + n_terms, -1
    for chunk in range(first // CHUNK_TERMS, (end + CHUNK_TERMS - 1) // CHUNK_TERMS):
        if not _has_all(rows, n_rows, chunk):
            continue
        start = chunk * CHUNK_TERMS
        for word in range(max(first - start, 0) >> 6, (min(end - start, CHUNK_TERMS) + 63) >> 6):
            bits = _candidates(rows, n_rows, chunks, chunk, word)
            while bits != 0:
                term = start + (word << 6) + trailing_zeros(bits)
                bits &= bits - 1
                rule = load32(terms + 4 * term) if first <= term < end else before
                if rule != before:
                    before = rule
                    result = _run(map_row, rule, image_at, row, packet, state)
                    if result != RESULT_NONE:
                        return result
    return RESULT_NONE


@kernel
def _decide_in_order(map_row: int, image_at: int, row: int, packet: int, state: int) -> int:
    first = load64(map_row + _FIRST_RULE)
    for rule in range(first, first + load64(map_row + _N_RULES)):
        result = _run(map_row, rule, image_at, row, packet, state)
        if result != RESULT_NONE:
            return result
    return RESULT_NONE


@kernel
def _sees(map_row: int, input_slot: int) -> bool:
    inputs = load64(map_row + _INPUTS)
    return inputs == -1 or (input_slot < INPUTS and (shift_right(inputs, input_slot) & 1) != 0)


@kernel
def _conclude(outcome: int, image_at: int, verdict: int, dropped: int, undetermined: int) -> None:
    """`undetermined`: 1 some map could not tell, 2 and one of these does not deliver such."""
    cause = CAUSE_FORWARDED
    if verdict == 0:
        if dropped:
            cause = CAUSE_RULE
        elif undetermined & 2:
            cause = CAUSE_UNDETERMINED
        else:
            verdict = load64(image_at + _COLLECTOR)
            cause = CAUSE_FILTERED if verdict == 0 else CAUSE_COLLECTED
    wanted, left = 0, verdict
    while left != 0:
        left &= left - 1
        wanted += 1
    store64(outcome + _VERDICT, verdict)
    store64(outcome + _CAUSE, cause)
    store64(outcome + _UNDETERMINED, undetermined & 1)
    store64(outcome + _WANTED, wanted)


@kernel
def _run_maps(outcome: int, image_at: int, row: int, key: int, packet: int, state: int) -> None:
    """`outcome`: zeroed; gets everything but the counts."""
    maps, rows, n_rows = image_at + load64(image_at + _MAPS_AT), load64(state + _BITS_AT), 0
    use_index = load64(state + _USE_INDEX)
    if use_index:
        n_rows = _find_rows(rows, image_at, key)
    verdict, dropped, undetermined = 0, 0, 0
    for m in range(load64(image_at + _N_MAPS)):
        map_row = maps + m * _MAP_BYTES
        if not _sees(map_row, load16(packet + _PACKET_INPUT)):
            continue
        if use_index:
            result = _decide_by_index(map_row, rows, n_rows, image_at, row, packet, state)
        else:
            result = _decide_in_order(map_row, image_at, row, packet, state)
        kind = result & ((1 << RESULT_BITS) - 1)
        if kind == RESULT_PASS:
            verdict |= load64(map_row + _TOOLS)
        elif kind == RESULT_DROP:
            dropped = 1
        elif kind == RESULT_UNDETERMINED:
            undetermined |= 1
            if load64(map_row + _MODE) == MODE_DROP:
                undetermined |= 2
            else:
                verdict |= load64(map_row + _TOOLS)
        store32(outcome + _RESULTS + 4 * m, result)
    _conclude(outcome, image_at, verdict, dropped, undetermined)


@kernel
def _same_results(one: int, two: int, n_bytes: int) -> bool:
    for at in range(0, n_bytes, 8):  # noqa: SIM110 - numba knows no generators
        if load64(one + at) != load64(two + at):
            return False
    return True


@kernel
def judge_packet(state: int, image_at: int, row: int, key: int, packet: int) -> int:
    """There is always room for one more outcome: `State.make_room` saw to it before the block."""
    add64(state + _N_RUNS, 1)
    store64(state + _N_ASKED, 0)
    outcomes, n_outcomes, size = load64(state + _OUTCOMES_AT), load64(state + _N_OUTCOMES), load64(state + _OUTCOME_BYTES)
    scratch, n_bytes = outcomes + n_outcomes * size, size - _RESULTS
    for at in range(0, n_bytes, 8):
        store64(scratch + _RESULTS + at, 0)
    _run_maps(scratch, image_at, row, key, packet, state)
    place = load64(state + _SEED)
    for at in range(0, n_bytes, 8):
        place = mix(place ^ load64(scratch + _RESULTS + at), 0x2545F4914F6CDD1D)
    index_at, mask = load64(state + _INDEX_AT), load64(state + _INDEX_MASK)
    place &= mask
    while True:  # at most a quarter of the index is in use
        known = load64(index_at + 8 * place) - 1
        if known < 0:
            break
        if _same_results(outcomes + known * size + _RESULTS, scratch + _RESULTS, n_bytes):
            return known
        place = (place + 1) & mask
    store64(scratch + _PACKETS, 0)
    store64(scratch + _BYTES, 0)
    store64(index_at + 8 * place, n_outcomes + 1)
    store64(state + _N_OUTCOMES, n_outcomes + 1)
    return n_outcomes
