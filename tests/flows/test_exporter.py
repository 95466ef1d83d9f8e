"""The exporter in this process: what sinks and spool get, and what is left when it dies at any moment."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from broker.core.errors import TapmeshError
from broker.core.flow_layout import FLOW
from broker.core.flow_model import Export, Store
from broker.core.flow_ring import RecordReader
from broker.core.shm import Pipeline
from broker.flows import segments, spool
from broker.flows.exporter import Exporter
from broker.flows.meters import METER_INPUT, METER_STORE, METER_TOOL
from broker.flows.pipeline import spool_directory
from tests.flows.feeder import Feeder, config, exports_row, make_pipeline, put_in_force, random_rows
from tests.supervisor.rings import count
from tests.waiting import until


class FakeSink:
    """Keeps what it gets."""

    def __init__(self, export: Export, row: Any, context: Any) -> None:
        self.name, self.export, self.row, self.context = export.name, export, row, context
        self.rows: list[Any] = []
        self.ticks = self.closed = 0

    def take(self, rows: Any) -> None:
        self.rows.append(rows)
        self.row["records"] += len(rows)

    def tick(self, now_ns: int) -> None:
        self.ticks += 1

    def fds(self) -> Iterable[tuple[int, int]]:
        return ()

    def close(self, within_s: float) -> None:
        self.closed += 1

    @property
    def numbers(self) -> list[int]:
        return [n for rows in self.rows for n in rows["number"].tolist()]


COLLECTOR = Export("collector", "ipfix", address="192.0.2.9", port=4739)


def make(pipeline: Pipeline, sinks: list[FakeSink] | None = None, **keys: Any) -> Exporter:
    def make_sink(export: Export, row: Any, context: Any) -> FakeSink:
        made = FakeSink(export, row, context)
        if sinks is not None:
            sinks.append(made)
        return made

    return Exporter(pipeline, make_sink=make_sink, **keys)


def spooled(directory: Path, kind: str = "flows") -> Any:
    parts = [segments.load(s)[1] for s in segments.closed(directory / "spool") if s.kind == kind]
    return np.concatenate([np.empty(0, segments.KINDS[kind]), *parts])


def test_records_of_all_lanes_go_to_every_sink_and_the_spool_and_are_released(name: str, tmp_path: Path) -> None:
    store = Store(directory=str(tmp_path / "store"))
    pipeline = make_pipeline(name, config(store, exports=(COLLECTOR, Export("b", "json"))), lanes=2)
    sinks: list[FakeSink] = []
    exporter = make(pipeline, sinks)
    lanes = [Feeder(pipeline, lane) for lane in range(2)]
    rows = [random_rows(3000, lane=lane, seed=lane) for lane in range(2)]
    for lane in range(2):
        lanes[lane].put(rows[lane])
    exporter.step()
    assert [feeder.room for feeder in lanes] == [4096, 4096]
    for lane in range(2):  # around the end of the ring
        lanes[lane].put(random_rows(3000, lane=lane, first=3000))
    exporter.close()
    for sink in sinks:
        assert sink.numbers == [*range(3000), *range(3000), *range(3000, 6000), *range(3000, 6000)]
        assert sink.closed == 1
        assert (sink.context.node, sink.context.inputs) == ("esx07", {0: "span0", 3: "span1"})
        assert sink.context.run_ns == pipeline.header[0]["created_ns"]
    assert exports_row(pipeline, "collector")["records"] == 12_000
    found = spooled(tmp_path / "store")
    assert (found[:3000] == rows[0]).all()
    assert sorted(found[["lane", "number"]].tolist()) == [(lane, n) for lane in range(2) for n in range(6000)]
    assert exports_row(pipeline)["waiting_records"] == 12_000


def test_what_leaves_is_prepared_first(name: str, tmp_path: Path) -> None:
    pipeline = make_pipeline(name, config(Store(directory=str(tmp_path / "store")), exports=(COLLECTOR,), drop=("ttl",)))

    def make_prepare(flows: Any) -> Any:
        assert flows.drop == ("ttl",)

        def prepare(rows: Any) -> Any:
            rows["ttl"] = 0
            return rows

        return prepare

    sinks: list[FakeSink] = []
    exporter = make(pipeline, sinks, make_prepare=make_prepare)
    Feeder(pipeline).put(random_rows(10))
    exporter.close()
    assert not spooled(tmp_path / "store")["ttl"].any()
    assert not sinks[0].rows[0]["ttl"].any()


def test_without_a_store_records_are_exported_all_the_same(name: str) -> None:
    sinks: list[FakeSink] = []
    pipeline = make_pipeline(name, config(None, exports=(COLLECTOR,)))
    exporter = make(pipeline, sinks)
    Feeder(pipeline).put(random_rows(10))
    exporter.close()
    assert sinks[0].numbers == list(range(10))


def test_it_does_not_sleep_while_a_small_lane_is_half_full(name: str) -> None:
    pipeline = make_pipeline(name, config(None), n_records=64)
    exporter, feeder = Exporter(pipeline), Feeder(pipeline)
    for n, much in ((31, False), (32, True), (0, False)):
        feeder.put(random_rows(n))
        assert exporter.step() is much


def test_gaps_are_counted_and_told(name: str) -> None:
    pipeline = make_pipeline(name, config(None, exports=(COLLECTOR,)))
    exporter, feeder = make(pipeline), Feeder(pipeline)
    with structlog.testing.capture_logs() as logs:
        feeder.put(random_rows(10, first=2))  # 0 and 1 have never been there
        exporter.step()
        feeder.put(random_rows(10, first=12))
        exporter.step()
        feeder.put(random_rows(10, first=25))
        exporter.step()
    told = [entry for entry in logs if entry["event"] == "records_missing"]
    assert [(entry["records"], entry["records_in_all"]) for entry in told] == [(2, 2), (3, 5)]
    assert exporter.missing == 5


class Died(BaseException):
    """Stands for kill -9: nothing catches it."""


POINTS = {
    "before the first byte": (os, "pwrite"),
    "before the release": (RecordReader, "release"),
    "before a rename": (Path, "rename"),
    "before fdatasync": (os, "fdatasync"),
    "before the directory is synced": (os, "fsync"),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("call", [1, 4])
def test_it_may_die_at_any_step_and_each_record_is_in_the_spool_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, call: int, after: bool
) -> None:
    store = Store(directory=str(tmp_path / "store"), spool_bytes=8 << 20)
    pipeline = make_pipeline(name, config(store), n_records=20_000)
    feeder = Feeder(pipeline)
    place, function = POINTS[point]
    real, calls = getattr(place, function), itertools.count(1)
    dead = threading.Event()

    def dying(*args: Any, **kwargs: Any) -> Any:
        last = next(calls) == call
        if not last or after:
            result = real(*args, **kwargs)
        if last:
            dead.set()
        if dead.is_set():
            raise Died
        return result

    first = 0
    exporter = make(pipeline)
    monkeypatch.setattr(place, function, dying)
    for _ in range(5):  # a segment a round
        feeder.put(random_rows(4200, first=first))
        first += 4200
        with contextlib.suppress(Died):
            exporter.step()
        until(lambda: all(task.done() for task, _ in exporter._spool._tasks), "the thread")  # type: ignore[union-attr]
        if dead.is_set():
            break
    assert dead.is_set(), "no such point was reached"
    monkeypatch.undo()
    assert exporter._spool is not None
    os.close(exporter._spool._lock)
    second = make(pipeline)
    feeder.put(random_rows(100, first=first))
    second.step()
    second.close()
    assert sorted(spooled(tmp_path / "store")["number"].tolist()) == list(range(first + 100))
    assert feeder.room == 20_000


def test_a_reload_changes_names_sinks_and_the_place_of_the_spool(name: str, tmp_path: Path) -> None:
    a, b = Store(directory=str(tmp_path / "a")), Store(directory=str(tmp_path / "b"))
    other = Export("other", "json", transport="file", file="x")
    pipeline = make_pipeline(name, config(a, exports=(COLLECTOR, other)))
    sinks: list[FakeSink] = []
    exporter, feeder = make(pipeline, sinks), Feeder(pipeline)
    feeder.put(random_rows(10))
    exporter.step()
    changed = Export("collector", "ipfix", address="192.0.2.10", port=4739)
    put_in_force(pipeline, config(b, exports=(changed, other)), 2)
    feeder.put(random_rows(10, first=10))
    exporter.step()
    exporter.close()
    assert [(sink.export, sink.numbers, sink.closed) for sink in sinks] == [
        (COLLECTOR, list(range(10)), 1),
        (other, list(range(20)), 1),
        (changed, list(range(10, 20)), 1),
    ]
    assert spooled(tmp_path / "a")["number"].tolist() == list(range(10))
    assert spooled(tmp_path / "b")["number"].tolist() == list(range(10, 20))


def test_a_changed_export_that_does_not_work_goes_on_as_it_was(name: str) -> None:
    pipeline = make_pipeline(name, config(None, exports=(COLLECTOR,)))
    sinks: list[FakeSink] = []

    def make_sink(export: Export, row: Any, context: Any) -> FakeSink:
        if export.port == 1:
            raise TapmeshError("no such file: key.pem")
        sinks.append(FakeSink(export, row, context))
        return sinks[-1]

    exporter, feeder = Exporter(pipeline, make_sink=make_sink), Feeder(pipeline)
    put_in_force(pipeline, config(None, exports=(Export("collector", "ipfix", port=1),)), 2)
    feeder.put(random_rows(10))
    with structlog.testing.capture_logs() as logs:
        exporter.step()
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("export_refused", "no such file: key.pem")]
    assert sinks[0].numbers == list(range(10))


@pytest.mark.parametrize("is_live", [True, False])
def test_meters_are_what_was_counted_since_the_last_ones(name: str, tmp_path: Path, is_live: bool) -> None:
    """Of files that are played only the store is metered."""
    configuration = config(Store(directory=str(tmp_path / "store"), keep_bytes=1000))
    if is_live:
        configuration = replace(configuration, inputs=tuple(replace(i, kind="afpacket", interface=i.name) for i in configuration.inputs))
    pipeline = make_pipeline(name, configuration)
    memory = pipeline.lanes[0]
    count(memory, "capture", "captured_packets", 1000, slot=3)
    exporter = make(pipeline)
    count(memory, "capture", "captured_packets", 5, slot=3)
    count(memory, "capture", "captured_bytes", 500, slot=3)
    count(memory, "capture", "dropped_oversize", 2, slot=3)
    count(memory, "send", "delivered_frames", 4, slot=0)
    row = exports_row(pipeline)
    row["records"], row["sequence_b"], row["dropped_packets"] = 7, 800, 3
    exporter.close()
    [found] = [spooled(tmp_path / "store", "meters")]
    values = {(int(m["kind"]), m["name"].decode()): m[["packets", "bytes", "dropped_packets", "capacity_bytes"]].item() for m in found}
    of_path = {
        (METER_INPUT, "span0"): (0, 0, 0, 0),
        (METER_INPUT, "span1"): (5, 500, 2, 0),
        (METER_TOOL, "ids"): (4, 0, 0, 0),
    }
    assert values == {**(of_path if is_live else {}), (METER_STORE, "store"): (7, 800, 3, 1000)}
    assert (found["for_ns"] > 0).all()


def test_a_configuration_without_flows_is_refused(name: str) -> None:
    pipeline = make_pipeline(name, config(None))
    put_in_force(pipeline, replace(config(None), flows=None))
    with pytest.raises(TapmeshError, match="no part `flows`"):
        make(pipeline)


def test_the_spool_lies_in_the_directory_of_the_store() -> None:
    assert spool_directory(Store(directory="/var/lib/tapmesh")) == Path("/var/lib/tapmesh/spool")
    assert spool.SEGMENT_BYTES % FLOW.itemsize == 0
