"""How much, step by step: bytes of inputs, tools and links, spread evenly over the time in which they came. The ground of utilisation and
forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.config.records.conditions import any_of, quoted
from broker.core.errors import TapmeshError
from broker.core.flow_model import Link
from broker.flows.answers.store import Store
from broker.flows.answers.times import HOUR_NS, SECOND_NS, Period

Series = NDArray[np.float64]
MOST_STEPS = 200_000


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured. `inputs`: their sum; `condition`: the records that belong to it, as SQL."""

    kind: str  # input, tool, link
    name: str
    node: str = ""
    capacity_bits_per_s: int = 0  # 0: not known
    inputs: tuple[str, ...] = ()
    condition: str = ""


@dataclass(slots=True)
class Measured:
    subject: Subject
    bits_per_s: Series
    known: NDArray[np.bool_]  # the steps in which anything at all was metered


def steps_of(period: Period, step_ns: int) -> Period:
    """The whole steps in it. TapmeshError: there is none, or far too many."""
    whole = Period(-(-period.from_ns // step_ns) * step_ns, period.to_ns // step_ns * step_ns)
    n = (whole.to_ns - whole.from_ns) // step_ns
    if n < 1:
        raise TapmeshError(f"the time asked for has no whole step of {step_ns // SECOND_NS} s: {period}")
    if n > MOST_STEPS:
        raise TapmeshError(f"the time asked for has {n:,} steps of {step_ns // SECOND_NS} s, at most {MOST_STEPS:,}: take a longer --step")
    return whole


def metered(store: Store, period: Period, step_ns: int, capacities: dict[str, int]) -> list[Measured]:
    """All inputs and tools that the meters know, of every node. `period`: whole steps."""
    rows = store.meters(_wide(period), "kind IN ('input', 'tool')")
    begins = f"SELECT node, kind, name, at_ns - for_ns AS begins, at_ns AS ends, bytes AS amount FROM {rows} WHERE for_ns > 0"
    found: dict[tuple[str, str, str], Measured] = {}
    for *key, at, amount in store.run(_spread(begins, "node, kind, name", period, step_ns)):
        node, kind, name = (str(part) for part in key)
        if (node, kind, name) not in found:
            found[node, kind, name] = _nothing(Subject(kind, name, node, capacities.get(name, 0)), period, step_ns)
        measured = found[node, kind, name]
        measured.bits_per_s[at] += amount * 8 * SECOND_NS / step_ns
        measured.known[at] = True
    return [found[key] for key in sorted(found, key=lambda key: (key[1], key[2], key[0]))]


def linked(store: Store, period: Period, step_ns: int, links: Sequence[Subject], of_meters: Sequence[Measured]) -> list[Measured]:
    """Links: of inputs what their meters say, or the records where there are no meters; of an expression the records."""
    made = []
    for link in links:
        meters = [m for m in of_meters if m.subject.kind == "input" and m.subject.name in link.inputs]
        if meters:
            known = np.any([m.known for m in meters], axis=0)
            made.append(Measured(link, np.sum([m.bits_per_s for m in meters], axis=0), known))
        else:
            made.append(recorded(store, period, step_ns, link))
    return made


def recorded(store: Store, period: Period, step_ns: int, subject: Subject) -> Measured:
    """Of the records of a subject; a step is known if there is any record near it."""
    condition = subject.condition or any_of(f"input = {quoted(name)}" for name in subject.inputs)
    wide = _wide(period)
    rows = f"SELECT first_ns AS begins, last_ns + 1 AS ends, bytes + bytes_back AS amount FROM {store.flows(wide, condition)}"
    measured = _nothing(subject, period, step_ns)
    for at, amount in store.run(_spread(rows, "", period, step_ns)):
        measured.bits_per_s[at] = amount * 8 * SECOND_NS / step_ns
    for (at,) in store.run(f"SELECT DISTINCT (last_ns - {period.from_ns}) // {step_ns} FROM {store.flows(period)}"):
        measured.known[at] = True
    return measured


def subject_of(link: Link, condition: str) -> Subject:
    return Subject("link", link.name, "", link.capacity_bits_per_s, link.inputs, condition)


def filled(store: Store, period: Period, step_ns: int) -> tuple[Series, NDArray[np.bool_], int]:
    """Bytes that the store holds at the end of each step, which steps are known, and what it may hold (0: no limit)."""
    n = (period.to_ns - period.from_ns) // step_ns
    held, known = np.zeros(n), np.zeros(n, dtype=np.bool_)
    capacity = 0
    last = "max_by(bytes, at_ns) AS size, max_by(capacity_bytes, at_ns) AS most"
    for at, size, most in store.run(f"""
        SELECT nth, sum(size)::BIGINT, sum(most)::BIGINT FROM (
            SELECT node, name, (at_ns - {period.from_ns}) // {step_ns} AS nth, {last}
            FROM {store.meters(period, "kind = 'store'")} GROUP BY ALL) GROUP BY nth ORDER BY nth"""):
        held[at], known[at], capacity = size, True, most
    return held, known, capacity


def _wide(period: Period) -> Period:
    """What ends after the time may have begun in it."""
    return Period(period.from_ns, period.to_ns + HOUR_NS)


def _spread(rows: str, keys: str, period: Period, step_ns: int) -> str:
    """Of `rows` with begins, ends, amount: for each key and step (from 0) what of the amounts falls into it."""
    listed = f"{keys}, " if keys else ""
    first, end = period.from_ns // step_ns, period.to_ns // step_ns
    common = f"least(ends, (nth + 1) * {step_ns}) - greatest(begins, nth * {step_ns})"
    return f"""
        SELECT {listed}nth - {first} AS step, sum(amount * ({common})::DOUBLE / (ends - begins)) AS amount
        FROM (SELECT *, unnest(range(begins // {step_ns}, (ends - 1) // {step_ns} + 1)) AS nth FROM ({rows}))
        WHERE nth >= {first} AND nth < {end} GROUP BY {listed}nth"""


def _nothing(subject: Subject, period: Period, step_ns: int) -> Measured:
    n = (period.to_ns - period.from_ns) // step_ns
    return Measured(subject, np.zeros(n), np.zeros(n, dtype=np.bool_))
