"""The loop, the bells and the commit, with real processes whose stages are a few lines of Python: what holds whatever a stage does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.core import layout
from broker.core.doorbell import Doorbell
from broker.core.generations import write_generation
from broker.core.layout import Geometry
from broker.core.metrics import index
from broker.core.model import Config, Lane
from broker.core.ring import read_counters
from broker.core.runner import Runner
from broker.core.shm import Pipeline, create_pipeline
from stages import atomics
from tests.waiting import DEADLINE_S, until

WORKER = Path(__file__).with_name("fake_worker.py")
PACKETS = 3
COUNTS = (
    ("capture", index("capture", "captured_packets")),
    ("filter", index("filter", "judged_packets")),
    ("encapsulate", index("encapsulate", "framed_frames")),
    ("send", index("send", "delivered_frames")),
)


class Processes:
    def __init__(self, pipeline: Pipeline, total: int, log_path: Path) -> None:
        self.pipeline, self.total, self.log_path = pipeline, total, log_path
        self.lane = pipeline.lanes[0]
        self.running: dict[tuple[str, int], subprocess.Popen[str]] = {}

    def start(self, kind: str, worker: int = 0) -> None:
        command = [sys.executable, str(WORKER), self.pipeline.name, kind, str(worker), str(self.total), str(self.log_path)]
        environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2])}
        self.running[kind, worker] = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def start_all(self) -> None:
        for kind, worker in reversed(self.lane.geometry.workers):
            self.start(kind, worker)

    def kill(self, kind: str, worker: int, number: int = signal.SIGKILL) -> int:
        process = self.running.pop((kind, worker))
        process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert "Traceback" not in errors, errors
        return process.returncode

    def cursors(self, kind: str) -> list[int]:
        return [int(row["cursor"]) for (k, _), row in zip(self.lane.geometry.workers, self.lane.workers, strict=True) if k == kind]

    def all_done(self) -> bool:
        return all(cursor >= self.total for kind in layout.PATH for cursor in self.cursors(kind))


@pytest.fixture
def start(name: str, geometry: Geometry, tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    made: list[Processes] = []

    def make(total: int, **counts: int) -> Processes:
        pipeline = create_pipeline(name, [replace(geometry, **counts)])
        write_generation(pipeline.directory, 1, Config("t", (), (), ()), b"x")
        write_generation(pipeline.directory, 2, Config("t", (), (), ()), b"y")
        pipeline.header["generation"] = 1
        made.append(Processes(pipeline, total, tmp_path / "sent"))
        return made[-1]

    yield make
    for processes in made:
        for process in processes.running.values():
            process.kill()
            process.communicate()


def sent(processes: Processes) -> list[tuple[int, int]]:
    return [(int(seq), int(generation)) for seq, generation in (line.split() for line in processes.log_path.read_text().splitlines())]


def totals(processes: Processes, kind: str, at: int) -> int:
    rows = processes.lane.geometry.workers
    return sum(int(read_counters(processes.lane, i)[1][at]) for i, (k, _) in enumerate(rows) if k == kind)


def test_what_the_source_made_arrives_in_order_and_is_counted_once(start: Callable[..., Processes]) -> None:
    processes = start(500, n_filter=2, n_encapsulate=2)
    processes.start_all()
    until(processes.all_done, "all blocks sent")
    assert [seq for seq, _ in sent(processes)] == list(range(500))
    for kind, at in COUNTS:
        assert totals(processes, kind, at) == 500 * PACKETS
    until(lambda: int(processes.lane.workers[0]["state"]) == layout.STATE_FINISHED, "the source says that it has finished")
    for kind, worker in processes.lane.geometry.workers:
        assert processes.kill(kind, worker, signal.SIGTERM) == 0
    assert {int(row["state"]) for row in processes.lane.workers} == {layout.STATE_STOPPED}


def test_workers_killed_anywhere_lose_and_repeat_nothing_but_one_block_of_send(start: Callable[..., Processes]) -> None:
    total, kills = 4000, 12
    processes = start(total, n_filter=2)
    processes.start_all()
    chooser = random.Random(7)
    killed_send = 0
    for i in range(kills):
        here = total * (i + 1) // (kills + 2)
        until(lambda here=here: min(processes.cursors("send")) >= here, f"block {here}")
        kind, worker = chooser.choice(processes.lane.geometry.workers)
        killed_send += kind == "send"
        processes.kill(kind, worker)
        processes.start(kind, worker)
    until(processes.all_done, "all blocks sent")
    for kind, at in COUNTS:
        assert totals(processes, kind, at) == total * PACKETS, kind
    order = [seq for seq, _ in sent(processes)]
    assert sorted(set(order)) == list(range(total))
    assert order == sorted(order)
    assert len(order) - total <= killed_send


def test_a_stop_upstream_first_delivers_everything_captured(start: Callable[..., Processes]) -> None:
    processes = start(1_000_000)
    processes.start_all()
    until(lambda: min(processes.cursors("send")) > 50, "it runs")
    for kind, worker in processes.lane.geometry.workers:
        assert processes.kill(kind, worker, signal.SIGTERM) == 0
    (captured,) = processes.cursors("capture")
    assert captured < 1_000_000
    assert [seq for seq, _ in sent(processes)] == list(range(captured))


def test_one_stage_can_be_stopped_and_started_while_the_others_run(start: Callable[..., Processes]) -> None:
    processes = start(3000)
    processes.start_all()
    until(lambda: min(processes.cursors("send")) > 50, "it runs")
    assert processes.kill("filter", 0, signal.SIGTERM) == 0
    processes.start("filter")
    until(processes.all_done, "all blocks sent")
    assert [seq for seq, _ in sent(processes)] == list(range(3000))


def test_a_generation_changes_once_between_two_blocks(start: Callable[..., Processes]) -> None:
    processes = start(3000, n_filter=2, n_encapsulate=2)
    processes.start_all()
    until(lambda: min(processes.cursors("send")) > 300, "it runs")
    processes.pipeline.header["generation"] = 2
    until(processes.all_done, "all blocks sent")
    generations = [generation for _, generation in sent(processes)]
    assert generations == sorted(generations)
    assert set(generations) == {1, 2}


def test_a_worker_that_is_started_again_does_not_run_ahead_of_the_blocks_still_upstream(start: Callable[..., Processes]) -> None:
    """Send would close the files of generation 1 for those of 2, and begin them anew when the blocks of 1 come."""
    processes = start(3000)
    processes.start_all()
    row = processes.lane.workers[-1]
    until(lambda: min(processes.cursors("send")) > 50, "it runs")
    processes.kill("encapsulate", 0)
    (stands_at,) = processes.cursors("encapsulate")
    until(lambda: min(processes.cursors("send")) == stands_at, "send has nothing to do")
    processes.pipeline.header["generation"] = 2
    processes.kill("send", 0)
    processes.start("send")
    until(lambda: int(row["pid"]) == processes.running["send", 0].pid and int(row["state"]) == layout.STATE_RUNNING, "send is back")
    assert int(row["generation"]) == 1
    processes.start("encapsulate")
    until(processes.all_done, "all blocks sent")
    generations = [generation for _, generation in sent(processes)]
    assert generations == sorted(generations)


def test_a_second_worker_of_the_same_name_is_refused(start: Callable[..., Processes]) -> None:
    processes = start(10)
    processes.start("filter")
    until(lambda: int(processes.lane.workers[1]["state"]) == layout.STATE_RUNNING, "the first runs")
    first = processes.running["filter", 0]
    for path in processes.pipeline.directory.iterdir():  # what holds a worker's place is not a file that somebody may remove
        if path.suffix == ".lock":
            path.unlink()
    processes.start("filter")
    second = processes.running["filter", 0]
    _, errors = second.communicate(timeout=DEADLINE_S)
    assert "filter worker 0 of lane 0 is running already" in errors
    assert first.poll() is None
    processes.running["filter", 0] = first


def test_an_idle_pipeline_sleeps(start: Callable[..., Processes]) -> None:
    """Nobody spins: with nothing to do a worker wakes some ten times a second for its heartbeat."""
    processes = start(0)
    processes.start_all()
    parks = index("", "parks")
    live = processes.lane.live
    until(lambda: all(int(row[parks]) > 0 for row in live), "everybody sleeps")
    before, since = live[:, parks].copy(), time.monotonic()
    until(lambda: time.monotonic() - since > 1.0, "a second")
    assert (live[:, parks] - before).max() <= 25


@pytest.mark.parametrize(("kind", "rung"), [("capture", [("filter", 0), ("filter", 1)]), ("send", [("capture", 0)])])
def test_a_worker_that_starts_wakes_all_its_neighbours(start: Callable[..., Processes], kind: str, rung: list[tuple[str, int]]) -> None:
    """The one before it may have died after the cursor and before the bell: without a limit they would sleep for ever."""
    processes = start(0, n_filter=2)
    bells = [Doorbell(processes.pipeline.directory, 0, *neighbour) for neighbour in rung]
    processes.start(kind)
    for bell in bells:
        since = time.monotonic()
        bell.wait(int(DEADLINE_S * 1000))
        assert time.monotonic() - since < DEADLINE_S / 2
        bell.close()


class Named:
    """As much of a stage as a runner looks at before it runs."""

    def __init__(self, kind: str) -> None:
        self.KIND = kind


@pytest.mark.parametrize(("follows", "waits_for_it"), [(0, 0.5), (1, 0.25)])
def test_how_full_the_ring_is_depends_on_who_asks(name: str, geometry: Geometry, follows: int, waits_for_it: float) -> None:
    """What send has not done is nothing that a reader beside the path could skip; and what waits for that reader nothing to shed."""
    pipeline = create_pipeline(name, [replace(geometry, n_blocks=8, n_filter=2, n_flows=1, flows_follow_filter=follows)])
    lane = pipeline.lanes[0]
    for (kind, _), row in zip(lane.geometry.workers, lane.workers, strict=True):
        row["cursor"] = {"capture": 8, "filter": 6, "encapsulate": 3, "send": 1, "flows": 4}[kind]
    asked = {kind: Runner(pipeline, Lane(0, ()), Named(kind), 0, atomics)._context() for kind in ("encapsulate", "flows")}  # type: ignore[arg-type]
    assert {kind: context.ring_fill() for kind, context in asked.items()} == {"encapsulate": 7 / 8, "flows": waits_for_it}
    lane.workers["cursor"][lane.geometry.row("send", 0)] = 8
    assert {kind: context.ring_fill() for kind, context in asked.items()} == {"encapsulate": 0, "flows": waits_for_it}
