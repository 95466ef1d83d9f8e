"""Forecasts of series whose truth is known: no worse than repeating the past, not far from what no one can know (the noise), and the
intervals hold about what they claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.core.errors import TapmeshError
from broker.flows.answers import holt_winters
from broker.flows.answers.forecasts import forecast
from broker.flows.answers.series import Subject
from broker.flows.answers.store import Store
from broker.flows.answers.times import DAY_NS, HOUR_NS, Period
from tests.flows.answers.records import DAY, S, write_meters

NOISE = 6.0
WEEK = 168


def series(days: int, seed: int, *, trend: float = 0.05, daily: float = 30.0, weekly: float = 15.0, noise: float = NOISE) -> np.ndarray:
    """Per hour: a trend, a day's and a week's season, and noise."""
    t = np.arange(24 * days)
    rng = np.random.default_rng(seed)
    working = ((t // 24) % 7) < 5
    return 200 + trend * t + daily * np.sin(2 * np.pi * t / 24) + weekly * working + rng.normal(0, noise, len(t))


CASES = {
    "day and week": {"days": 42},
    "day only": {"days": 21, "weekly": 0.0},
    "trend only": {"days": 14, "daily": 0.0, "weekly": 0.0, "trend": 0.5},
    "steep": {"days": 42, "trend": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_a_forecast_beats_repeating_the_past_and_its_intervals_hold(case: str) -> None:
    covered, ratios, errors, claimed = [], [], [], []
    for seed in range(2):
        values = series(seed=seed, **CASES[case])
        past, future = values[:-WEEK], values[-WEEK:]  # a week that it never sees, not even to choose
        found = holt_winters.forecast(past, WEEK, 24, (24, WEEK))
        error = float(np.abs(found.path.mean - future).mean())
        best = min(float(np.abs(holt_winters.naive(past, WEEK, s) - future).mean()) for s in (1, 24, WEEK))
        covered.append(float(((future >= found.path.low) & (future <= found.path.high)).mean()))
        ratios.append(error / best)
        errors.append(error)
        claimed.append(found.mae)
    floor = NOISE * np.sqrt(2 / np.pi)  # the mean error of knowing all but the noise
    assert np.mean(ratios) < 0.95, ratios
    assert np.mean(errors) < 2.5 * floor, errors
    assert np.mean(errors) < 2.5 * np.mean(claimed), (errors, claimed)  # what it says of its error is no fancy
    assert 0.8 <= np.mean(covered) <= 1.0, covered


def test_the_season_is_found() -> None:
    assert holt_winters.forecast(series(42, 1), 24, 24, (24, WEEK)).season == WEEK
    assert holt_winters.forecast(series(21, 1, weekly=0.0), 24, 24, (24, WEEK)).season == 24
    assert holt_winters.forecast(series(12, 1, daily=0.0, weekly=0.0, trend=1.0), 24, 24, (24, WEEK)).season == 0


def test_a_level_that_never_changes_stays() -> None:
    found = holt_winters.forecast(np.full(100, 7.0), 5, 24, (24, WEEK))
    assert list(found.path.mean) == list(found.path.low) == list(found.path.high) == [7.0] * 5


def test_the_error_is_the_one_over_what_was_held_out() -> None:
    values = series(28, 4)
    found = holt_winters.forecast(values, 10, 24, (24,))
    held = found.held_out
    again = holt_winters.fitted(values[:-held], held, found.season, found.damped)
    assert held == 28 * 24 // 5
    assert found.mae == pytest.approx(np.mean(np.abs(again.mean - values[-held:])))
    assert found.smape == pytest.approx(np.mean([2 * abs(f - a) / (f + a) for f, a in zip(again.mean, values[-held:], strict=True)]))
    assert found.naive_mae == pytest.approx(min(np.mean(np.abs(np.resize(values[:-held][-s:], held) - values[-held:])) for s in (1, 24)))


def test_too_little_is_refused_in_words() -> None:
    with pytest.raises(TapmeshError, match="71 steps are known, at least 72 are needed"):
        holt_winters.forecast(np.arange(71.0), 5, 24, (24,))


def meters(kind: str, name: str, values: np.ndarray, **more: int) -> list[dict[str, int | str]]:
    return [
        {
            "kind": kind,
            "name": name,
            "at_ns": (DAY + 3600 * (i + 1)) * S - (S if kind == "store" else 0),
            "for_ns": HOUR_NS,
            "bytes": int(v),
            **more,
        }
        for i, v in enumerate(values)
    ]


def test_when_a_link_and_the_store_are_full_is_said(tmp_path: Path) -> None:
    days = 20
    t = np.arange(24 * days)
    rng = np.random.default_rng(8)
    rate = 1e9 + 1e6 * t + 2e8 * np.sin(2 * np.pi * t / 24) + rng.normal(0, 1e7, len(t))  # bits/s
    held = 1e9 + 1e7 * t + rng.normal(0, 1e6, len(t))
    rows = meters("input", "span0", rate * 3600 / 8) + meters("tool", "span0", rate) + meters("store", "store", held, capacity_bytes=10**10)
    write_meters(tmp_path, [row for i, row in enumerate(rows) if i not in (100, 101)])
    store = Store(tmp_path, threads=1)
    period = Period(DAY * S - 10 * DAY_NS, DAY * S + days * DAY_NS)
    links = [Subject("link", "uplink", "", 1_900_000_000, ("span0",))]
    answer = forecast(store, period, "uplink", links, {}, 30 * DAY_NS)
    # 1e9 + 1e6 t + 2e8 (a sine's top, at 6 h) reaches 1.9e9 on the 30th day
    truth = DAY * S + int(700 / 24) * DAY_NS + 6 * HOUR_NS
    said = {
        key: np.datetime64(str(answer.facts[key]).removesuffix("Z")).astype("datetime64[ns]").astype(int)
        for key in ("full_earliest", "full_expected")
    }
    assert said["full_earliest"] <= truth + DAY_NS
    assert abs(said["full_expected"] - truth) <= 2 * DAY_NS
    assert answer.facts["season_s"] == 86_400
    assert any("2 hours were not metered" in note for note in answer.notes)
    of_store = forecast(store, period, "store", [], {}, 30 * DAY_NS)
    full = np.datetime64(str(of_store.facts["full_expected"]).removesuffix("Z")).astype("datetime64[ns]").astype(int)
    assert abs(full - (DAY * S + 900 * HOUR_NS)) <= DAY_NS
    with pytest.raises(TapmeshError, match="several things: input:span0 of n1, tool:span0 of n1"):
        forecast(store, period, "span0", [], {}, DAY_NS)
    with pytest.raises(TapmeshError, match="neither 'store' nor known in that time, which has: input:span0, tool:span0"):
        forecast(store, period, "nowhere", [], {}, DAY_NS)
    with pytest.raises(TapmeshError, match="at least 72"):
        forecast(store, Period(DAY * S, DAY * S + 2 * DAY_NS), "store", [], {}, DAY_NS)
    assert any("cannot be said" in note for note in forecast(store, period, "tool:span0", [], {}, DAY_NS).notes)
