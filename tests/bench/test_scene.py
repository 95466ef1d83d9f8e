"""The search for the highest rate, with agents that lose above a rate of theirs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.scene import HIGHEST, LOWEST, highest


def agent(carries: float, *, generator: float = HIGHEST) -> Callable[[float], tuple[float, float]]:
    def offer(rate: float) -> tuple[float, float]:
        offered = min(rate, generator)
        return offered, max(0.0, 1 - carries / offered)

    return offer


@pytest.mark.parametrize("carries", [6_000.0, 90_000.0, 500_000.0])
def test_the_rate_without_loss_is_found_from_below(carries: float) -> None:
    rate, steps = highest(agent(carries), 9)
    assert carries * 0.98 < rate <= carries
    assert all((loss > 0) == (offered > carries) for offered, loss in steps)


def test_what_the_generator_cannot_offer_is_not_claimed() -> None:
    rate, steps = highest(agent(1e9, generator=100_000.0), 9)
    assert rate == 100_000
    assert len(steps) < 6


def test_an_agent_that_cannot_carry_the_least_is_said_to() -> None:
    with pytest.raises(RuntimeError, match="% of 5000 packets/s was lost"):
        highest(agent(LOWEST / 2), 3)
