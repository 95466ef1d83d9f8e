"""Test files once more, in another mode of the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_again(*files: str | Path, timeout_s: float | None = None, **environment: str) -> None:
    """Fails with what they said unless they pass, and some were run. What is not for that mode skips itself, in CI too."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "CI": "", **environment}, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def run_plain(*files: str | Path) -> None:
    """As plain Python, every access of memory checked."""
    run_again(*files, NUMBA_DISABLE_JIT="1")
