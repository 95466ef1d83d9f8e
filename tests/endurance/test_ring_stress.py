"""Real rings, real processes, checksums over everything, kill -9 at any moment: no block is lost, torn or counted twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.endurance import ring_stress
from tests.endurance.sizes import size
from tests.pipelines import name, shm

__all__ = ("name", "shm")

N_BLOCKS = size("ring_blocks", 400, 500_000)
KILL_EVERY = size("ring_kill_every", 40, 75)
ROOT = Path(__file__).parents[2]
DEADLINE_S = 100 + N_BLOCKS / 20
# Nothing of the ring may be 32 bits wide, or pass through a float on its way.
BEGINNINGS = {"0": 0, "2**31": 2**31, "2**32": 2**32, "2**53": 2**53}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_blocks_with_checksums_survive_kills_at_any_moment(name: str, tmp_path: Path, beginning: str) -> None:
    first = max(0, BEGINNINGS[beginning] - N_BLOCKS // 2 // ring_stress.GEOMETRY.n_blocks * ring_stress.GEOMETRY.n_blocks)
    n_kills = max(1, N_BLOCKS // KILL_EVERY)
    log = tmp_path / "sent"
    command = [sys.executable, "-m", "tests.endurance.ring_stress", name, str(first), str(N_BLOCKS), str(n_kills), "7", str(log)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert set(said["statuses"]) == {0}, done.stderr[-4000:]
    assert n_kills // 2 <= sum(said["killed"].values()) <= n_kills  # a fast machine is done before the last
    sent = [int(line) for line in log.read_text().splitlines()]
    assert sent == sorted(sent)
    assert sorted(set(sent)) == list(range(first, first + N_BLOCKS))
    assert len(sent) - N_BLOCKS <= said["killed"].get("send", 0)
    whole = sum(1 + seq % ring_stress.GEOMETRY.max_packets for seq in range(first, first + N_BLOCKS))
    assert said["counted"] == dict.fromkeys(ring_stress.COUNTED, whole)


def test_a_capture_that_does_not_wait_for_a_free_slot_is_found(name: str, tmp_path: Path) -> None:
    """A stress that finds nothing in a ring that is broken finds nothing at all."""
    program = (
        "from broker.core.ring import Ring\n"
        "from tests.endurance import ring_stress\n"
        "ready = Ring.ready\n"
        "Ring.ready = lambda ring: ring.kind == 'capture' or ready(ring)\n"
        f"ring_stress.main({name!r}, 0, 400, 1, 7, {str(tmp_path / 'sent')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert "DamagedError" in done.stderr or "AssertionError" in done.stderr, done.stderr
