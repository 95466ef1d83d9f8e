"""Card numbers in packets: the same ones as a slow reference finds (regular expressions, Luhn's sum), and no other digit."""

from __future__ import annotations

import random
import re

import pytest

from stages import memory
from stages.encapsulate.cards import MAX_DIGITS, MIN_DIGITS, mask_cards
from stages.encapsulate.masks import payload_start
from stages.jit import PLAIN
from tests import corpus, libpcap
from tests import packets as p
from tests.again import run_plain
from tests.stages.encapsulate.guarded import Guarded, read

IN = Guarded()
ISSUERS = re.compile(
    rb"4|5[0-8]|6|3[47]|30[0-5]|3095|3[689]|35(2[89]|[3-8])|220[0-4]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|8[12]"
)  # fmt: skip
EXAMPLES = (
    "4111111111111111", "4012888888881881", "4222222222222", "5555555555554444", "5105105105105100", "2223003122003222", "378282246310005",
    "371449635398431", "30569309025904", "38520000023237", "6011111111111117", "6011000990139424", "3530111333300000", "3566002020360505",
    "6200000000000005", "2200000000000004", "6304000000000000",
)  # fmt: skip
"""Numbers that payment services publish for tests."""


def luhn(digits: bytes) -> bool:
    """Doubling every second digit from the right, the digits of the products summed."""
    total = 0
    for place, digit in enumerate(reversed(digits.decode())):
        product = int(digit) * (2 if place % 2 else 1)
        total += sum(map(int, str(product)))
    return total % 10 == 0


def numbers(text: bytes) -> list[tuple[int, int]]:
    """Where the card numbers are: all that begin at a group of digits, the longest of each."""
    found = []
    for start in (m.start() for m in re.finditer(rb"(?<![0-9])[0-9]", text)):
        run = re.compile(rb"[0-9]+(?:[ -][0-9]+)*").match(text, start)
        assert run
        ends = [start + m.end() for m in re.finditer(rb"[0-9]+", run.group())]
        for end in reversed(ends):
            digits = re.sub(rb"[ -]", b"", text[start:end])
            if MIN_DIGITS <= len(digits) <= MAX_DIGITS and ISSUERS.match(digits) and luhn(digits):
                found.append((start, end))
                break
    return found


def expected(text: bytes, kept: int) -> tuple[bytes, int]:
    after, found = bytearray(text), numbers(text)
    for start, end in found:
        places = [at for at in range(start, end) if text[at : at + 1].isdigit()]
        for at in places[: len(places) - kept]:
            after[at] = ord("*")
    return bytes(after), len(found)


def masked(text: bytes, kept: int = 4, *, at_end: bool = True) -> tuple[bytes, int]:
    """What became of a text in a packet; its headers must not change."""
    head = p.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2)
    frame = p.ip_frame("10.0.0.1", "10.0.0.2", p.TCP, p.tcp(1, 2, text))
    n = len(head)
    memory.forbid_all()
    at = IN.put(frame, at_end=at_end)
    n_cards = mask_cards(at, len(frame), kept, ord("*"))
    after = read(at, len(frame))
    assert after[:n] == frame[:n]
    return after[n:], n_cards


@pytest.mark.parametrize("number", EXAMPLES)
def test_published_numbers_are_masked_as_they_are_written(number: str) -> None:
    grouped = " ".join(number[at : at + 4] for at in range(0, len(number), 4))
    for text in (number, grouped, grouped.replace(" ", "-")):
        digits = sum(c.isdigit() for c in text)
        seen = 0
        stars = ""
        for c in text:
            seen += c.isdigit()
            stars += "*" if c.isdigit() and seen <= digits - 4 else c
        for around in ("{}", "card={}&cvc=123", "a{}b", "12/25 {} 01/30", "PAN: {}.", "7 {}", "{} 12"):
            after, n_cards = masked(around.format(text).encode())
            assert n_cards >= 1
            assert re.sub(rb"[^*]", b"", after).count(b"*") >= digits - 4
            if around in ("{}", "card={}&cvc=123", "a{}b", "PAN: {}."):
                assert after.decode() == around.format(stars)
        assert masked(text.encode(), 0)[0].decode() == re.sub("[0-9]", "*", text)


