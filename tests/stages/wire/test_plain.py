"""Parsing and following, run as plain Python with every access checked, stay within the packet and say what they say when compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.stages.wire import plain

ROOT = Path(__file__).resolve().parents[3]


def test_plain_kernels_stay_within_the_packet_and_agree_with_the_compiled_ones() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.wire.plain"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found == [list(plain.found_by(seed)) for seed in range(len(found))]
    for _, counts in found:
        assert len(counts) == 8, "each was counted"
