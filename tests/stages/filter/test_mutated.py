"""A million hostile frames: nobody crashes, nobody reads a byte outside of them, index and memo change nothing, the twin says the same.

Each frame has a page to itself, with forbidden pages before and behind, and is judged at the end and at the beginning of its page by
what is compiled: a kernel that looks one byte too far ends the process (the first test shows it). The twin of the million is the one that
answers many frames at once and knows no tunnels; what is in those the slow one is asked about, 24,000 frames here, the million with
`-m corpus` (5 minutes).
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

from tests.endurance.sizes import size

ROOT = Path(__file__).resolve().parents[3]
FRAMES, TUNNEL_FRAMES = size("judged_frames", 252_000, 1_008_000), 24_000  # in whole blocks for each process
SEEDS = (0, 1, 2)  # a process for each, and as many ways to give modes to maps


def hostile(*arguments: object) -> Any:
    command = [sys.executable, "-m", "tests.stages.filter.hostile", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def shared(what: str, n_frames: int) -> list[Any]:
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        return list(pool.map(lambda seed: hostile(what, n_frames // len(SEEDS), seed), SEEDS))


def test_who_reads_one_byte_too_far_dies() -> None:
    ends = hostile("lie")
    assert {end for size, end in ends.items() if size.endswith("+0")} == {0}
    died = {size for size, end in ends.items() if end == signal.SIGSEGV}
    assert died == {f"{size}+1" for size in (13, 23, 33, 37, 47)}  # the last byte of ethertype, protocol, address, port, TCP flags


def test_hostile_frames_get_what_their_rules_say_one_by_one_and_what_the_twin_says() -> None:
    for found in shared("judged", FRAMES):
        assert found["differences"] == []
        assert found["counters agree"]
        assert found["contradictions"] == []
        assert found["promised"] > 0.99 * FRAMES / len(SEEDS)
        assert found["never decided"] == []
        assert found["verdicts"] > 1000
        assert min(found["fragments"].values()) > FRAMES / len(SEEDS) / 1000
        assert found["runs"][0] < 0.9 * found["runs"][1] == 0.9 * FRAMES / len(SEEDS)


def agree(n_frames: int) -> None:
    for found in shared("tunnels", n_frames):
        assert found["contradictions"] == []
        assert found["promised"] > 0.99 * n_frames / len(SEEDS)
        assert found["twins"] == []


def test_what_hostile_frames_carry_in_tunnels_is_what_the_slow_twin_says_and_it_agrees_with_the_other() -> None:
    agree(TUNNEL_FRAMES)


@pytest.mark.corpus
def test_what_a_million_hostile_frames_carry_in_tunnels_is_what_the_slow_twin_says() -> None:
    agree(FRAMES)
