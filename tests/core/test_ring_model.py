"""broker/core/ring.pml, checked by spin: every interleaving of a few blocks, with crashes anywhere; what is left out is missed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.endurance.sizes import LONG

MODEL = Path(__file__).resolve().parents[2] / "broker" / "core" / "ring.pml"
MEMORY_MB = 2000


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    missing = [name for name in ("spin", "gcc") if shutil.which(name) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: apt install {' '.join(missing)} libc6-dev)")


def check(directory: Path, definitions: str, *, progress: bool = False) -> str:
    """What the verifier says."""
    subprocess.run(["spin", "-a", *(f"-D{one}" for one in definitions.split()), MODEL], cwd=directory, check=True, capture_output=True)
    mode = ["-DNFAIR=4"] if progress else ["-DSAFETY", "-DNOFAIR"]
    subprocess.run(["gcc", "-O2", "-w", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB}", *mode, "-o", "pan", "pan.c"], cwd=directory, check=True)
    run = subprocess.run(
        ["./pan", "-m100000", *(["-a", "-f"] if progress else [])], cwd=directory, capture_output=True, text=True, check=False
    )
    assert "max search depth too small" not in run.stdout
    return run.stdout + run.stderr


def proved(said: str) -> bool:
    """No error, and all of it was looked at."""
    return bool(re.search(r"errors: 0$", said, re.MULTILINE)) and "Search not completed" not in said and "reached -DMEMLIM" not in said


BOUNDED = ("W=1", "CRASHES=0 TOTAL=3", "W=1 LEDGER=1 CRASHES=0 TOTAL=3")
AT_LENGTH = (
    "TOTAL=3",
    "CRASHES=0",
    "W=1 FLOWS_BESIDE CRASHES=0 TOTAL=3",
    "W=1 CRASHES=2 TOTAL=3",
    *(f"W=1 LEDGER={row} TOTAL=3" for row in range(3)),
)


@pytest.mark.parametrize("definitions", BOUNDED + (AT_LENGTH if LONG else ()))
def test_no_block_is_lost_torn_or_done_twice_no_count_is_wrong_and_nobody_oversleeps(tmp_path: Path, definitions: str) -> None:
    said = check(tmp_path, definitions)
    assert proved(said), said


@pytest.mark.skipif(not LONG, reason="takes minutes: `make endurance`")
def test_all_blocks_come_to_their_end(tmp_path: Path) -> None:
    said = check(tmp_path, "W=1 LIMIT PROGRESS TOTAL=2", progress=True)
    assert proved(said), said


@pytest.mark.parametrize(
    "broken",
    [
        "BREAK_NO_FENCE_IN_PUBLISH",
        "BREAK_NO_FENCE_IN_PARK",
        "BREAK_NO_SECOND_LOOK",
        "BREAK_NO_RING_AT_START",
        "BREAK_NO_WRAP_CHECK",
        "BREAK_ONE_HALF",
        "BREAK_CURSOR_BEFORE_COUNTS",
        "BREAK_CURSOR_BEFORE_DATA",
        "LEDGER=1 CRASHES=0 TOTAL=3 BREAK_LEDGER_LOOKS_ONCE",
        "STALE_CORD",  # true of the code: the one case in which only the limit of 100 ms helps
    ],
)
def test_without_one_of_its_parts_the_ring_fails(tmp_path: Path, broken: str) -> None:
    said = check(tmp_path, f"W=1 {broken}")
    assert re.search(r"errors: 1$", said, re.MULTILINE), said
    assert "assertion violated" in said