def test_what_is_no_card_stays() -> None:
    for text in (
        "4111111111111112", "1111111111111117", "411111111111", "41111111111111111111", "4111  1111 1111 1111", "4111.1111.1111.1111",
        "4111 1111 1111 -1111", "9792000000000001", "", "4", "4111 1111 1111 111", "00004111111111111111000",
    ):  # fmt: skip
        assert masked(text.encode()) == (text.encode(), 0), text


def test_of_numbers_that_overlap_both_are_masked() -> None:
    """A prefix that makes a number by chance must not shield the end of the true one."""
    chosen = random.Random(1)
    for _ in range(200_000):
        text = f"4{chosen.randrange(1000):03} 4111 1111 1111 1111".encode()
        if len(numbers(text)) > 1:
            break
    else:
        raise AssertionError("no such number was found")
    after, n_cards = masked(text)
    assert (after, n_cards) == expected(text, 4)
    assert after.endswith(b"**** **** **** 1111")


def some_text(chosen: random.Random) -> bytes:
    parts = []
    for _ in range(chosen.randrange(1, 12)):
        shape = chosen.randrange(6)
        if shape < 3:
            n = chosen.randrange(MIN_DIGITS - 1, MAX_DIGITS + 3)
            digits = chosen.choice(("4", "51", "37", "2221", "2721", "62", "9", "309", "3528", "81")) + "".join(
                chosen.choices("0123456789", k=n)
            )
            digits = digits[:n]
            check = next(c for c in "0123456789" if luhn((digits[:-1] + c).encode()))
            parts.append(digits[:-1] + (check if chosen.random() < 0.7 else chosen.choice("0123456789")))
            if shape == 2:
                step = chosen.choice((1, 2, 3, 4, 5, 6))
                parts[-1] = chosen.choice("- ").join(parts[-1][at : at + step] for at in range(0, n, step))
        elif shape == 3:
            parts.append("".join(chosen.choices("0123456789 -", k=chosen.randrange(60))))
        else:
            parts.append(chosen.choice(("a", "", "\n", "card ", "\xe9", "=", "\0")))
        parts.append(chosen.choice(("", "", " ", "-", "  ", ",")))
    return "".join(parts).encode("latin-1")


def test_generated_text_is_masked_as_the_reference_says() -> None:
    chosen = random.Random(7)
    n_cards = 0
    for _ in range(200 if PLAIN else 8_000):
        text, kept = some_text(chosen), chosen.choice((0, 4, 4, 6))
        got = masked(text, kept, at_end=chosen.random() < 0.5)
        assert got == expected(text, kept), text
        n_cards += got[1]
    assert n_cards > (100 if PLAIN else 8_000)


def test_random_digits_that_fail_the_test_are_never_hit() -> None:
    chosen = random.Random(8)
    n = 0
    while n < (100 if PLAIN else 20_000):
        digits = "".join(chosen.choices("0123456789", k=chosen.randrange(MIN_DIGITS, MAX_DIGITS + 1))).encode()
        if not luhn(digits):
            assert masked(b"x" + digits) == (b"x" + digits, 0)
            n += 1


def test_a_later_fragment_and_a_strange_protocol_are_searched_too() -> None:
    number = EXAMPLES[0].encode()
    for frame in (
        p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.TCP, number, offset=64)),
        p.ip_frame("fe80::1", "fe80::2", p.GRE, number),
        p.ethernet(number, type=0x88B5, vlans=(1,)),
    ):
        memory.forbid_all()
        at = IN.put(frame)
        assert mask_cards(at, len(frame), 4, ord("*")) == 1
        assert read(at, len(frame)) == frame[: -len(number)] + b"*" * 12 + b"1111"


@corpus.needs_corpus
@pytest.mark.skipif(PLAIN, reason="captures are for compiled kernels")
def test_in_captures_the_reference_finds_the_same() -> None:
    n_frames = n_cards = 0
    for capture in corpus.sample(8):
        for record in libpcap.read_ethernet(capture.path, 300):
            frame = record.data
            memory.forbid_all()
            at = IN.put(frame)
            n = payload_start(at, len(frame))
            found = mask_cards(at, len(frame), 4, ord("*"))
            text, n_expected = expected(frame[n:], 4)
            assert read(at, len(frame)) == frame[:n] + text
            assert found == n_expected
            n_frames += 1
            n_cards += found
    assert n_frames > 1000


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_kernels_do_the_same_within_bounds() -> None:
    run_plain(__file__)
