"""Rollups change no answer, whatever becomes of the files that they were made of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from broker.core import flow_model
from broker.flows.answers import rollup
from broker.flows.answers.answer import Answer
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period
from broker.flows.answers.top import OF, top
from broker.flows.store.parquet import ParquetStore
from tests.flows.answers.records import DAY, HOUR, S, some, write

ALL = Period(DAY * S, DAY * S + 3 * HOUR)
PERIODS = (
    ALL,
    Period(ALL.from_ns + HOUR // 3, ALL.to_ns - HOUR // 7),
    Period(ALL.from_ns + HOUR, ALL.to_ns),
    Period(ALL.to_ns, ALL.to_ns + HOUR),
)


def settle(directory: Path) -> None:
    """As if nothing had come to it for long."""
    for path in directory.rglob("*.parquet"):
        os.utime(path, (DAY, DAY))


def rollups(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.name.startswith(rollup.PREFIX))


def answers(directory: Path) -> list[Answer]:
    store = Store(directory, threads=1)
    return [top(store, period, "true", by, OF, 1000) for period in PERIODS for by in rollup.NEEDED]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "store", some(900, seed=21))
    return tmp_path / "store"


def test_answers_are_the_same_with_rollups_as_without(directory: Path) -> None:
    plain = answers(directory)
    assert rollups(directory) == []  # files have just come
    settle(directory)
    first, second = answers(directory), answers(directory)
    assert len(rollups(directory)) == 3
    assert plain == first == second
    assert all(path.stat().st_mtime == DAY for path in rollups(directory))


def test_the_store_makes_them_before_anybody_asks(directory: Path) -> None:
    plain = answers(directory)
    settle(directory)
    kept = ParquetStore(flow_model.Store(directory=str(directory), keep_days=0), "n1", tend_s=0)
    for n in (1, 2, 3, 3):  # one hour at a time
        kept.tend()
        assert len(rollups(directory)) == n
    made = [path.stat().st_ino for path in rollups(directory)]
    assert answers(directory) == plain
    assert [path.stat().st_ino for path in rollups(directory)] == made


def test_a_file_that_comes_later_is_counted(directory: Path) -> None:
    settle(directory)
    before = answers(directory)
    write(directory, some(200, seed=22))
    late = answers(directory)
    settle(directory)
    again = answers(directory)
    for path in rollups(directory):
        path.unlink()
    fresh = answers(directory)
    assert before != late == again == fresh
    assert len(rollups(directory)) == 3  # none is left of what was there before


def test_a_rollup_is_what_is_read(directory: Path) -> None:
    """Else this file would test nothing: with the records gone, the answer stands."""
    settle(directory)
    expected = top(Store(directory), ALL, "true", "source", OF, 1000)
    for path in directory.rglob("[0-9]*.parquet"):
        os.truncate(path, 0)
    assert top(Store(directory), ALL, "true", "source", OF, 1000) == expected


def test_where_we_may_not_write_the_records_are_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(directory)
    settle(directory)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert (answers(directory), rollups(directory)) == (expected, [])


def test_an_hour_that_goes_while_it_is_rolled_up_is_read_again(directory: Path) -> None:
    settle(directory)
    hour = next((directory / "flows").glob("*/*"))
    files = list(hour.glob("*.parquet"))
    shutil.rmtree(hour)
    assert rollup.made(Store(directory).run, OSError, hour, files) is None
