"""Damaged text is understood or refused in words, quickly, and libpcap takes what we take."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

import pytest

from broker.config.policy import PolicyError, compile_policy, parse_expression
from broker.config.policy.refused import REFUSED
from tests import libpcap
from tests.stages.filter.expressions import EXPRESSIONS, RARE
from tests.stages.filter.judging import one_map_each

LIMIT_S = 0.25  # what grows by the square takes seconds
_ALL = (*EXPRESSIONS, *RARE)
_MARKS = "()[]"
_WORDS = sorted({word for text in _ALL for word in "".join(f" {c} " if c in _MARKS else c for c in text).split()})
_CHARACTERS = 'abz019 ()[]:.-_/\\$&|!<>=+*%^,~#\t\n\0é"'
_OURS = re.compile(r"vlan[ (]*([<>=!]|[0-9]+ *-)|len(gth)? *[0-9]+ *-|[{/]")  # may mean something to us only
_COMPUTED = ("division by zero", "modulus by zero", "shift by more than 31 bits")  # what libpcap's optimizer finds out


def mutated(chosen: random.Random) -> str:
    text = chosen.choice(_ALL)
    for _ in range(chosen.choice((1, 1, 1, 2, 3))):
        at = chosen.randrange(len(text) + 1)
        end = min(len(text), at + chosen.choice((1, 1, 2, 5)))
        match chosen.randrange(7):
            case 0:
                text = text[:at] + text[end:]
            case 1:
                text = text[:at] + chosen.choice(_CHARACTERS) + text[at:]
            case 2:
                text = text[:at] + chosen.choice(_CHARACTERS) + text[end:]
            case 3:
                text = f"{text[:at]} {chosen.choice(_WORDS)} {text[at:]}"
            case 4:
                words = text.split(" ")
                words[chosen.randrange(len(words))] = chosen.choice(_WORDS)
                text = " ".join(words)
            case 5:
                text = text[:at] + text[at:end] * chosen.choice((2, 3, 20)) + text[end:]
            case _:
                text = f"{text} {chosen.choice(('and', 'or', '&&', 'and not'))} {chosen.choice(_ALL)}"
    return text


def in_time(action: Callable[[str], str], text: str) -> str:
    """What it says; at the tenth try at the latest it takes no longer than it may: others use the machine, too."""
    for _ in range(10):
        start = time.process_time()
        answer = action(text)
        if time.process_time() - start < LIMIT_S:
            return answer
    raise AssertionError(f"too slow: {text[:200]}")


def ours(text: str) -> str:
    """The refusal; empty: taken."""
    try:
        parse_expression(text, {})
    except PolicyError as error:
        return error.message if error.message and 0 <= error.offset <= len(text) else f"at {error.offset}?"
    return ""


def compiled(text: str) -> str:
    return "image" if compile_policy(one_map_each((text,))) else ""


def theirs(text: str) -> str:
    try:
        libpcap.Filter(text, optimize=False)
        libpcap.Filter(text)
    except libpcap.RefusedError as error:
        return str(error) or "refused"
    return ""


def agree(seed: int, n: int) -> int:
    """How many were taken."""
    chosen = random.Random(seed)
    taken = 0
    for _ in range(n):
        text = mutated(chosen)
        refusal = in_time(ours, text)
        assert not refusal.endswith("?")
        taken += not refusal
        if "\0" in text or "$" in text or any(reason in refusal for reason in REFUSED.values()):
            continue  # C ends the text there; sets are ours; we have said why not
        reason = theirs(text)
        if not refusal and "syntax error" in reason and _OURS.search(text):
            continue
        assert bool(refusal) == bool(reason) or reason in _COMPUTED, (text, refusal, reason)
    return taken


@libpcap.needs_libpcap
def test_mutated_text_is_taken_where_libpcap_takes_it() -> None:
    assert agree(seed=1, n=20_000) > 2000


@pytest.mark.corpus
@libpcap.needs_libpcap
def test_a_hundred_thousand_mutations_are_taken_where_libpcap_takes_them() -> None:
    assert agree(seed=2, n=100_000) > 10_000


def test_what_is_taken_compiles_as_quickly() -> None:
    chosen = random.Random(3)
    taken = [text for text in (mutated(chosen) for _ in range(1000)) if not ours(text)]
    assert len(taken) > 100
    assert {in_time(compiled, text) for text in taken} == {"image"}


@pytest.mark.parametrize(
    "text",
    ["1 " * 8000, "(" * 16_000, "1:" * 8000, "a" * 16_000, "-" * 16_000 + "1", "port " + "1 or " * 3200 + "1", "tcp port 1 and " * 1000,
     "1+" * 8000, "not " * 4000, "ip[0]=1 or " * 1400 + "ip", "::" * 8000, "1::" * 5000, "ff:" * 5000, "len-" * 4000, "\\" * 16_000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_long_text_takes_no_longer(text: str) -> None:
    in_time(ours, text)
