"""Shared memory that others fill while tapmesh runs: a reload without room changes nothing, leaves nothing, and the next one works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from broker.config.lanes import SEGMENT_FRAMES
from broker.core.errors import TapmeshError
from broker.core.layout import Geometry
from broker.core.model import Config, Input, Map, Rule, Tool, Tunnel
from broker.core.shm import Pipeline, create_pipeline
from broker.supervisor import numbers
from broker.supervisor.generation import InForce
from tests.endurance.conftest import filled

pytestmark = pytest.mark.root

GEOMETRY = Geometry(n_blocks=4, max_packets=16, max_frames=SEGMENT_FRAMES, header_bytes=2048, data_bytes=4096)
TOOL = Tool("ids", 0, tunnel=Tunnel("gre", "192.0.2.9", sequence=True))


@pytest.fixture
def pipeline(disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Pipeline, Path]:
    """On a small disk of its own."""
    place = disk(64 << 20)
    monkeypatch.setenv("TAPMESH_SHM", str(place))
    return create_pipeline("full", [GEOMETRY]), place


def config(expression: str, n_rules: int = 500) -> Config:
    return Config("n", (Input("in", "pcap", 0),), (TOOL,), (Map("m", (Rule("pass", expression),) * n_rules, ()),))


def listed(pipeline: Pipeline) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in pipeline.directory.iterdir())


@pytest.mark.parametrize("free_bytes", [0, 4096, 8192, 40_960, 61_440, 1_060_864])
def test_a_reload_that_finds_no_room_changes_nothing_and_the_next_one_works(pipeline: tuple[Pipeline, Path], free_bytes: int) -> None:
    """Whichever of its files it is that finds none."""
    memory, place = pipeline
    force = InForce(memory, lambda _: bytes(1 << 20), structlog.get_logger())
    force.put(force.prepare(config("tcp")))
    before = listed(memory)
    ready = force.prepare(config("udp"))
    with filled(place, free_bytes=free_bytes):
        with pytest.raises(TapmeshError, match=r"No space left on device|cannot reserve"):
            force.put(ready)
        assert (force.number, force.config and force.config.maps[0].rules[0].expression) == (1, "tcp")
        assert listed(memory) == before
    force.put(ready)
    assert force.number == 2


def test_numbers_that_find_no_room_leave_nothing_and_keep_what_was_there(pipeline: tuple[Pipeline, Path]) -> None:
    memory, place = pipeline
    numbers.keep(memory, config("tcp"))
    old: Any = numbers.numbers_path(memory.name).read_bytes()
    with filled(place), pytest.raises(OSError, match="No space left"):
        numbers.keep(memory, config("tcp"))
    assert numbers.numbers_path(memory.name).read_bytes() == old
    assert not list(place.glob("*.numbers-new"))
