"""Exporter and store as the supervisor has them: what they are to hand over is handed over whenever they are asked to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.core import log
from broker.core.flow_model import Export, Flows, Store
from broker.core.flow_ring import Left, left_of, open_exports
from broker.core.shm import Pipeline
from broker.supervisor import supervisor
from broker.supervisor.companions import Companions
from broker.supervisor.ledger import balance
from broker.supervisor.snapshot import Names, Reader
from tests.flows.feeder import Feeder, config, make_pipeline, random_rows
from tests.waiting import until

STOP_S = 30.0


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return tmp_path / "lines.json"


@pytest.fixture
def flows(lines: Path) -> Flows:
    return Flows(exports=(Export("lines", "json", "file", file=str(lines)),))


@pytest.fixture
def fed(name: str, flows: Flows) -> Pipeline:
    """1,000 records that nobody has taken."""
    pipeline = make_pipeline(name, config(None, exports=flows.exports))
    Feeder(pipeline).put(random_rows(1000))
    return pipeline


@pytest.fixture
def companions(fed: Pipeline) -> Iterator[Companions]:
    made = Companions(fed.name, log.get())
    yield made
    for one in made._running.values():
        one.process.send(signal.SIGKILL)


def test_asked_to_stop_while_it_is_starting_it_hands_over_all_the_same(
    fed: Pipeline, companions: Companions, flows: Flows, lines: Path
) -> None:
    companions.tick(flows, time.monotonic_ns())
    assert companions.stop(flows, STOP_S) == []
    assert len(lines.read_text().splitlines()) == 1000
    assert left_of(fed) == Left()


def test_one_that_has_died_before_the_end_is_started_once_more(fed: Pipeline, companions: Companions, flows: Flows, lines: Path) -> None:
    left = left_of(fed)
    assert (left.flows, left.records) == (0, 1000)
    assert left.packets >= 1000
    companions.tick(flows, time.monotonic_ns())
    (one,) = companions._running.values()
    os.kill(one.process.pid, signal.SIGKILL)
    until(lambda: not one.process.alive(), "it to be gone")
    companions.tick(flows, 0)  # long before it may be started again
    assert companions.fds() == []
    assert companions.stop(flows, STOP_S) == []
    assert len(lines.read_text().splitlines()) == 1000


def test_a_store_that_is_wanted_no_more_is_no_misfortune(fed: Pipeline, companions: Companions, flows: Flows, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    stored = Flows(store=Store(directory=str(tmp_path / "store")))
    with capture_logs() as told:
        companions.tick(stored, time.monotonic_ns())

        def gone() -> bool:
            companions.tick(flows, 0)
            return list(companions._running) == ["export"]

        until(gone, "the store to be stopped")
    events: list[tuple[str, Any]] = [(entry["event"], entry["process"]) for entry in told]
    assert events == [("companion_started", "export"), ("companion_started", "store"), ("companion_stopped", "store")]
    companions.stop(flows, STOP_S)


def test_the_last_line_of_a_run_says_what_became_of_the_records(fed: Pipeline) -> None:
    rows = open_exports(fed.directory)
    rows["records"][rows["name"] == b"lines"], rows["dropped_packets"][rows["name"] == b"lines"] = 7, 5
    snapshot = Reader(fed).take(Names())
    with capture_logs() as told:
        supervisor._report(SimpleNamespace(snapshot=snapshot, ledger=balance(snapshot)), log.get())  # type: ignore[arg-type]
    said = told[0]["exports"]
    assert list(said) == ["lines", "store"]
    assert said["lines"] == {"records": 7, "dropped_records": 0, "dropped_packets": 5, "dropped_bytes": 0, "waiting_records": 0}
