"""The kernels, run as plain Python with every access checked, read no byte outside of the packet and say what they say when compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.stages.filter import plain

ROOT = Path(__file__).resolve().parents[3]


def test_plain_kernels_stay_within_the_packet_and_agree_with_the_compiled_ones() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "tests.stages.filter.plain"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for undetermined, found in json.loads(done.stdout).items():
        compiled = plain.found_by(undetermined)
        assert found == [[list(answer) for answer in answers] for answers in compiled]
