"""A million hostile frames: nobody crashes, nobody reads a byte outside of them, index and memo change nothing; many against the twin.

Each frame has a page to itself, with forbidden pages before and behind, and is judged at the end and at the beginning of its page by
what is compiled: a kernel that looks one byte too far ends the process (the first test shows it). In CI the slow twin judges TWIN_FRAMES
for each of TWIN_SEEDS, at almost 1 ms each; the whole million is for `-m corpus` (10 minutes on two cores).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FRAMES = 1_000_000
TWIN_FRAMES, TWIN_SEEDS = 12_000, (1, 2)


def hostile(*arguments: object) -> Any:
    command = [sys.executable, "-m", "tests.stages.filter.hostile", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def test_who_reads_one_byte_too_far_dies() -> None:
    ends = hostile("lie")
    assert {end for size, end in ends.items() if size.endswith("+0")} == {0}
    died = {size for size, end in ends.items() if end == signal.SIGSEGV}
    assert died == {f"{size}+1" for size in (13, 23, 33, 37, 47)}  # the last byte of ethertype, protocol, address, port, TCP flags


def test_a_million_hostile_frames_get_the_same_by_index_and_memo_and_rule_by_rule() -> None:
    found = hostile("paths", FRAMES)
    assert found["differences"] == []
    assert found["counters agree"]
    assert found["verdicts"] > 1000
    assert found["never decided"] == []
    assert min(found["fragments"].values()) > FRAMES // 1000
    assert found["runs"][0] < 0.9 * FRAMES == 0.9 * found["runs"][1]


def against_twin(n_frames: int) -> None:
    with ThreadPoolExecutor(len(TWIN_SEEDS)) as pool:
        for found in pool.map(lambda seed: hostile("twin", n_frames, seed), TWIN_SEEDS):
            assert found["differences"] == []
            assert found["judged"] > 0.99 * n_frames


def test_hostile_frames_get_what_the_twin_says() -> None:
    against_twin(TWIN_FRAMES)


@pytest.mark.corpus
def test_a_million_hostile_frames_get_what_the_twin_says() -> None:
    against_twin(FRAMES // len(TWIN_SEEDS))
