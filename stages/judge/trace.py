"""The rules of a map over one packet, test by test: in Python over the same code, asking the same compiled `answer_test`.

What the filter finds by its index and its memo, this finds by trying the rules in order; so it says which test of which rule failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from broker.config.policy.image import (
    CODE_AND,
    CODE_NOT,
    CODE_OR,
    CODE_SHIFT,
    CODE_SKIP_FALSE,
    CODE_SKIP_TRUE,
    CODE_TEST,
    FALSE,
    MODE_LIBPCAP,
    PASS,
    TRUE,
    UNDETERMINED,
)
from broker.core.layout import INPUTS
from stages.filter.program import TEST_BYTES
from stages.filter.rules import answer_test
from stages.judge.policy import Judging

_NUMBER_MASK = (1 << CODE_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Tried:
    """`rule`: of the map, from 0. `asked`: (row of TEST, its answer), in the order of asking."""

    rule: int
    answer: int
    asked: list[tuple[int, int]]


def run_code(code: list[int], first: int, n: int, ask: Callable[[int], int], libpcap: bool) -> tuple[int, list[tuple[int, int]]]:
    """As `stages.filter.rules.run_rule`, and what was asked."""
    asked: list[tuple[int, int]] = []
    below: list[int] = []
    top, i, end = FALSE, first, first + n
    while i < end:
        what, number = code[i] >> CODE_SHIFT, code[i] & _NUMBER_MASK
        i += 1
        if what == CODE_TEST:
            answer = ask(number)
            asked.append((number, answer))
            if libpcap and answer == UNDETERMINED:
                return FALSE, asked
            below.append(top)
            top = answer
        elif what == CODE_NOT:
            top = TRUE - top
        elif what in (CODE_SKIP_FALSE, CODE_SKIP_TRUE):
            if top == (FALSE if what == CODE_SKIP_FALSE else TRUE):
                i += number - 1
        elif what == CODE_AND:
            top = min(top, below.pop())
        else:
            assert what == CODE_OR
            top = max(top, below.pop())
    return top, asked


def try_rules(judging: Judging, m: int, packet_at: int, *, beyond: bool) -> Iterator[Tried]:
    """The rules of map `m` over the packet that `judging` has judged last, whose PACKET row is at `packet_at`: up to the one that
    decides, or all of them."""
    map_row = judging.maps[m]
    libpcap = int(map_row["mode"]) == MODE_LIBPCAP
    rows_at, image_at = int(judging.state.header["rows_at"][0]), judging.generation.image_at
    tests_at = judging.tests_at
    answers: dict[int, int] = {}  # thousands of rules have far fewer tests

    def ask(number: int) -> int:
        answer = answers.get(number)
        if answer is None:
            answer = answers[number] = int(answer_test(tests_at + number * TEST_BYTES, image_at, rows_at, packet_at, int(libpcap)))
        return answer

    first, n_rules = int(map_row["first_rule"]), int(map_row["n_rules"])
    of_map = judging.rules[first : first + n_rules]
    for rule, (begin, n) in enumerate(zip(of_map["first"].tolist(), of_map["n"].tolist(), strict=True)):
        answer, asked = run_code(judging.code, begin, n, ask, libpcap)
        yield Tried(rule, answer, asked)
        if answer != FALSE and not beyond:
            return


def sees(judging: Judging, m: int, input_slot: int) -> bool:
    """Map `m` looks at packets of that input."""
    inputs = int(judging.maps[m]["inputs"])
    return inputs == -1 or (input_slot < INPUTS and bool(inputs >> input_slot & 1))


def decision(judging: Judging, m: int, tried: list[Tried]) -> tuple[str, int]:
    """What the rules tried come to, to be held against what the filter said."""
    for one in tried:
        if one.answer == UNDETERMINED:
            return "undetermined", one.rule
        if one.answer == TRUE:
            action = int(judging.rules[int(judging.maps[m]["first_rule"]) + one.rule]["action"])
            return ("pass" if action == PASS else "drop"), one.rule
    return "none", -1
