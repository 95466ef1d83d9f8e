"""Sequence numbers go on where they were: over a stop, over the death of everything, by the names of the tools."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.core import log as logs
from broker.core.generations import write_generation
from broker.core.layout import Geometry
from broker.core.model import Config, Tool, Tunnel
from broker.core.shm import Pipeline, create_pipeline, remove_pipeline
from broker.supervisor import prepare
from broker.supervisor.numbers import keep, numbers_path, restore

TOOLS = (
    Tool("gre", 0, Tunnel("gre", "192.0.2.1", sequence=True)),
    Tool("plain", 1, Tunnel("gre", "192.0.2.1")),
    Tool("span", 2, Tunnel("erspan2", "192.0.2.1")),
    Tool("span3", 3, Tunnel("erspan3", "192.0.2.1")),
    Tool("file", 4, file="/nonexistent/out.pcap"),
    Tool("outer", 5, Tunnel("gre", "192.0.2.1", sequence=True), "/nonexistent/outer.pcap"),
)
CONFIG = Config("test", (), TOOLS, ())
REACHED = 0x1_2345_6789
"""More than 32 bits: the header has the low ones."""


def again(pipeline: Pipeline, geometry: Geometry, config: Config) -> Pipeline:
    remove_pipeline(pipeline.name)
    made = create_pipeline(pipeline.name, [geometry])
    restore(made, config, logs.get())
    return made


def test_a_stop_leaves_the_numbers_that_receivers_see_and_the_next_start_takes_them(pipeline: Pipeline, geometry: Geometry) -> None:
    pipeline.tool_sequence[:6] = REACHED + np.arange(6)
    keep(pipeline, CONFIG)
    assert stat.S_IMODE(numbers_path(pipeline.name).stat().st_mode) == 0o600
    assert again(pipeline, geometry, CONFIG).tool_sequence[:7].tolist() == [REACHED, 0, REACHED + 2, REACHED + 3, 0, 0, 0]


def test_a_tool_is_known_by_its_name_and_not_by_its_slot(pipeline: Pipeline, geometry: Geometry) -> None:
    pipeline.tool_sequence[:4] = [10, 20, 30, 40]
    keep(pipeline, CONFIG)
    moved = (replace(TOOLS[2], slot=0), replace(TOOLS[0], slot=1), Tool("new", 2, TOOLS[0].tunnel))
    assert again(pipeline, geometry, replace(CONFIG, tools=moved)).tool_sequence[:4].tolist() == [30, 10, 0, 0]


def test_nothing_is_left_where_no_receiver_sees_numbers(pipeline: Pipeline, shm: Path) -> None:
    numbers_path(pipeline.name).write_bytes(b"of an earlier configuration")
    keep(pipeline, replace(CONFIG, tools=TOOLS[1:2]))
    assert [path.name for path in shm.iterdir()] == [f"tapmesh-{pipeline.name}"]


def test_without_a_file_numbers_begin_at_0_and_nothing_is_told(pipeline: Pipeline) -> None:
    with capture_logs() as lines:
        restore(pipeline, CONFIG, logs.get())
    assert (pipeline.tool_sequence.any(), lines) == (False, [])


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x01", b"\x81\xa3gre\xa1x", b"\x81\xa3gre\xcf" + b"\xff" * 8], ids=repr)
def test_a_damaged_file_is_told_and_not_believed(content: bytes, pipeline: Pipeline) -> None:
    numbers_path(pipeline.name).write_bytes(content)
    with capture_logs() as lines:
        restore(pipeline, CONFIG, logs.get())
    assert [line["event"] for line in lines] == ["numbers_lost"]
    assert not pipeline.tool_sequence.any()


def test_what_was_killed_leaves_its_numbers_to_the_next(pipeline: Pipeline, geometry: Geometry) -> None:
    """Processes gone, memory left: `look` removes it, and reads the numbers before that."""
    write_generation(pipeline.directory, 1, CONFIG, b"image")
    pipeline.header[0]["generation"] = 1
    pipeline.tool_sequence[0] = 77
    assert prepare.look(pipeline.name, logs.get()) is None
    assert not pipeline.directory.exists()
    assert again(pipeline, geometry, CONFIG).tool_sequence[0] == 77


def test_what_was_killed_before_it_had_a_configuration_leaves_nothing_and_is_removed(pipeline: Pipeline) -> None:
    assert prepare.look(pipeline.name, logs.get()) is None
    assert not numbers_path(pipeline.name).exists()
