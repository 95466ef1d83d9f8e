"""Flow records on a disk that is full: dropped and counted, or waiting; stored as soon as there is room, no deadlock ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from broker.core.flow_layout import EXPORT
from broker.core.flow_model import Store
from broker.core.shm import Pipeline
from broker.flows import segments
from broker.flows.segments import Header
from broker.flows.spool import Spool
from broker.flows.store import compaction
from broker.flows.store.loop import Consumer
from broker.supervisor.troubles import export_troubles
from tests.endurance.conftest import filled
from tests.flows.feeder import HOUR_NS, NOON_NS, config, exports_row, make_pipeline, random_rows
from tests.waiting import until

duckdb = pytest.importorskip("duckdb")
parquet = pytest.importorskip("broker.flows.store.parquet")

pytestmark = pytest.mark.root

INPUTS = {0: "span0"}
SOON_S = 1.0
MiB = 1 << 20


@pytest.fixture
def row() -> Any:
    return np.zeros(1, EXPORT)[0]


def open_spool(directory: Path, row: Any) -> Spool:
    return Spool(directory / "spool", Header("flows", "esx07", 17, INPUTS), row, flush_s=3600, max_bytes=1 << 30, keeps_room=True)


def open_store(directory: Path, row: Any, **keys: Any) -> Consumer:
    store = parquet.ParquetStore(Store(directory=str(directory), **keys), "esx07", tend_s=0)
    return Consumer(directory / "spool", store, row)


def stored(directory: Path) -> list[int]:
    names = ", ".join(f"'{path}'" for path in parquet.files(directory, 0, 1 << 62))
    return [n for (n,) in duckdb.connect().execute(f"SELECT number FROM read_parquet([{names}]) ORDER BY 1").fetchall()] if names else []


def half_written(directory: Path) -> list[Path]:
    return [*directory.rglob("*.tmp"), *directory.rglob("*.part")]


def test_the_spool_leaves_the_store_the_room_that_it_needs(disk: Callable[[int], Path], row: Any) -> None:
    """Nobody but the two is on the disk, and the store comes when it is full."""
    directory = disk(4 * MiB) / "store"
    spool, taken, first = open_spool(directory, row), list[int](), 0
    with structlog.testing.capture_logs() as logs:
        for _ in range(4 * MiB // (256 * 100)):
            if spool.append("flows", random_rows(100, first=first)):
                taken += range(first, first + 100)
            first += 100
            spool.tick(INPUTS)
    assert logs[0]["event"] == "spool_refused"
    assert "have to stay to store what waits" in logs[0]["reason"]
    assert len(taken) * 256 > MiB  # not for fear of its own shadow
    assert (row["dropped_records"], row["refusing"]) == (first - len(taken), 1)
    until(lambda: not list((directory / "spool").glob("*.open")), "segments to be closed")

    consumer = open_store(directory, row)
    began = time.monotonic()
    consumer.drain()
    assert stored(directory) == taken
    assert row["errors"] == 0
    assert spool.append("flows", random_rows(100, first=first))
    assert time.monotonic() - began < 3 * SOON_S  # what it takes to store all
    assert row["refusing"] == 0
    spool.close()
    consumer.close()


def test_what_waits_is_stored_within_a_second_of_there_being_room(disk: Callable[[int], Path], row: Any) -> None:
    place = disk(4 * MiB)
    directory = place / "store"
    spool, consumer = open_spool(directory, row), open_store(directory, row)
    assert spool.append("flows", random_rows(1000))
    spool.close()
    with structlog.testing.capture_logs() as logs:
        with filled(place):
            end = time.monotonic() + 3.2  # a back-off that grows would be at two seconds by now
            until(lambda: consumer.step() or time.monotonic() > end, "the store to be refused")
            assert [(entry["event"], "No space left on device" in entry["reason"]) for entry in logs] == [("store_refused", True)]
            assert row["connected"] == 0
            assert 4 <= row["errors"] <= 8
            assert half_written(directory) == []
            again = open_spool(directory, row)
            assert not again.append("flows", random_rows(10, first=1000))
            assert (row["dropped_records"], row["refusing"]) == (10, 1)
        until(consumer.step, "the segment to be stored", SOON_S)
        assert again.append("flows", random_rows(10, first=1010))
        until(lambda: again.tick(INPUTS) or not row["refusing"], "the spool to take records", 2 * SOON_S)
        again.close()
    assert [entry["event"] for entry in logs if entry["event"] != "store_untended"] == [
        "store_refused",
        "spool_refused",
        "store_resumed",
        "spool_resumed",
    ]
    consumer.drain()
    assert stored(directory) == [*range(1000), *range(1010, 1020)]
    consumer.close()


def test_hours_that_are_too_old_go_although_segments_wait(disk: Callable[[int], Path], row: Any) -> None:
    """Else nothing would ever make room."""
    place = disk(4 * MiB)
    directory = place / "store"
    spool, consumer = open_spool(directory, row), open_store(directory, row, keep_days=1)
    spool.append("flows", random_rows(4000))
    spool.close()
    consumer.drain()
    spool = open_spool(directory, row)
    spool.append("flows", random_rows(1000, first=4000, at_ns=time.time_ns() // HOUR_NS * HOUR_NS))
    spool.close()
    long_ago = time.time() - 3 * 86_400
    with filled(place):
        for path in (directory / "flows").rglob("*.parquet"):
            os.utime(path, (long_ago, long_ago))
        until(consumer.step, "the segment to be stored", SOON_S)
    assert stored(directory) == list(range(4000, 5000))
    assert row["sequence"] == 4000
    consumer.close()


def test_an_hour_that_finds_no_room_is_merged_later(disk: Callable[[int], Path], row: Any) -> None:
    place = disk(4 * MiB)
    directory = place / "store"
    consumer = open_store(directory, row, keep_days=0)
    for n in range(3):
        spool = open_spool(directory, row)
        spool.append("flows", random_rows(200, first=200 * n))
        spool.close()
    consumer.drain()
    long_ago = time.time() - compaction.SETTLED_S - 1
    for path in (directory / "flows").rglob("*.parquet"):
        os.utime(path, (long_ago, long_ago))
    with structlog.testing.capture_logs() as logs:
        with filled(place):
            consumer.step()
            assert half_written(directory) == []
        consumer.step()
        consumer.step()
    assert [entry["event"] for entry in logs][:2] == ["store_untended", "hour_merged"]
    assert len(parquet.files(directory, NOON_NS, NOON_NS + 1)) == 1
    assert stored(directory) == list(range(600))
    consumer.close()


def test_a_spool_that_drops_is_told_by_health(name: str) -> None:
    pipeline: Pipeline = make_pipeline(name, configuration := config(Store(directory="/nowhere")))
    assert list(export_troubles(configuration, pipeline.directory)) == []
    row = exports_row(pipeline)
    row["dropped_records"], row["refusing"] = 70, 1
    assert list(export_troubles(configuration, pipeline.directory)) == ["there is no room for flow records: 70 are dropped by now"]
    assert segments.closed(Path("/nowhere/spool")) == []
