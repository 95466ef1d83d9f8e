"""Exporter and store as the supervisor has them: what they are to hand over is handed over whenever they are asked to stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.cli.run import conclude
from broker.core import log
from broker.core.flow_model import Export, Flows, Store
from broker.core.flow_ring import FlowMemory, Left, left_of, open_beats, open_exports
from broker.core.shm import Pipeline
from broker.supervisor import supervisor
from broker.supervisor.companions import ORDER, PATIENCE_NS, Companions, _Companion
from broker.supervisor.ledger import balance
from broker.supervisor.processes import Process
from broker.supervisor.session import Session
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
        if one.child is not None:
            one.child.wait()
        one.process.close()


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


def test_one_that_cannot_be_started_is_tried_again(companions: Companions, flows: Flows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/none/such")
    with capture_logs() as told:
        companions.tick(flows, 0)
        companions.tick(flows, 1)
    assert [(entry["event"], entry["status"]) for entry in told] == [("companion_died", "No such file or directory")]
    monkeypatch.undo()
    companions.tick(flows, time.monotonic_ns())
    assert len(companions.fds()) == 1


def test_one_that_is_stuck_is_told_killed_and_started_again(
    fed: Pipeline, companions: Companions, flows: Flows, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped as by a disk that does not answer. Time passes by the clock that is handed in."""
    begun = time.monotonic_ns()
    companions.tick(flows, begun)
    stuck = companions._running["export"].process
    until(lambda: open_beats(fed.directory)[0] > begun, "a heartbeat")
    stuck.send(signal.SIGSTOP)
    until(lambda: _state(stuck.pid) == "T", "it to be stopped")
    beat, patience = int(open_beats(fed.directory)[0]), PATIENCE_NS["export"]
    assert companions.troubles(flows, beat + 1, 0) == []
    with capture_logs() as told:
        companions.tick(flows, beat + patience)
        # The supervisor itself was not run meanwhile, as when all of the machine is paused: it knows nothing of heartbeats.
        companions.tick(flows, beat + 5 * patience, watching_since_ns=beat + 5 * patience)
        assert told == []
        assert companions.troubles(flows, beat + patience + 10**9, 0) == ["export of flow records has no heartbeat for 11 s"]
        companions.tick(flows, beat + patience + 10**9)
        companions.tick(flows, beat + patience + 2 * 10**9)
    assert [(entry["event"], entry.get("reason")) for entry in told][:1] == [("companion_killed", "no heartbeat for 11.0 s")]
    assert [entry["event"] for entry in told].count("companion_killed") == 1
    until(lambda: not stuck.alive(), "it to be gone")
    Feeder(fed).put(random_rows(500, first=1000))

    def is_up_again() -> bool:
        companions.tick(flows, time.monotonic_ns())
        return "export" in companions._running and companions._running["export"].process.pid != stuck.pid

    until(is_up_again, "another")
    assert companions.stop(flows, STOP_S) == []
    dropped = int(open_exports(fed.directory)["dropped_records"].sum())  # what waited in the one that was stuck
    assert dropped <= 1000
    assert len(lines.read_text().splitlines()) + dropped == 1500


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("name_of", ["export", "store"])
def test_one_that_is_still_starting_has_more_time(fed: Pipeline, companions: Companions, flows: Flows, name_of: str) -> None:
    companions._running[name_of] = _Companion(Process(os.getpid()), None, 7 * 10**9)
    assert companions._patience_ns(name_of) >= 60 * 10**9
    open_beats(fed.directory)[ORDER.index(name_of)] = 8 * 10**9
    assert companions._patience_ns(name_of) == PATIENCE_NS[name_of]
    companions._running.clear()


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
    assert "dropped" not in told[0]


def test_records_that_were_dropped_are_told_in_words_at_the_end_and_are_no_fault_of_the_run(
    fed: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = open_exports(fed.directory)
    rows["dropped_records"][rows["name"] == b"lines"], rows["dropped_packets"][rows["name"] == b"lines"] = 1234, 56_789
    snapshot = Reader(fed).take(Names())
    outcome: Any = SimpleNamespace(snapshot=snapshot, ledger=balance(snapshot), source_errors=[], problems=[])
    with capture_logs() as told:
        supervisor._report(outcome, log.get())
    words = "lines: 1,234 flow records were dropped, of 56,789 packets"
    assert (told[0]["log_level"], told[0]["dropped"]) == ("warning", [words])
    assert conclude(outcome, sys.stdout) == 0
    assert capsys.readouterr().err == f"{words}\n"


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_lost_at_the_end_is_a_problem_of_the_run_also_if_it_cannot_be_told(fed: Pipeline, damaged: bool) -> None:
    if damaged:
        FlowMemory(fed.directory, 0, fed.lanes[0].geometry.max_packets).header["magic"] = 0
    session = object.__new__(Session)
    session.pipeline, session.log, session.problems = fed, log.get(), []
    session._tell_what_is_lost()
    (problem,) = session.problems
    assert ("not a table of flows" if damaged else "0 flows that had not ended, 1,000 records that no exporter took") in problem
