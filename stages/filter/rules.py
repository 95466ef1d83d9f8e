"""A rule over one packet: its code, by a stack of three-valued answers.

| kernel | does |
|---|---|
| run_rule | code of a rule -> FALSE, TRUE or UNDETERMINED |
| answer_test | one TEST row -> its answer |
| ask | the same of one TEST row -> its answer; a predicate's is noted in the state, so that it is asked once and can be remembered |

In a map that follows libpcap a test that cannot be told ends the rule: it does not match.
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import (
    CODE_AND,
    CODE_NOT,
    CODE_OR,
    CODE_SHIFT,
    CODE_SKIP_FALSE,
    CODE_SKIP_TRUE,
    CODE_TEST,
    FALSE,
    MAX_STACK,
    TRUE,
    UNDETERMINED,
)
from broker.core import layout
from stages.filter.program import TEST_BYTES, run_test
from stages.filter.state import MAX_ASKED, STATE
from stages.jit import kernel
from stages.memory import load8, load32, load64, store8, store64
from stages.wire.key import KEY

assert STATE.fields is not None
assert KEY.fields is not None
assert layout.PACKET.fields is not None
assert image.TEST.fields is not None
_PREDICATE = image.TEST.fields["predicate"][1]
_STACK_AT, _ASKED_AT, _N_ASKED = (STATE.fields[name][1] for name in ("stack_at", "asked_at", "n_asked"))
_KEY_AT, _KEY_CAPLEN = KEY.fields["at"][1], KEY.fields["caplen"][1]
_PACKET_WIRELEN = layout.PACKET.fields["wirelen"][1]
_NUMBER_MASK = (1 << CODE_SHIFT) - 1
_NO_PREDICATE = 0xFFFFFFFF


@kernel
def answer_test(test: int, image_at: int, row: int, packet: int, libpcap: int) -> int:
    at, caplen, wirelen = load64(row + _KEY_AT), load32(row + _KEY_CAPLEN), load32(packet + _PACKET_WIRELEN)
    return run_test(test, image_at, at, caplen, wirelen, row, libpcap)


@kernel
def ask(test: int, image_at: int, row: int, packet: int, libpcap: int, state: int) -> int:
    predicate = load32(test + _PREDICATE)
    if predicate == _NO_PREDICATE:
        return answer_test(test, image_at, row, packet, libpcap)
    asked, n = load64(state + _ASKED_AT), load64(state + _N_ASKED)
    wanted = predicate << 1 | libpcap
    for i in range(min(n, MAX_ASKED)):
        entry = load64(asked + 8 * i)
        if entry >> 2 == wanted:
            return entry & 3
    answer = answer_test(test, image_at, row, packet, libpcap)
    if n < MAX_ASKED:
        store64(asked + 8 * n, wanted << 2 | answer)
    store64(state + _N_ASKED, n + 1)  # beyond MAX_ASKED: too many to be remembered
    return answer


@kernel
def run_rule(code: int, n: int, tests_at: int, image_at: int, row: int, packet: int, libpcap: int, state: int) -> int:
    stack, depth, top = load64(state + _STACK_AT), 0, FALSE
    i = 0
    while i < n:  # skips go forward only: it ends
        word = load32(code + 4 * i)
        what, number = word >> CODE_SHIFT, word & _NUMBER_MASK
        i += 1
        if what == CODE_TEST:
            answer = ask(tests_at + number * TEST_BYTES, image_at, row, packet, libpcap, state)
            if libpcap != 0 and answer == UNDETERMINED:
                return FALSE
            store8(stack + depth, top)
            depth = min(depth + 1, MAX_STACK - 1)
            top = answer
        elif what == CODE_NOT:
            top = TRUE - top
        elif what == CODE_SKIP_FALSE:
            if top == FALSE:
                i += number - 1
        elif what == CODE_SKIP_TRUE:
            if top == TRUE:
                i += number - 1
        else:
            depth = max(depth - 1, 0)
            below = load8(stack + depth)
            if what == CODE_AND:
                top = min(top, below)
            elif what == CODE_OR:
                top = max(top, below)
    return top
