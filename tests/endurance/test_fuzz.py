"""Each fuzzing target over its seeds and some thousand changes, always the same, so that targets never rot. `make fuzz` goes on."""

from __future__ import annotations

import random

import pytest

from tests import libpcap
from tests.endurance import fuzz
from tests.endurance.fuzz_targets import TARGETS, Target
from tests.endurance.sizes import size

N = {
    "files": 600,
    "language": 120,
    "records": 3000,
    "packet": 2000,
    "configuration": 200,
    "messages": 1500,
    "pipeline": 500,
    "segment": 1000,
}


@libpcap.needs_libpcap
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_among_seeds_and_their_changes(name: str) -> None:
    n = size(f"fuzz_{name}", N[name], 50 * N[name])
    assert fuzz.plain(TARGETS[name], 1, n) == n + len(list(TARGETS[name].seeds()))


def test_what_is_found_is_told_with_its_bytes() -> None:
    def run(data: bytes) -> None:
        if b"\xff" in data:
            raise ValueError("found")

    with pytest.raises(ValueError, match="found") as caught:
        fuzz.plain(Target(lambda: [b"abcdefgh"], run), 1, 100_000)
    assert caught.value.__notes__[0].startswith("input: b'")


def test_changes_are_many_and_the_same_each_time() -> None:
    seeds = [b"one seed of some bytes", b"another"]
    once, again = ([fuzz.changed(chosen, seeds) for _ in range(500)] for chosen in (random.Random(5), random.Random(5)))
    assert once == again
    assert len(set(once)) > 450
