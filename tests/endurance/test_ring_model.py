"""broker/core/ring.pml, a model of the ring and of who wakes whom, checked by spin in every interleaving, with crashes anywhere.

A model that cannot fail proves nothing: each line of the ring that matters is left out once, and spin must find what that breaks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.endurance.sizes import LONG

MODEL = Path(__file__).resolve().parents[2] / "broker" / "core" / "ring.pml"
MEMORY_MB = 2000
DEADLINE_S = 7200 if LONG else 180
_ABSENT = [program for program in ("spin", "gcc") if shutil.which(program) is None]

pytestmark = pytest.mark.skipif(
    bool(_ABSENT) and os.environ.get("CI") != "true", reason=f"not installed: {', '.join(_ABSENT)} (Debian: spin, gcc, libc6-dev)"
)


@dataclass(frozen=True)
class Checked:
    errors: int
    said: str
    states: float


def check(directory: Path, optimise: str, *defines: str) -> Checked:
    """What spin finds. AssertionError if it did not get to the end: a search that was cut short has found nothing, and proves nothing."""
    progress = "PROGRESS" in defines
    subprocess.run(["spin", *(f"-D{define}" for define in defines), "-a", str(MODEL)], cwd=directory, check=True, capture_output=True)
    searched = [] if progress else ["-DSAFETY"]
    build = ["gcc", "-w", optimise, *searched, "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB}", "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=directory, check=True, capture_output=True)
    search = ["./pan", "-m1000000", *(["-a", "-f"] if progress else [])]
    said = subprocess.run(search, cwd=directory, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout
    errors, states = re.search(r"errors: (\d+)", said), re.search(r"([\d.e+]+) states, stored", said)
    assert errors, said
    assert states, said
    assert "Search not completed" not in said or int(errors[1]), said
    assert "max search depth too small" not in said, said
    return Checked(int(errors[1]), said, float(states[1]))


HOLDS = [
    ("W=2", "TOTAL=3", "CRASHES=1"),
    ("W=1", "TOTAL=3", "CRASHES=2"),
    ("W=1", "TOTAL=2", "CRASHES=0", "LEDGER"),
    ("W=1", "N=1", "TOTAL=2", "CRASHES=0", "FLOWS_BESIDE"),
    ("W=1", "TOTAL=3", "CRASHES=1", "LIMIT", "PROGRESS"),
]
AT_LENGTH = [
    ("W=2", "TOTAL=5", "CRASHES=1"),
    ("W=2", "N=3", "TOTAL=4", "CRASHES=1"),
    ("W=1", "N=3", "TOTAL=7", "CRASHES=2"),
    ("W=1", "TOTAL=5", "CRASHES=3"),
    ("W=1", "TOTAL=3", "CRASHES=1", "LEDGER"),
    ("W=1", "TOTAL=3", "CRASHES=0", "FLOWS_BESIDE"),
    ("W=1", "TOTAL=3", "CRASHES=1", "FLOWS_BESIDE"),
    ("W=2", "TOTAL=3", "CRASHES=0", "LIMIT", "PROGRESS"),
    ("W=1", "TOTAL=3", "CRASHES=1", "STALE_CORD", "LIMIT", "PROGRESS"),
]


@pytest.mark.parametrize("defines", HOLDS + (AT_LENGTH if LONG else []), ids=" ".join)
def test_the_ring_holds_in_every_interleaving(tmp_path: Path, defines: tuple[str, ...]) -> None:
    checked = check(tmp_path, "-O1", *defines)
    assert checked.errors == 0, checked.said
    assert checked.states > 20_000  # not a model in which nothing can happen
    if defines == HOLDS[0]:
        worker = checked.said.partition("unreached in proctype worker")[2].partition("unreached in")[0]
        assert "(0 of" in worker, worker  # no line of it is there for nothing


OVERSLEPT, TORN, OVERWRITTEN, MISCOUNTED = "asleep[", "torn[", "readers[", "last"
BROKEN = [
    ("BREAK_NO_FENCE_IN_PUBLISH", (), OVERSLEPT),
    ("BREAK_NO_FENCE_IN_PARK", (), OVERSLEPT),
    ("BREAK_NO_SECOND_LOOK", (), OVERSLEPT),
    ("BREAK_NO_RING_AT_START", (), OVERSLEPT),
    ("BREAK_CURSOR_BEFORE_DATA", (), TORN),
    ("BREAK_NO_WRAP_CHECK", (), OVERWRITTEN),
    ("BREAK_CURSOR_BEFORE_COUNTS", (), MISCOUNTED),
    ("BREAK_ONE_HALF", ("LEDGER",), MISCOUNTED),
    ("BREAK_LEDGER_LOOKS_ONCE", ("LEDGER",), MISCOUNTED),
    ("STALE_CORD", (), OVERSLEPT),  # not a fault of the ring: the one case that the limit of a sleep is for
]


@pytest.mark.parametrize(("broken", "also", "found"), BROKEN, ids=[name for name, *_ in BROKEN])
def test_a_ring_with_a_line_left_out_is_found(tmp_path: Path, broken: str, also: tuple[str, ...], found: str) -> None:
    checked = check(tmp_path, "-O0", "W=1", "TOTAL=3", "CRASHES=1", broken, *also)
    violated = re.search(r"assertion violated (.*)", checked.said)
    assert violated, checked.said
    assert found in violated[1]


def test_every_switch_of_the_model_is_tried() -> None:
    switches = set(re.findall(r"\bBREAK_\w+", re.sub(r"/\*.*?\*/", "", MODEL.read_text(), flags=re.DOTALL)))
    assert switches == {name for name, *_ in BROKEN if name.startswith("BREAK_")}
