"""One vCPU and 512 MB are enough: at a modest rate no packet is lost. The receiving host's kernel counts what arrives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.limits import limits
from bench.small import MEMORY_BYTES, QUICK, scene, whole
from tests.bench.limited import needs_limits
from tests.netns import needs_root

pytestmark = [pytest.mark.root, needs_root, needs_limits]

RATE, SECONDS = 20_000.0, 2.0


def test_nothing_is_lost_in_one_vcpu_and_512_mb(tmp_path: Path) -> None:
    with limits(f"tapmesh-test-{os.getpid()}", MEMORY_BYTES) as held, scene("imix", tmp_path, held) as one:
        offered, loss = one.offer(RATE, SECONDS)
        assert loss == 0
        assert offered > RATE / 2
        rows = list(whole(one, "imix", QUICK, held))  # the bench itself, on the agent that is up
        assert len(rows) == 5
        assert all(row.value > 0 for row in rows)
        assert held.killed() == 0
        assert held.peak_bytes() < MEMORY_BYTES
