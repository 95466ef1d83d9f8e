"""Doorbells between real processes: no ring is lost, also when the sleeper is killed and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.core.doorbell import PARK_LIMIT_MS, Doorbell
from broker.core.errors import PipelineError

ROUNDS = 2000
_PONG = f"""
import sys, time
from pathlib import Path
from broker.core.doorbell import Doorbell
bell = Doorbell(Path(sys.argv[1]), 0, "filter", 0)
slow = 0
for _ in range({ROUNDS}):
    before = time.monotonic()
    bell.wait(10_000)
    slow += time.monotonic() - before > {PARK_LIMIT_MS / 2000}
    bell.ring("capture", 0)
print(slow)
"""


def start(program: str, directory: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", program, str(directory)], env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_wake_each_other_never_wait_for_the_time_limit(tmp_path: Path) -> None:
    """A lost ring would show as a wait of seconds; the first one, while the other process starts, does not count."""
    mine = Doorbell(tmp_path, 0, "capture", 0)
    other = start(_PONG, tmp_path)
    for _ in range(ROUNDS):
        mine.ring("filter", 0)
        mine.wait(10_000)
    out, _ = other.communicate(timeout=60)
    mine.close()
    assert int(out) <= ROUNDS // 100


def test_a_sleeper_that_was_killed_is_woken_after_it_came_back(tmp_path: Path) -> None:
    program = _PONG.replace(f"range({ROUNDS})", "range(1)")
    mine = Doorbell(tmp_path, 0, "capture", 0)
    for _ in range(3):
        other = start(
            program.replace("bell.wait(10_000)", "print('up', flush=True); bell.wait(60_000); print('rung', flush=True)"), tmp_path
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        mine.ring("filter", 0)
        assert other.stdout.readline() == "rung\n"
        other.send_signal(signal.SIGKILL)
        other.communicate()
        mine.ring("filter", 0)  # nobody hears
    mine.close()


def test_ringing_where_nobody_is_does_not_block(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path, 0, "capture", 0)
    for _ in range(10_000):
        bell.ring("filter", 0)
    bell.close()


def test_a_descriptor_wakes_too(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path, 0, "capture", 0)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    before = time.monotonic()
    bell.wait(30_000, reader)
    assert time.monotonic() - before < 15
    bell.close()


def test_a_signal_ends_the_sleep(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; from pathlib import Path; from broker.core.doorbell import Doorbell\n"
        "bell = Doorbell(Path(sys.argv[1]), 0, 'filter', 0); bell.wake_on_signals()\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "print('up', flush=True); before = time.monotonic(); bell.wait(60_000); print(time.monotonic() - before)\n"
    )
    other = start(program, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "up\n"
    other.send_signal(signal.SIGTERM)
    slept_s, _ = other.communicate(timeout=30)
    assert float(slept_s) < 15


def test_a_path_too_long_for_a_socket_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="longer than 107 characters"):
        Doorbell(tmp_path / ("x" * 100), 0, "capture", 0)
