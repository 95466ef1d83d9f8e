"""Damaged captures: at most a second and little memory each, the packets before the damage, and what is wrong with its offset.

In CI as many as fit into 12 s of CPU time (the number is printed), 100,000 with `make endurance`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from broker.core.layout import Geometry
from tests.corpus import captures, needs_corpus
from tests.endurance import mutated_files
from tests.endurance.sizes import LONG, size
from tests.stages.capture.support import Worker, files
from tests.stages.capture.writers import Pcapng, frame

ROOT = Path(__file__).resolve().parents[2]
FILES = size("hostile_files", 100_000, 100_000)
SECONDS = 100_000 if LONG else 4  # of CPU time, of each process
SEEDS = (1, 2)


def apart(seed: int) -> Any:
    n = FILES // len(SEEDS)
    command = [sys.executable, "-m", "tests.endurance.hostile_files", *map(str, (seed, 0, n, SECONDS))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def test_damaged_captures_are_read_fast_as_far_as_they_are_right_and_say_where_they_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        found = list(pool.map(apart, SEEDS))
    for one in found:
        assert one["wrong"] == []
        assert one["grown_bytes"] < 64 << 20
    n_files, slowest = sum(one["files"] for one in found), max(one["slowest_s"] for one in found)
    with capsys.disabled():
        sys.stdout.write(f" {n_files:,} damaged captures, the slowest in {slowest} s ")
    assert n_files > 2000
    reasons = {reason for one in found for reason in one["reasons"]}
    assert len(reasons) >= 10
    assert "" in reasons, "none was read to its end"


def test_how_many_packets_lie_before_the_damage_is_known_of_many_files() -> None:
    known = [mutated_files.damaged(1, number).whole for number in range(2000)]
    assert sum(whole > 0 for whole in known) > 200


def test_a_file_of_nothing_but_headers_lets_the_worker_show_signs_of_life(tmp_path: Path) -> None:
    """Sections and interfaces are read by Python, 25 us each: a file of 14 MB of them took so long that the worker was killed, again and
    again."""
    path, n = tmp_path / "file", 20_000
    nothing = Pcapng().section().interface().bytes() * n
    path.write_bytes(nothing + Pcapng().section().interface().enhanced(frame(1)).bytes())
    for geometry in (Geometry(), Geometry(max_packets=7, data_bytes=4096)):
        worker = Worker(tmp_path, files(path), geometry=geometry).start()
        steps, begun = 0, time.process_time()
        while not worker.capture.finished:
            worker.step()
            steps += 1
        assert len(worker.records) == 1
        assert steps > 2 * n / 2048
        assert (time.process_time() - begun) / steps < 0.5


ODD = (
    ("libpcap/pcapng-invalid-vers-1.pcapng", "byte 12: pcapng version 0.1 is not known"),
    ("libpcap/shb-option-too-long.pcapng", "byte 0: a block whose two lengths differ"),
    ("suricata-verify/bug-6875-01/fuzz.pcap", "byte 228: a record of 1409179648 bytes, more than a packet can have (262,144)"),
    ("tcpdump/ipoib.pcap", "byte 20: link type 242; only Ethernet (1) is read"),
)


@needs_corpus
@pytest.mark.parametrize(("name", "message"), ODD)
def test_replay_says_what_is_wrong_with_a_capture_and_where(tmp_path: Path, name: str, message: str) -> None:
    path = next(c.path for c in captures() if c.name == name)
    command = [sys.executable, "-I", "-m", "broker.cli.main", "replay", str(path), "-w", str(tmp_path / "out.pcap")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "TAPMESH_LOG_LEVEL": "error"})
    assert done.returncode == 1
    assert f"{path}: {message}" in done.stderr
    assert "Traceback" not in done.stderr
