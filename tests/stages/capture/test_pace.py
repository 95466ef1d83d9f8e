"""Replay at a pace. Time is what the test says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.capture import files as module
from stages.capture.errors import SourceError
from stages.capture.pace import Pace
from tests.libpcap import Record
from tests.stages.capture.support import Worker, files
from tests.stages.capture.writers import frame, pcap_header, pcap_record

START = 10**15
MS = 10**6


class _Clock:
    def __init__(self) -> None:
        self.now_ns = START

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def _file(path: Path, times_ms: list[int]) -> Path:
    records = [Record(1_700_000_000 * 10**9 + t * MS, 60, frame(n)) for n, t in enumerate(times_ms)]
    path.write_bytes(pcap_header() + b"".join(pcap_record(r) for r in records))
    return path


def _play(worker: Worker, clock: _Clock) -> list[float]:
    """Sleep until due as the runner does; when each packet was given, in ms."""
    given: list[float] = []
    while not worker.capture.finished:
        before = len(worker.records)
        if worker.step() == 0 and not worker.capture.finished:
            assert worker.capture.due_ns > clock.now_ns, "nothing to do, and nothing to wait for"
            clock.now_ns = worker.capture.due_ns
        given += [(clock.now_ns - START) / MS] * (len(worker.records) - before)
    return given


@pytest.mark.parametrize(("pace", "speed"), [("recorded", 1), ("1x", 1), ("2x", 2), ("0.5x", 0.5), ("1000x", 1000)])
def test_recorded_times_are_kept_scaled(tmp_path: Path, clock: _Clock, pace: str, speed: float) -> None:
    times = [0, 0, 10, 25, 25, 1000]
    worker = Worker(tmp_path, files(_file(tmp_path / "a.pcap", times), pace=pace)).start()
    assert _play(worker, clock) == [t / speed for t in times]


def test_a_time_that_goes_back_is_due_at_once(tmp_path: Path, clock: _Clock) -> None:
    worker = Worker(tmp_path, files(_file(tmp_path / "a.pcap", [100, 50, 130, 0, 140]), pace="recorded")).start()
    assert _play(worker, clock) == [0, 0, 30, 30, 40]


def test_each_file_begins_at_once(tmp_path: Path, clock: _Clock) -> None:
    """What was recorded a year later is not played a year later."""
    paths = _file(tmp_path / "a.pcap", [0, 10]), _file(tmp_path / "b.pcap", [10**9, 10**9 + 5])
    assert _play(Worker(tmp_path, files(*paths, pace="recorded")).start(), clock) == [0, 10, 10, 15]


@pytest.mark.parametrize(("pace", "gap_ms"), [("1000", 1), ("3", 1000 / 3), ("0.5", 2000)])
def test_packets_per_second(tmp_path: Path, clock: _Clock, pace: str, gap_ms: float) -> None:
    worker = Worker(tmp_path, files(_file(tmp_path / "a.pcap", [0] * 30), pace=pace)).start()
    assert _play(worker, clock) == pytest.approx([n * gap_ms for n in range(30)], abs=0.001)


def test_a_late_step_gives_all_that_is_due(tmp_path: Path, clock: _Clock) -> None:
    worker = Worker(tmp_path, files(_file(tmp_path / "a.pcap", [0] * 30), pace="1000")).start()
    assert worker.step() == 1
    clock.now_ns += 10 * MS
    assert worker.step() == 10


def test_max_waits_for_nothing(tmp_path: Path, clock: _Clock) -> None:
    worker = Worker(tmp_path, files(_file(tmp_path / "a.pcap", [0, 10**9]))).start()
    assert _play(worker, clock) == [0, 0]


def test_after_a_restart_the_pace_goes_on_from_the_next_packet(tmp_path: Path, clock: _Clock) -> None:
    worker = Worker(tmp_path, files(_file(tmp_path / "a.pcap", [0, 1000, 1010]), pace="recorded")).start()
    worker.step()
    worker.die()
    assert _play(worker.start(), clock) == [0, 10]
    assert len(worker.records) == 3


@pytest.mark.parametrize("pace", ["", "fast", "x", "0", "0x", "-1", "2xx", "1e3"])
def test_a_pace_that_is_none_is_refused_in_words(tmp_path: Path, pace: str) -> None:
    with pytest.raises(ValueError, match="expected max, recorded, a factor such as 2x, or packets per second"):
        Pace.parse(pace)
    with pytest.raises(SourceError, match=r"files: pace '.*': expected"):
        Worker(tmp_path, files(pace=pace)).start()
