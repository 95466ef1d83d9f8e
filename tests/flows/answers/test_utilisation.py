"""Rates step by step beside a slow sum, and the percentile that bills are made by."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from broker.config.records.expression import where
from broker.core.errors import TapmeshError
from broker.core.flow_model import Link
from broker.flows.answers.series import filled, metered, recorded, steps_of, subject_of
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period
from broker.flows.answers.utilisation import percentile95, state_of, utilisation
from tests.flows.answers.records import DAY, HOUR, Record, S, some, write, write_meters

ALL = Period(DAY * S, DAY * S + 3 * HOUR)
STEP = 300 * S


def slowly(amounts: list[tuple[int, int, int]], period: Period, step: int) -> list[float]:
    """bits/s of each step, of (begins, ends, bytes), piece by piece."""
    n = (period.to_ns - period.from_ns) // step
    found = [0.0] * n
    for begins, ends, size in amounts:
        for at in range(n):
            left, right = period.from_ns + at * step, period.from_ns + (at + 1) * step
            common = min(ends, right) - max(begins, left)
            if common > 0:
                found[at] += size * common / (ends - begins) * 8 / (step / S)
    return found


def test_bytes_of_records_are_spread_over_their_time(tmp_path: Path) -> None:
    records = some(600, seed=9)
    records += [Record("10.1.0.1", "10.1.0.2", 6, first_ns=DAY * S - 900 * S, last_ns=DAY * S + 1000 * S, bytes=10**8)]
    records += [Record("10.1.0.1", "10.1.0.2", 6, first_ns=ALL.to_ns - 600 * S, last_ns=ALL.to_ns + 600 * S, bytes=10**8)]
    write(tmp_path, records)
    link = subject_of(Link("web", 10**6, match="tcp"), where("tcp", {}))
    measured = recorded(Store(tmp_path, threads=1), ALL, STEP, link)
    expected = slowly([(r.first_ns, r.last_ns + 1, r.bytes + r.bytes_back) for r in records if r.protocol == 6], ALL, STEP)
    assert measured.bits_per_s == pytest.approx(expected)
    assert measured.known.all()


def meter(kind: str, name: str, at_s: int, for_s: int, size: int, **more: int | str) -> dict[str, int | str]:
    return {"kind": kind, "name": name, "at_ns": (DAY + at_s) * S, "for_ns": for_s * S, "bytes": size, **more}


def test_meters_are_spread_too_and_links_of_inputs_are_their_sum(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [
        meter(kind, name, at, 10, rng.randrange(10**6))
        for kind, name in (("input", "span0"), ("input", "span1"), ("tool", "ids"))
        for at in range(7, 10_800, 10)
    ]
    write_meters(tmp_path, rows)
    store = Store(tmp_path, threads=1)
    found = {m.subject.name: m for m in metered(store, ALL, STEP, {"ids": 5})}
    for name, m in found.items():
        amounts = [(int(r["at_ns"]) - 10 * S, int(r["at_ns"]), int(r["bytes"])) for r in rows if r["name"] == name]
        assert m.bits_per_s == pytest.approx(slowly(amounts, ALL, STEP))
    answer = utilisation(store, ALL, STEP, [subject_of(Link("both", 1000, inputs=("span0", "span1")), "")], {"ids": 5 * 10**9})
    by_name = {row[1]: dict(zip((c.key for c in answer.columns), row, strict=True)) for row in answer.rows}
    both = found["span0"].bits_per_s + found["span1"].bits_per_s
    assert by_name["both"]["average_bits_per_s"] == pytest.approx(both.mean())
    assert by_name["both"]["peak_bits_per_s"] == pytest.approx(both.max())
    assert by_name["both"]["peak_ns"] == ALL.from_ns + int(both.argmax()) * STEP
    assert (by_name["both"]["state"], by_name["ids"]["state"], by_name["span0"]["state"]) == ("oversubscribed", "", "")
    assert by_name["ids"]["p95_share"] == pytest.approx(percentile95(found["ids"].bits_per_s) / 5e9)


def test_without_meters_a_link_of_inputs_is_made_of_records(tmp_path: Path) -> None:
    write(tmp_path, [Record("10.0.0.1", "10.0.0.2", input=name, first_ns=DAY * S, last_ns=DAY * S + 60 * S) for name in ("a", "b", "c")])
    answer = utilisation(Store(tmp_path), Period(DAY * S, DAY * S + 300 * S), STEP, [subject_of(Link("ab", 1, inputs=("a", "b")), "")], {})
    assert answer.rows[0][4] == pytest.approx(2 * 3000 * 8 / 300)


def test_steps_that_nobody_metered_are_told_of(tmp_path: Path) -> None:
    write_meters(tmp_path, [meter("input", "span0", at, 10, 1000) for at in range(10, 1200, 10)])
    answer = utilisation(Store(tmp_path), Period(DAY * S, DAY * S + 3600 * S), STEP, [], {})
    assert answer.notes[1].endswith("input span0: 8")
    assert answer.rows[0][4] == pytest.approx(119_000 * 8 / 3600)


def test_the_percentile_leaves_the_highest_twentieth_out() -> None:
    assert percentile95(np.arange(1.0, 101.0)) == 95
    assert percentile95(np.arange(1.0, 21.0)) == 19
    assert percentile95(np.array([3.0, 1.0])) == 3
    month = np.array([10.0] * 8200 + [900.0] * 440)  # 30 days of 5 minutes: 432 steps are free
    assert percentile95(month) == 900
    assert percentile95(np.array([10.0] * 8210 + [900.0] * 430)) == 10


def test_what_is_full_is_said() -> None:
    assert [state_of(p, q, 100) for p, q in ((101, 200), (50, 101), (81, 100), (80, 100))] == [
        "oversubscribed", "peaks above capacity", "nearly full", "",
    ]  # fmt: skip
    assert state_of(10**9, 10**9, 0) == ""


def test_only_whole_steps_count() -> None:
    assert steps_of(Period(STEP + 1, 4 * STEP - 1), STEP) == Period(2 * STEP, 3 * STEP)
    with pytest.raises(TapmeshError, match="no whole step of 300 s"):
        steps_of(Period(1, STEP), STEP)
    with pytest.raises(TapmeshError, match="take a longer --step"):
        steps_of(Period(0, 10**18), S)


def test_the_store_holds_what_its_last_meter_of_a_step_said(tmp_path: Path) -> None:
    write_meters(
        tmp_path,
        [meter("store", "store", at, 10, 100 * at, capacity_bytes=10**6, node=n) for at in range(10, 1000, 10) for n in ("n1", "n2")],
    )
    held, known, capacity = filled(Store(tmp_path), Period(DAY * S, DAY * S + 1200 * S), STEP)
    assert (list(held), list(known), capacity) == ([58_000, 118_000, 178_000, 198_000], [True] * 4, 2 * 10**6)
