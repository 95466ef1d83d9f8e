"""Small captures, damaged: words that lie, bits turned, parts left out, put in twice, moved or taken from another file, and cut.

The same seed and number give the same file.
"""

from __future__ import annotations

import functools
import random
import struct
from dataclasses import dataclass

from tests import packets as p
from tests.corpus import captures
from tests.stages.capture.hostile import WORDS
from tests.stages.capture.writers import Pcapng, frame, numbered, pcap_header, pcap_record

MOST_BYTES = 6000
_ORDERS = {b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">"}
_HEADER, _RECORD = 24, 16


@dataclass(frozen=True)
class Damaged:
    """`whole`: so many packets lie before the first byte that is not as it was; -1: not known."""

    content: bytes
    whole: int


@functools.cache
def sources() -> tuple[bytes, ...]:
    """The small captures of the corpus, odd ones of all formats among them, and some written by hand."""
    found = [_by_hand(seed) for seed in range(60)]
    return (*found, *(c.path.read_bytes() for c in captures() if 24 <= c.path.stat().st_size <= MOST_BYTES))


def _by_hand(seed: int) -> bytes:
    chosen = random.Random(seed)
    order = chosen.choice("<>")
    if seed % 2:
        head = pcap_header(order, chosen.choice((0xA1B2C3D4, 0xA1B23C4D)), version=(2, chosen.choice((2, 3, 4))))
        return head + b"".join(pcap_record(record, order) for record in numbered(8, length=chosen.choice((0, 1, 60, 200))))
    section = Pcapng(order).section().interface(tsresol=chosen.choice((None, 9, 0x80 | 20))).interface(linktype=chosen.choice((1, 113)))
    for i in range(4):
        section.enhanced(p.padded(frame(i)), interface=i % 2, units=chosen.getrandbits(64)).simple(frame(i)).obsolete(frame(i, 61), 61)
        section.block(0x0BAD, bytes(chosen.randrange(40)))
    return section.bytes()


def ends_of(content: bytes) -> list[int]:
    """Where each record of a classic capture ends; empty: it is none, or not a whole one."""
    order, ends, at = _ORDERS.get(content[:4]), [], _HEADER
    if order is None or struct.unpack_from(f"{order}HH", content, 4) != (2, 4) or struct.unpack_from(f"{order}I", content, 20)[0] != 1:
        return []
    while at + _RECORD <= len(content):
        (caplen,) = struct.unpack_from(f"{order}I", content, at + 8)
        at += _RECORD + caplen
        if at > len(content) or caplen > 65_535:
            return []
        ends.append(at)
    return ends


def damaged(seed: int, number: int) -> Damaged:
    chosen = random.Random(seed << 40 | number)
    source = chosen.choice(sources())
    content = bytearray(source)
    for _ in range(chosen.choice((1, 1, 2, 3, 8))):
        if content:
            chosen.choice((_word, _word, _word, _bits, _bytes, _leave_out, _twice, _splice, _cut))(content, chosen)
    first = next((i for i, (new, old) in enumerate(zip(content, source, strict=False)) if new != old), min(len(content), len(source)))
    ends = ends_of(source)
    return Damaged(bytes(content), sum(end <= first for end in ends) if ends and first >= _HEADER else -1)


def _at(content: bytearray, chosen: random.Random) -> int:
    """Most of them in the first headers, and on a word."""
    most = len(content) if chosen.random() < 0.5 else min(len(content), 120)
    return chosen.randrange(most) & (-1 if chosen.random() < 0.2 else -4)


def _word(content: bytearray, chosen: random.Random) -> None:
    at = min(_at(content, chosen), max(0, len(content) - 4))
    value = chosen.choice((*WORDS, len(content), len(content) - at, 0x0A0D0D0A, 1, 6))
    content[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, chosen.choice(("little", "big")))  # type: ignore[arg-type]


def _bits(content: bytearray, chosen: random.Random) -> None:
    content[_at(content, chosen)] ^= 1 << chosen.randrange(8)


def _bytes(content: bytearray, chosen: random.Random) -> None:
    at = _at(content, chosen)
    content[at : at + chosen.randrange(1, 9)] = chosen.randbytes(chosen.randrange(9))


def _leave_out(content: bytearray, chosen: random.Random) -> None:
    at = _at(content, chosen)
    del content[at : at + chosen.choice((1, 4, 8, 12, 16, 32, 60))]


def _twice(content: bytearray, chosen: random.Random) -> None:
    at, size = _at(content, chosen), chosen.choice((4, 12, 16, 28, 32, 60, 500))
    content[at:at] = content[at : at + size] * chosen.choice((1, 1, 2, 30))


def _splice(content: bytearray, chosen: random.Random) -> None:
    other = chosen.choice(sources())
    content[_at(content, chosen) :] = other[chosen.randrange(len(other)) & -4 :]


def _cut(content: bytearray, chosen: random.Random) -> None:
    del content[chosen.randrange(len(content)) :]
