"""When something will be full: `tapmesh flows forecast`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broker.core.errors import TapmeshError
from broker.flows.answers import holt_winters
from broker.flows.answers.answer import Answer, Column, Kind
from broker.flows.answers.holt_winters import Forecast, Values
from broker.flows.answers.series import Series, Subject, filled, linked, metered, steps_of
from broker.flows.answers.store import Store
from broker.flows.answers.times import DAY_NS, HOUR_NS, Period, iso

STORE = "store"
_DAILY_FROM_NS = 120 * DAY_NS  # what is longer is looked at by days
_UNKNOWN_MOST = 0.2
_AHEAD_MOST_NS = 730 * DAY_NS


@dataclass(frozen=True, slots=True)
class _History:
    name: str
    values: Values
    begins_ns: int
    step_ns: int
    capacity: float  # in the unit of the values; 0: not known
    kind: Kind
    unknown: int  # steps made up from their neighbours


def forecast(store: Store, period: Period, name: str, links: list[Subject], capacities: dict[str, int], ahead_ns: int) -> Answer:
    """`name`: of a link, an input, a tool (`input:NAME`, `tool:NAME` where several have it), or `store`. TapmeshError: there is
    none of that name, or too little is known of it."""
    step_ns = DAY_NS if period.to_ns - period.from_ns > _DAILY_FROM_NS else HOUR_NS
    if ahead_ns > _AHEAD_MOST_NS:
        raise TapmeshError(f"--ahead: at most {_AHEAD_MOST_NS // DAY_NS} days can be said anything of")
    history = _history(store, steps_of(period, step_ns), step_ns, name, links, capacities)
    day = DAY_NS // history.step_ns
    found = holt_winters.forecast(history.values, max(1, ahead_ns // history.step_ns), day, [s for s in (day, 7 * day) if s > 1])
    begins_ns = history.begins_ns + len(history.values) * history.step_ns
    unit = "bytes" if history.kind == "bytes" else "bits_per_s"
    facts = _facts(history, found, begins_ns, unit)
    columns = (
        Column("day_ns", "day", "time"),
        *(Column(f"expected_{unit}", "expected", history.kind), Column(f"low_{unit}", "low", history.kind)),
        Column(f"high_{unit}", "high", history.kind),
    )
    title = f"forecast of {history.name}: the highest of each day, and between what it lies with a probability of {holt_winters.LEVEL:.0%}"
    rows = _days(found, begins_ns, history.step_ns)
    return Answer(title, columns, rows, _notes(history, found, facts), facts, picture=draw, drawn=(history, found))


def _history(store: Store, period: Period, step_ns: int, name: str, links: list[Subject], capacities: dict[str, int]) -> _History:
    if name == STORE:
        values, known, most = filled(store, period, step_ns)
        return _without_gaps("the store", values, known, period, step_ns, float(most), "bytes")
    kind, _, plain = name.rpartition(":")
    candidates = [link for link in links if link.name == plain and kind in ("", "link")]
    of_meters = metered(store, period, step_ns, capacities)
    measured = linked(store, period, step_ns, candidates, of_meters)
    measured += [m for m in of_meters if m.subject.name == plain and kind in ("", m.subject.kind)]
    if not measured:
        known_names = sorted({f"{m.subject.kind}:{m.subject.name}" for m in of_meters} | {f"link:{link.name}" for link in links}) or [
            "nothing"
        ]
        raise TapmeshError(f"'{name}' is neither 'store' nor known in that time, which has: {', '.join(known_names)}")
    if len(measured) > 1:
        raise TapmeshError(
            f"'{name}' is several things: {', '.join(f'{m.subject.kind}:{m.subject.name} of {m.subject.node}' for m in measured)}"
        )
    m = measured[0]
    capacity = float(m.subject.capacity_bits_per_s)
    return _without_gaps(f"{m.subject.kind} {m.subject.name}", m.bits_per_s, m.known, period, step_ns, capacity, "rate")


def _without_gaps(
    name: str, values: Series, known: np.ndarray[tuple[int], np.dtype[np.bool_]], period: Period, step_ns: int, capacity: float, kind: Kind
) -> _History:
    """From the first known step to the last; steps between that nobody metered lie on a line between their neighbours."""
    at = np.flatnonzero(known)
    if not len(at):
        raise TapmeshError(f"nothing is known of {name} in that time: there is nothing to forecast from")
    first, last = int(at[0]), int(at[-1])
    if first and kind == "rate":
        first += 1  # metered for a part of it only
    at = at[at >= first]
    within = np.arange(first, last + 1)
    unknown = len(within) - len(at)
    if unknown > _UNKNOWN_MOST * len(within):
        raise TapmeshError(f"{name}: {unknown} of {len(within)} steps were not metered: too little is known to forecast from")
    filled_in = np.interp(within, at, values[at]) if len(at) else values[:0]
    return _History(name, filled_in, period.from_ns + first * step_ns, step_ns, capacity, kind, unknown)


def _facts(history: _History, found: Forecast, begins_ns: int, unit: str) -> dict[str, object]:
    facts: dict[str, object] = {
        "known_from": iso(history.begins_ns),
        "known_to": iso(begins_ns),
        "step_s": history.step_ns // 10**9,
        "season_s": found.season * history.step_ns // 10**9,
        "damped": found.damped,
        "held_out_steps": found.held_out,
        f"error_mae_{unit}": found.mae,
        "error_smape": found.smape,
        f"naive_mae_{unit}": found.naive_mae,
        "interval": holt_winters.LEVEL,
        f"capacity_{unit}": history.capacity or None,
    }
    if history.capacity:
        for key, path in (("full_expected", found.path.mean), ("full_earliest", found.path.high), ("full_latest", found.path.low)):
            at = np.flatnonzero(path >= history.capacity)
            facts[key] = iso(begins_ns + int(at[0]) * history.step_ns) if len(at) else None
    return facts


def _notes(history: _History, found: Forecast, facts: dict[str, object]) -> tuple[str, ...]:
    from broker.flows.answers.plots import scaled

    season = {0: "no season", DAY_NS: "a season of a day", 7 * DAY_NS: "a season of a week"}[found.season * history.step_ns]
    steps = "days" if history.step_ns == DAY_NS else "hours"
    notes = [f"from {len(history.values):,} {steps}, {iso(history.begins_ns)} to {facts['known_to']}; {season}"]
    if found.held_out:
        notes.append(
            f"error over the last {found.held_out:,} {steps}, held out: {scaled(found.mae, history.kind)} on average, "
            f"sMAPE {found.smape:.1%}; repeating the past: {scaled(found.naive_mae, history.kind)}"
        )
        if found.mae > found.naive_mae:
            notes.append("repeating the past would have been better: take this with care")
    if history.unknown:
        notes.append(f"{history.unknown:,} {steps} were not metered and are taken from their neighbours")
    if not history.capacity:
        notes.append("when it is full cannot be said: what it can take is not known")
    elif (history.values[-1] if history.kind == "bytes" else history.values.max()) >= history.capacity:
        notes.append(f"it has been full already ({scaled(history.capacity, history.kind)})")
    elif facts["full_earliest"] is None:
        notes.append(f"it does not get full ({scaled(history.capacity, history.kind)}) in that time")
    else:
        expected = facts["full_expected"] or "not in that time"
        latest = f"latest {facts['full_latest']}" if facts["full_latest"] else "or not in that time"
        notes.append(f"full ({scaled(history.capacity, history.kind)}): expected {expected}, earliest {facts['full_earliest']}, {latest}")
    return tuple(notes)


def _days(found: Forecast, begins_ns: int, step_ns: int) -> list[tuple[float, ...]]:
    """(day, expected, low, high) of the step of each day that has most."""
    times = begins_ns + np.arange(len(found.path.mean)) * step_ns
    rows: list[tuple[float, ...]] = []
    for day in np.unique(times // DAY_NS):
        of_day = np.flatnonzero(times // DAY_NS == day)
        at = of_day[int(np.argmax(found.path.mean[of_day]))]
        rows.append((int(day) * DAY_NS, *(max(0.0, float(path[at])) for path in (found.path.mean, found.path.low, found.path.high))))
    return rows


def draw(answer: Answer, path: Path) -> None:
    from broker.flows.answers import plots

    history, found = answer.drawn
    plots.forecast(path, f"forecast of {history.name}", history, found)
