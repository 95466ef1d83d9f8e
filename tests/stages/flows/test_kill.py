"""A worker killed between any two stores leaves a table from which the next goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_a_worker_killed_before_any_store_tells_every_packet_once() -> None:
    command = [sys.executable, "-m", "tests.stages.flows.killed"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["places"] > 2000
