"""Holt-Winters forecasts that say how wrong they were: additive level, trend and season, in the state space form (Hyndman et al.).

Which season, and whether the trend is damped, is decided on a part at the end that is held out. The intervals are those of the model, made
wider where they have held too little of that part: the model takes what it has estimated for certain.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.core.errors import TapmeshError

Values = NDArray[np.float64]
LEVEL = 0.9
"""Of the intervals."""
MOST_ITERATIONS = 200


@dataclass(frozen=True, slots=True)
class Path:
    """Step by step: what is expected, and between what it lies with a probability of LEVEL."""

    mean: Values
    low: Values
    high: Values


@dataclass(frozen=True, slots=True)
class Forecast:
    path: Path
    season: int  # steps; 0: none
    damped: bool
    held_out: int  # steps
    mae: float  # mean absolute error over the part held out
    smape: float  # symmetric mean absolute percentage error, 0..2 as a share
    naive_mae: float  # of saying what was there a season before, the better of all seasons
    covered: float  # of the part held out, before the intervals were made wider
    widened: float


def import_ets() -> tuple[type, type]:
    """TapmeshError: statsmodels is not installed."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when scipy is loaded: for matrices this small its threads only wait
    try:
        from statsmodels.tsa.exponential_smoothing.ets import ETSModel  # isort: skip - what it needs itself comes after it
        import pandas
    except ImportError:
        raise TapmeshError("forecasts are made with statsmodels, which is not installed: pip install 'tapmesh[flows]'") from None
    return ETSModel, pandas.Series


def held_out_of(n: int, day: int) -> int:
    """A fifth, at most two weeks: what is far away is asked of the whole series."""
    return max(day, min(n // 5, 14 * day))


def least(day: int) -> int:
    """Steps that a forecast needs: three days, or ten steps."""
    return max(3 * day, 10)


def forecast(values: Values, steps: int, day: int, seasons: Sequence[int]) -> Forecast:
    """`day`: steps of a day (1: steps are days). `seasons`: lengths to try besides none, each needs two in the part that is not held out.
    TapmeshError: too little."""
    n = len(values)
    if n < least(day):
        raise TapmeshError(f"too little to forecast from: {n} steps are known, at least {least(day)} are needed")
    if not np.ptp(values):
        path = Path(*(np.full(steps, values[0]) for _ in range(3)))
        return Forecast(path, 0, False, 0, 0.0, 0.0, 0.0, 1.0, 1.0)
    held = held_out_of(n, day)
    before, after = values[:-held], values[-held:]
    tried = []
    for season in (0, *(s for s in seasons if len(before) >= max(2 * s, 10))):
        for damped in (True, False):
            path = fitted(before, held, season, damped)
            tried.append((float(np.abs(path.mean - after).mean()), season, damped, path))
    mae, season, damped, path = min(tried, key=lambda t: t[:3])
    widened = widening(path, after)
    whole = fitted(values, steps, season, damped)
    return Forecast(
        Path(whole.mean, whole.mean - (whole.mean - whole.low) * widened, whole.mean + (whole.high - whole.mean) * widened),
        *(season, damped, held, mae, smape(path.mean, after)),
        min(float(np.abs(naive(before, held, s) - after).mean()) for s in (1, *seasons) if len(before) >= s),
        float(((after >= path.low) & (after <= path.high)).mean()),
        widened,
    )


def fitted(values: Values, steps: int, season: int, damped: bool) -> Path:
    """What follows `values`. Scaled for the optimizer, whose tolerances are absolute."""
    model, series = import_ets()
    scale = float(np.abs(values).mean()) or 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge shows in the error over what is held out
        result = model(
            series(values / scale),
            error="add",
            trend="add",
            damped_trend=damped,
            seasonal="add" if season else None,
            seasonal_periods=season or None,
            initialization_method="heuristic",
        ).fit(disp=False, maxiter=MOST_ITERATIONS)
        frame = result.get_prediction(start=len(values), end=len(values) + steps - 1).summary_frame(alpha=1 - LEVEL)
    mean, low, high = (frame[name].to_numpy() * scale for name in ("mean", "pi_lower", "pi_upper"))
    return Path(mean, low, high)


def widening(path: Path, after: Values) -> float:
    """By how much the intervals would have to be wider to hold LEVEL of `after`; at least 1."""
    half = np.maximum((path.high - path.low) / 2, 1e-300)
    return max(1.0, float(np.quantile(np.abs(after - path.mean) / half, LEVEL)))


def naive(values: Values, steps: int, season: int) -> Values:
    """The last season again and again."""
    return np.resize(values[-season:], steps)


def smape(forecast: Values, actual: Values) -> float:
    both = np.abs(forecast) + np.abs(actual)
    return float(np.mean(np.where(both > 0, 2 * np.abs(forecast - actual) / np.where(both > 0, both, 1), 0)))
