"""Both processes as they are started, and killed: each record is in the store once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core.flow_model import Store
from broker.core.shm import Pipeline
from broker.flows import segments
from broker.flows.store.parquet import files
from tests.flows.feeder import Feeder, config, exports_row, make_pipeline, random_rows
from tests.waiting import until

duckdb = pytest.importorskip("duckdb")


class Process:
    """``python -I -m broker.flows WHAT``."""

    def __init__(self, what: str, pipeline: str, log: Path) -> None:
        self.log, self._what = log, what
        self._starts = self.starts if log.exists() else 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-m", "broker.flows", what, "--pipeline", pipeline], stdout=file, stderr=file, env={**os.environ}
            )

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def starts(self) -> int:
        return sum(entry["event"] in ("exporter_started", "store_started") for entry in self.events)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        until(lambda: self.starts > self._starts, f"{self._what} to be started")
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.kill()


def start(processes: list[Process], what: str, pipeline: Pipeline, directory: Path) -> Process:
    processes.append(Process(what, pipeline.name, directory / f"{what}.log"))
    return processes[-1]


def numbers(directory: Path) -> list[tuple[int, int]]:
    names = ", ".join(f"'{path}'" for path in files(directory, 0, 1 << 62))
    return duckdb.connect().execute(f"SELECT lane, number FROM read_parquet([{names}]) ORDER BY ALL").fetchall() if names else []


def test_killed_again_and_again_each_record_is_in_the_store_once(name: str, tmp_path: Path, processes: list[Process]) -> None:
    """The exporter takes, the store stores, the test feeds; one of the two is killed as soon as a random part has been done."""
    rng = np.random.default_rng(7)
    directory = tmp_path / "store"
    pipeline = make_pipeline(name, config(Store(directory=str(directory), flush_s=1, spool_bytes=64 << 20)), lanes=2, n_records=30_000)
    feeders, row = [Feeder(pipeline, lane) for lane in range(2)], exports_row(pipeline)
    running = {what: start(processes, what, pipeline, tmp_path) for what in ("export", "store")}
    fed = [0, 0]
    for n in range(4):
        what = ("export", "store")[n % 2]
        for lane, feeder in enumerate(feeders):
            n_rows = min(feeder.room, int(rng.integers(5_000, 20_000)))
            feeder.put(random_rows(n_rows, lane=lane, first=fed[lane], seed=n))
            fed[lane] += n_rows
        if what == "export":
            wanted = int(rng.integers(1, 20_000))
            until(lambda: any(f.room >= f.memory.sizes.n_records - wanted for f in feeders), "the exporter")  # noqa: B023
        else:
            before = int(row["messages"]) + int(rng.integers(1, 3))
            until(lambda: row["messages"] >= before or not segments.closed(directory / "spool"), "the store")  # noqa: B023
        running[what].kill()
        running[what] = start(processes, what, pipeline, tmp_path)
    until(lambda: not any(f.memory.sizes.n_records - f.room for f in feeders), "all to be taken")
    assert running["export"].stop() == 0
    assert running["store"].stop() == 0
    assert running["export"].events[-1] == running["export"].events[-1] | {"event": "exporter_stopped", "missing_records": 0}
    assert running["store"].events[-1] == running["store"].events[-1] | {"event": "store_stopped", "waiting_segments": 0}
    assert numbers(directory) == [(lane, number) for lane in range(2) for number in range(fed[lane])]
    assert row["dropped_records"] == 0
    assert {entry["event"] for entry in running["export"].events} == {"exporter_started", "exporter_stopped"}


def test_what_waits_while_no_store_runs_is_stored_later(name: str, tmp_path: Path, processes: list[Process]) -> None:
    directory = tmp_path / "store"
    pipeline = make_pipeline(name, config(Store(directory=str(directory), flush_s=1)))
    exporter, feeder = start(processes, "export", pipeline, tmp_path), Feeder(pipeline)
    feeder.put(random_rows(10_000))
    until(lambda: exports_row(pipeline)["waiting_records"] == 10_000, "all to wait")
    assert exporter.stop() == 0
    store = start(processes, "store", pipeline, tmp_path)
    until(lambda: exports_row(pipeline)["records"] == 10_000, "all to be stored")
    assert store.stop() == 0
    row = exports_row(pipeline)
    assert (row["connected"], row["sequence_b"]) == (
        1,
        sum(path.stat().st_size for t in ("flows", "meters") for path in files(directory, 0, 1 << 62, t)),
    )
    assert numbers(directory) == [(0, number) for number in range(10_000)]


@pytest.mark.parametrize("what", ["export", "store"])
def test_what_cannot_work_says_why_and_is_not_to_be_started_again(name: str, tmp_path: Path, processes: list[Process], what: str) -> None:
    (tmp_path / "file").write_text("")
    pipeline = make_pipeline(name, config(Store(directory=str(tmp_path / "file"))))
    one = start(processes, what, pipeline, tmp_path)
    assert one.process.wait(60) == 78
    assert [(entry["event"], entry["process"]) for entry in one.events] == [("start_refused", what)]
    assert str(tmp_path / "file") in one.events[0]["reason"]


def test_no_pipeline_is_no_reason_to_try_again(tmp_path: Path, shm: Path, processes: list[Process]) -> None:
    processes.append(Process("export", "none-such", tmp_path / "log"))
    assert processes[0].process.wait(60) == 78
    assert "none-such" in processes[0].events[0]["reason"]


def test_an_idle_exporter_costs_nothing_to_speak_of(name: str, tmp_path: Path, processes: list[Process]) -> None:
    """Less than one second of CPU in a hundred, by the kernel's own account."""
    pipeline = make_pipeline(name, config(Store(directory=str(tmp_path / "store"))), lanes=4)
    one = start(processes, "export", pipeline, tmp_path)
    until(lambda: one.events, "a start")

    def spent_ns() -> int:
        return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{one.process.pid}/task").glob("*/schedstat"))

    before, begun_ns = spent_ns(), time.monotonic_ns()
    until(lambda: time.monotonic_ns() - begun_ns >= 10**9, "a second")
    assert (spent_ns() - before) / (time.monotonic_ns() - begun_ns) < 0.01
    assert one.stop() == 0
