"""One stage alone, as a process: who reads it, and what it does while there is nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.core.generations import write_generation
from broker.core.model import Config, Input
from tests.packets import pcap
from tests.waiting import DEADLINE_S, until

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def make(file: Path | str, pace: str = "max", **pipes: Any) -> subprocess.Popen[bytes]:
        write_generation(tmp_path, 1, Config("t", (Input("in", "pcap", files=(str(file),), pace=pace),), (), ()), b"")
        command = [sys.executable, "-m", "stages", "only", "capture", "--directory", str(tmp_path), "--dump", "-"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, **pipes)

    return make


def test_a_reader_that_has_seen_enough_is_no_traceback(tmp_path: Path, start: Start) -> None:
    (tmp_path / "in.pcap").write_bytes(pcap([bytes(1000)] * 2000))
    process = start(tmp_path / "in.pcap", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b'"seq": 0' in process.stdout.readline()
    process.stdout.close()
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert b"Traceback" not in errors
    assert b"Exception" not in errors
    assert process.returncode == 1


def test_a_reader_that_has_gone_before_a_short_dump_is_no_traceback(tmp_path: Path, start: Start) -> None:
    (tmp_path / "in.pcap").write_bytes(pcap([bytes(60)] * 3))
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = start(tmp_path / "in.pcap", stdout=writing, env=buffered)
    os.close(writing)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert b"Exception" not in errors
    assert process.returncode == 1


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)


def test_it_sleeps_while_its_pipe_has_nothing(start: Start) -> None:
    process = start("-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pcap([bytes(1000)] * 10))
        process.stdin.flush()
        assert b'"seq": 0' in process.stdout.readline()
        used, since = _cpu_s(process.pid), time.monotonic()
        until(lambda: time.monotonic() - since > 1.0, "a second")
        assert _cpu_s(process.pid) - used < 0.2
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
