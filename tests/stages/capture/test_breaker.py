"""The loop breaker by its table, at a clock of the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from broker.core import log
from stages.capture.breaker import FEW, HOLD_NS, SETTLE, WINDOW_NS, Breaker


class Loop:
    """One window at a time: so many packets are taken, so many of them alike."""

    def __init__(self) -> None:
        self.row = {"alike": 0, "taken": 0, "drop_alike": 0}
        self.trips = np.zeros(1, np.int64)
        self.shed = 0
        self.breaker = Breaker(self.row, self.trips, log.get(), lambda: self.shed)
        self.now_ns = 10**15
        self.breaker.look(self.now_ns)

    def window(self, taken: int, alike: int, shed: int = 0) -> bool:
        """Is it open afterwards?"""
        self.shed += shed
        self.row["taken"] += taken
        self.row["alike"] += alike
        self.now_ns += WINDOW_NS
        self.breaker.look(self.now_ns)
        return bool(self.row["drop_alike"])


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.mark.parametrize(
    ("taken", "alike", "expected"), [(1000, 0, False), (1000, 499, False), (1000, 500, True), (FEW - 1, FEW - 1, False), (FEW, FEW, True)]
)
def test_it_opens_when_half_of_what_comes_is_alike(loop: Loop, taken: int, alike: int, expected: bool) -> None:
    assert loop.window(taken, alike) is expected
    assert loop.trips[0] == expected


def test_a_loop_does_not_hide_behind_the_shedding_that_it_brings_on(loop: Loop) -> None:
    assert not loop.window(10_000, 200, shed=9_500)
    assert loop.window(10_000, 300, shed=9_500)


def test_what_an_earlier_worker_has_shed_is_not_taken_off(loop: Loop) -> None:
    loop.shed = 1_000_000
    breaker = Breaker(loop.row, loop.trips, log.get(), lambda: loop.shed)
    loop.row |= {"taken": 1000, "alike": 100}
    breaker.look(loop.now_ns)
    assert not loop.row["drop_alike"]


def test_what_ends_when_it_is_open_was_ours_and_each_try_takes_longer(loop: Loop) -> None:
    held = []
    for _ in range(3):
        assert loop.window(1000, 900)
        n_windows = 1
        while loop.window(100, 0):
            n_windows += 1
        held.append(n_windows * WINDOW_NS)
    assert held == [HOLD_NS, 2 * HOLD_NS, 4 * HOLD_NS]
    assert loop.trips[0] == 3


def test_what_does_not_end_is_not_ours_and_is_not_asked_again_until_it_has_doubled(loop: Loop) -> None:
    assert loop.window(1000, 900)
    assert [loop.window(1000, 900) for _ in range(SETTLE + 1)] == [True] * SETTLE + [False]
    assert not any(loop.window(1800, 1790) for _ in range(1000))
    assert loop.window(1800, 1800)
    assert loop.trips[0] == 2


def test_after_long_peace_the_first_try_is_soon_again(loop: Loop) -> None:
    loop.window(1000, 900)
    while loop.window(0, 0):
        pass
    for _ in range(300):
        assert not loop.window(1000, 0)
    assert loop.window(1000, 900)
    assert sum(1 for _ in iter(lambda: loop.window(0, 0), False)) + 1 == HOLD_NS // WINDOW_NS


def test_an_interface_that_is_opened_again_begins_anew(loop: Loop) -> None:
    loop.window(1000, 0)
    loop.row["taken"] = loop.row["alike"] = 0
    assert not loop.window(100, 100)
    assert loop.window(100, 100)
