"""How full inputs, tools and links are: `tapmesh flows utilisation`.

The 95th percentile is that of billing: the steps (5 minutes by default) of the time in order of their rates, the highest twentieth left
out, the highest of what is left. A step in which nothing was metered counts as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from broker.flows.answers.answer import Answer, Cell, Column, text
from broker.flows.answers.series import Measured, Series, Subject, linked, metered, steps_of
from broker.flows.answers.store import Store
from broker.flows.answers.times import SECOND_NS, Period, iso

NEARLY = 0.8
_DRAWN = 6

_COLUMNS = (
    *(text("kind"), text("name"), text("node"), Column("capacity_bits_per_s", "capacity", "rate")),
    *(Column("average_bits_per_s", "average", "rate"), Column("p95_bits_per_s", "95th percentile", "rate")),
    *(Column("peak_bits_per_s", "peak", "rate"), Column("peak_ns", "peak at", "time"), Column("p95_share", "95th used", "share")),
    Column("peak_share", "peak used", "share"),
    text("state"),
)


def percentile95(rates: Series) -> float:
    """The highest rate when the highest 5 % of the steps are left out: of 100 the 95th."""
    ordered = np.sort(rates)
    return float(ordered[math.ceil(0.95 * len(ordered)) - 1])


def state_of(p95: float, peak: float, capacity: int) -> str:
    if not capacity:
        return ""
    if p95 > capacity:
        return "oversubscribed"
    if peak > capacity:
        return "peaks above capacity"
    return "nearly full" if p95 > NEARLY * capacity else ""


def utilisation(store: Store, period: Period, step_ns: int, links: Sequence[Subject], capacities: dict[str, int]) -> Answer:
    """`capacities`: bits/s of inputs and tools by name, where known."""
    whole = steps_of(period, step_ns)
    of_meters = metered(store, whole, step_ns, capacities)
    measured = [*linked(store, whole, step_ns, links, of_meters), *of_meters]
    rows = [_row(m, whole, step_ns) for m in measured]
    unknown = [f"{m.subject.kind} {m.subject.name}: {int((~m.known).sum()):,}" for m in measured if not m.known.all()]
    n = (whole.to_ns - whole.from_ns) // step_ns
    notes = [f"{n:,} steps of {step_ns // SECOND_NS:,} s, {whole}"]
    if unknown:
        notes.append(f"steps in which nothing was metered, which count as nothing: {', '.join(unknown)}")
    return Answer(f"utilisation, {period}", _COLUMNS, rows, tuple(notes), picture=draw, drawn=(whole, step_ns, measured))


def _row(m: Measured, whole: Period, step_ns: int) -> tuple[Cell, ...]:
    capacity = m.subject.capacity_bits_per_s
    p95, peak_at = percentile95(m.bits_per_s), int(m.bits_per_s.argmax())
    peak = float(m.bits_per_s[peak_at])
    return (
        *(m.subject.kind, m.subject.name, m.subject.node, capacity or None, float(m.bits_per_s.mean()), p95, peak),
        whole.from_ns + peak_at * step_ns if peak else None,
        *((p95 / capacity, peak / capacity) if capacity else (None, None)),
        state_of(p95, peak, capacity),
    )


def draw(answer: Answer, path: Path) -> None:
    """A panel for each, those first that are fullest; dashed where they are full."""
    from broker.flows.answers import plots

    whole, step_ns, measured = answer.drawn
    order = sorted(measured, key=lambda m: -(percentile95(m.bits_per_s) / (m.subject.capacity_bits_per_s or math.inf)))[:_DRAWN]
    times = [(whole.from_ns + i * step_ns) / 1e9 for i in range((whole.to_ns - whole.from_ns) // step_ns)]
    panels = [
        (f"{m.subject.kind} {m.subject.name}", m.bits_per_s, m.subject.capacity_bits_per_s, percentile95(m.bits_per_s)) for m in order
    ]
    plots.rates(path, f"utilisation, {iso(whole.from_ns)} to {iso(whole.to_ns)}", times, panels)
