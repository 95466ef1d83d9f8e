"""What sequence numbers say, against a twin that remembers every number."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from broker.core.metrics import N_COUNTERS, index
from broker.core.senders import NO_DELAY, NOTE, WINDOW, Sender, make_senders
from stages.capture.sender_kernels import MAX_GAP, SILENCE_NS, add_sender, find_sender, fold_notes, session_of

SLOT = 3
_START_NS, _STEP_NS = 1_700_000_000_000_000_000, 1000


class Table:
    """One table; numbers are noted for sender 192.0.2.N with key 7, a microsecond apart."""

    def __init__(self, directory: Path) -> None:
        self.table = make_senders(directory, 0, 4096)
        self.live = np.zeros(N_COUNTERS, np.int64)
        self.notes = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * (4096 * NOTE.itemsize)).from_address(self.table.notes_at)).view(
            NOTE
        )
        self.now_ns = _START_NS

    def row(self, host: int, number: int = 7) -> int:
        address = np.frombuffer(bytes(10) + b"\xff\xff\xc0\x00\x02" + bytes([host]), np.uint8).copy()
        session = session_of(0, number)
        found: int = find_sender(self.table.rows_at, address.ctypes.data, session)
        if -513 < found < 0:
            add_sender(self.table.rows_at, -1 - found, address.ctypes.data, session)
            return -1 - found
        return found

    def take(self, numbers: Iterable[int], host: int = 1, *, silence_ns: int = 0, delay_ns: int = NO_DELAY) -> Sender:
        self.now_ns += silence_ns
        numbers = list(numbers)
        row = self.row(host)
        while numbers:
            part, numbers = numbers[:4096], numbers[4096:]
            for note, number in zip(self.notes, part, strict=False):
                self.now_ns += _STEP_NS
                note["sender"], note["sequence"], note["ts_ns"], note["wirelen"], note["delay_ns"] = row, number, self.now_ns, 100, delay_ns
            self.table.head["n_notes"], self.table.head["n_folded"] = len(part), 0
            fold_notes(self.table.head_at, self.table.rows_at, self.table.notes_at, self.live.ctypes.data + 8 * SLOT)
        return next(s for s in self.table.read() if s.address == f"192.0.2.{host}")

    def total(self, name: str) -> int:
        return int(self.live[index("capture", name) + SLOT])


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def counts(sender: Sender) -> tuple[int, int, int, int, int]:
    return sender.lost_packets, sender.reordered_packets, sender.repeated_packets, sender.stray_packets, sender.restarts


TABLE = [
    ("in order", range(100), (0, 0, 0, 0, 0)),
    ("begins anywhere", range(5000, 5100), (0, 0, 0, 0, 0)),
    ("a gap", [0, 1, 2, 6, 7], (3, 0, 0, 0, 0)),
    ("late", [0, 2, 3, 1, 4], (0, 1, 0, 0, 0)),
    ("late before the first", [5, 4, 2, 6], (1, 2, 0, 0, 0)),
    ("twice", [0, 1, 1, 2, 2, 2], (0, 0, 3, 0, 0)),
    ("late and twice", [0, 3, 1, 1], (1, 1, 1, 0, 0)),
    ("wraps", [0xFFFF_FFFE, 0xFFFF_FFFF, 0, 1], (0, 0, 0, 0, 0)),
    ("a gap over the wrap", [0xFFFF_FFFE, 2], (3, 0, 0, 0, 0)),
    ("late over the wrap", [0xFFFF_FFFE, 0, 0xFFFF_FFFF], (0, 1, 0, 0, 0)),
    ("one out of line", [*range(20_000, 20_010), 7, *range(20_010, 20_020)], (0, 0, 0, 1, 0)),
    ("begun anew", [*range(20_000, 20_010), *range(10)], (0, 0, 0, 0, 1)),
    ("begun anew high", [0, 1, 2**31, 2**31 + 1, 2**31 + 3], (1, 0, 0, 0, 1)),
    ("the largest gap", [0, MAX_GAP + 1], (MAX_GAP, 0, 0, 0, 0)),
    ("a larger one", [0, MAX_GAP + 2], (0, 0, 0, 1, 0)),
    ("a gap as long as the window", [0, WINDOW, 1], (WINDOW - 2, 1, 0, 0, 0)),
]


@pytest.mark.parametrize(("numbers", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_numbers_are_counted_as_what_they_are(table: Table, numbers: Iterable[int], expected: tuple[int, ...]) -> None:
    numbers = list(numbers)
    found = table.take(numbers)
    assert counts(found) == expected
    assert found.received_packets == found.numbered_packets == len(numbers)
    assert tuple(table.total(name) for name in ("lost_packets", "reordered_packets", "repeated_packets")) == expected[:3]
    assert table.total("sender_restarts") == expected[4]


def test_after_a_silence_low_numbers_are_a_sender_that_has_begun_anew(table: Table) -> None:
    """It had not come far, so its numbers have been seen; without the silence they would be repeated."""
    table.take(range(100))
    assert counts(table.take(range(50))) == (0, 0, 50, 0, 0)
    assert counts(table.take(range(150), silence_ns=SILENCE_NS)) == (0, 0, 50, 0, 1)


def test_a_silence_alone_is_nothing(table: Table) -> None:
    table.take(range(100))
    assert counts(table.take(range(100, 200), silence_ns=10 * SILENCE_NS)) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_any_order_within_the_window_ends_with_the_true_sums(table: Table, seed: int) -> None:
    """Numbers are lost, repeated and overtaken by up to 3,000 others; the twin is a set."""
    chosen = random.Random(seed)
    first = chosen.choice((0, 1000, 2**32 - 5000))
    sent = [first + n for n in range(10_000)]
    kept = [n for n in sent if chosen.random() > 0.05]
    arriving = sorted(
        kept + [n for n in kept if chosen.random() < 0.02], key=lambda n: n + chosen.randrange(chosen.choice((1, 1, 30, 3000)))
    )
    arriving = [first, *(n for n in arriving if n != first)]
    found = table.take(n & 0xFFFF_FFFF for n in arriving)
    distinct = set(arriving)
    assert found.repeated_packets == len(arriving) - len(distinct)
    assert found.lost_packets == max(distinct) - first + 1 - len(distinct)
    highest, late, seen = -1, 0, set()
    for n in arriving:
        late += n < highest and n not in seen
        highest = max(highest, n)
        seen.add(n)
    assert found.reordered_packets == late
    assert found.expected_packets == max(distinct) - first + 1


def test_senders_and_their_sessions_are_measured_apart(table: Table) -> None:
    one, two = table.take([0, 1, 2], host=1), table.take([7, 9], host=2, delay_ns=5000)
    assert (counts(one)[0], counts(two)[0]) == (0, 1)
    assert (one.delay_min_ns, two.delay_min_ns, two.delay_mean_ns, two.delay_max_ns) == (None, 5000, 5000, 5000)
    assert table.row(1, 8) != table.row(1, 7)
    assert table.row(1, -1) != table.row(1, 0)
    assert {s.session for s in table.table.read()} == {7, 8, None, 0}


def test_packets_of_senders_that_find_no_room_are_counted(table: Table) -> None:
    rows = [table.row(host, number) for host in range(256) for number in range(8)]
    placed = [row for row in rows if row >= 0]
    assert len(set(placed)) == len(placed) <= 512
    assert len(placed) > 500
    table.notes[0]["sender"] = min(rows)
    table.table.head["n_notes"], table.table.head["n_folded"] = 1, 0
    fold_notes(table.table.head_at, table.table.rows_at, table.table.notes_at, table.live.ctypes.data + 8 * SLOT)
    assert table.total("untracked_packets") == 1
