"""A worker that is told to be one that the pipeline does not have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from broker.core import log
from broker.core.errors import EXIT_CONFIG
from broker.core.generations import write_generation
from broker.core.layout import Geometry
from broker.core.model import Config, Input
from broker.core.shm import create_pipeline
from stages.worker import run_worker


@pytest.mark.parametrize("lane", [1, -1])
def test_a_lane_that_is_not_there_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], lane: int
) -> None:
    monkeypatch.setenv("TAPMESH_SHM", str(tmp_path))
    log.configure()
    pipeline = create_pipeline(f"t{os.getpid()}", [Geometry(n_blocks=2, max_packets=4, max_frames=4, header_bytes=256, data_bytes=4096)])
    write_generation(pipeline.directory, 1, Config("t", (Input("in", "pcap", files=("none",)),), (), ()), b"x")
    pipeline.header["generation"] = 1
    assert run_worker(pipeline, lane, "filter", 0) == EXIT_CONFIG
    assert f"has lanes 0 to 0, not {lane}" in json.loads(capfd.readouterr().err)["reason"]
