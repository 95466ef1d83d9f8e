"""Hostile frames: whatever they say, nothing else is touched and every one is counted once."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.core.flow_model import Flows as Options
from stages.jit import PLAIN
from tests.again import run_plain
from tests.stages.delivery import small
from tests.stages.filter import mutations
from tests.stages.flows.metering import Meter

N = 600


@pytest.mark.skipif(PLAIN, reason="the plain kernels are what is run")
def test_the_same_with_plain_kernels_and_every_access_checked() -> None:
    run_plain("tests/stages/flows/test_mutated.py")


@pytest.mark.parametrize("layer", ["outer", "inner"])
def test_every_hostile_frame_is_in_one_record_or_left_out_for_a_reason(tmp_path: Path, layer: str) -> None:
    frames = mutations.block(11, 0).first(N)
    cut = [frames.data[i, : frames.lengths[i]].tobytes() for i in range(N)]
    metering = Meter(tmp_path, Options(layer=layer), sizes=(64, 8, 4096), geometry=small(max_packets=256, n_flows=1))  # type: ignore[arg-type]
    for first in range(0, N, 256):
        metering.block(cut[first : first + 256], wirelens=frames.wirelens[first : first + 256].tolist())
    rows = metering.end()
    left_out = sum(metering.count(f"unmetered_{why}") for why in ("not_ip", "cut", "sampled", "unwanted", "skipped"))
    assert metering.count("metered_packets") + left_out == N
    assert int(rows["packets"].sum()) == metering.count("metered_packets") > N // 4
    assert int(rows["bytes"].sum()) == metering.count("metered_bytes")
    assert rows["number"].tolist() == list(range(len(rows)))
    assert metering.count("dropped_records") == 0
