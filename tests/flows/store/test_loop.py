"""The store process's loop, with a store that does as it is told."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from broker.core.errors import TapmeshError
from broker.core.flow_layout import EXPORT
from broker.flows import segments
from broker.flows.segments import Header, Segment
from broker.flows.spool import Spool
from broker.flows.store.base import StoreError
from broker.flows.store.loop import Consumer
from tests.flows.feeder import random_rows
from tests.waiting import until


class FakeStore:
    """Takes segments, or refuses all with a reason."""

    held_bytes, expired_records = 800, 0

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.refuses = self.refuses_to_tend = ""
        self.attempts = 0

    def put(self, segment: Segment, header: Header, rows: Any) -> int:
        self.attempts += 1
        if self.refuses:
            raise StoreError(self.refuses)
        self.numbers += rows["number"].tolist()
        return int(rows.nbytes)

    def tend(self) -> None:
        if self.refuses_to_tend:
            raise StoreError(self.refuses_to_tend)
        self.expired_records += 5

    def close(self) -> None: ...


@pytest.fixture
def row() -> Any:
    return np.zeros(1, EXPORT)[0]


def spool_segments(directory: Path, row: Any, n: int) -> list[Segment]:
    """Closed ones of ten records each."""
    for number in range(n):
        spool = Spool(directory, Header("flows", "n", 1, {}), row, flush_s=3600, max_bytes=1 << 30)
        spool.append("flows", random_rows(10, first=10 * number))
        spool.close()
    return segments.closed(directory)


def test_segments_go_into_the_store_the_oldest_first_and_are_removed(tmp_path: Path, row: Any) -> None:
    spool_segments(tmp_path, row, 3)
    store = FakeStore()
    consumer = Consumer(tmp_path, store, row)
    while consumer.step():
        pass
    assert store.numbers == list(range(30))
    assert segments.closed(tmp_path) == []
    assert [int(row[name]) for name in ("records", "messages", "bytes", "connected", "errors")] == [30, 3, 30 * 256, 1, 0]
    assert (row["sequence"], row["sequence_b"]) == (5, 800)


def test_what_waits_is_told_when_no_exporter_is_left_to_tell_it(tmp_path: Path, row: Any) -> None:
    spool_segments(tmp_path, row, 2)
    row["waiting_records"] = 20  # the exporter's last word
    consumer = Consumer(tmp_path, FakeStore(), row)
    assert consumer.step()
    consumer.close()
    assert row["waiting_records"] == 10


def test_a_damaged_segment_does_not_block_the_next(tmp_path: Path, row: Any) -> None:
    bad, _ = spool_segments(tmp_path, row, 2)
    bad.path.write_bytes(b"x")
    store = FakeStore()
    consumer = Consumer(tmp_path, store, row)
    with structlog.testing.capture_logs() as logs:
        consumer.drain()
    assert store.numbers == list(range(10, 20))
    assert (row["errors"], row["records"]) == (1, 10)
    assert (tmp_path / "damaged" / f"{bad.path.name}.reason").read_text() == "does not begin as a segment does\n"
    assert [(entry["event"], entry["segment"], entry["rows"]) for entry in logs] == [("segment_set_aside", bad.path.name, 10)]
    assert consumer.close() == 0


def test_a_store_that_is_down_is_told_once_and_left_in_peace_between_attempts(
    tmp_path: Path, row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("broker.flows.store.loop.time.monotonic", lambda: now[0])
    spool_segments(tmp_path, row, 2)
    store = FakeStore()
    store.refuses = "down"
    consumer = Consumer(tmp_path, store, row)
    attempts = []
    with structlog.testing.capture_logs() as logs:
        for tenth in range(2000):
            now[0] = tenth / 10
            before = store.attempts
            assert not consumer.step()
            attempts += [now[0]] if store.attempts > before else []
        store.refuses = ""
        now[0] += 30
        assert consumer.step()
    waits = [round(b - a, 1) for a, b in itertools.pairwise(attempts)]
    assert waits == [0.5, 1, 2, 4, 8, 16, *[30.0] * (len(waits) - 6)]
    assert row["errors"] == len(attempts)
    assert [entry["event"] for entry in logs] == ["store_refused", "store_resumed"]
    assert row["connected"] == 1


def test_housekeeping_that_fails_holds_nothing_up_and_is_told_once(tmp_path: Path, row: Any) -> None:
    store = FakeStore()
    store.refuses_to_tend = "damaged"
    consumer = Consumer(tmp_path, store, row)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert not consumer.step()
    spool_segments(tmp_path, row, 1)
    assert consumer.step()
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("store_untended", "damaged")]


def test_there_is_one_store_process_a_spool_beside_its_exporter(tmp_path: Path, row: Any) -> None:
    spool = Spool(tmp_path, Header("flows", "n", 1, {}), row, flush_s=0, max_bytes=1 << 30)
    consumer = Consumer(tmp_path, FakeStore(), row)
    with pytest.raises(TapmeshError, match="another store uses it"):
        Consumer(tmp_path, FakeStore(), row)
    spool.append("flows", random_rows(10))

    def stored() -> bool:
        spool.tick({})
        consumer.step()
        return bool(row["records"] == 10)

    until(stored, "what the exporter appends")
    spool.close()
    assert row["waiting_records"] == 0
