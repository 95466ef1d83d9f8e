"""A minute of the soak in CI, hours at length: nothing is lost that is not counted, nothing grows, and every policy takes effect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.endurance.sizes import size
from tests.netns import needs_root

pytestmark = [pytest.mark.root, needs_root]

RATE = 20_000
"""What a busy machine of two cores carries."""


def test_a_policy_every_second_under_load_loses_nothing_uncounted_and_nothing_grows() -> None:
    seconds = size("soak_seconds", 60, 24 * 3600)
    command = [sys.executable, "-m", "bench.soak", "--seconds", str(seconds), "--rate", str(RATE), "--counted"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=2 * seconds + 120, check=False)
    assert run.stdout, run.stderr
    found = json.loads(run.stdout)
    assert (run.returncode, found["wrong"]) == (0, []), found
    assert found["expected"] > 0.8 * seconds * RATE
    assert found["swaps"] > seconds / 4
