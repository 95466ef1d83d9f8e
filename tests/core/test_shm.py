"""Attaching refuses, in words, whatever is not a pipeline of this version."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from broker.core import layout
from broker.core import shm as shm_module
from broker.core.errors import PipelineError
from broker.core.layout import Geometry
from broker.core.shm import Pipeline, create_pipeline, open_pipeline, pipeline_directory, remove_pipeline


def damage(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_two_attachments_see_the_same_memory(pipeline: Pipeline, name: str) -> None:
    other = open_pipeline(name)
    pipeline.lanes[0].batch(1).data[5] = 77
    pipeline.tool_sequence[3] = 12
    assert other.lanes[0].batch(1).data[5] == 77
    assert other.tool_sequence[3] == 12
    assert other.lanes[0].geometry == pipeline.lanes[0].geometry


def test_only_the_owner_can_look_inside(pipeline: Pipeline) -> None:
    assert stat.S_IMODE(pipeline.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in pipeline.directory.iterdir()} == {0o600}


def test_there_is_no_second_pipeline_of_the_same_name(pipeline: Pipeline, name: str, geometry: Geometry) -> None:
    with pytest.raises(PipelineError, match="File exists"):
        create_pipeline(name, [geometry])


def test_nothing_is_left_after_removal(pipeline: Pipeline, name: str) -> None:
    remove_pipeline(name)
    remove_pipeline(name)
    assert not pipeline.directory.exists()
    with pytest.raises(PipelineError, match=r"no pipeline .* is running"):
        open_pipeline(name)


@pytest.mark.parametrize(
    ("file", "at", "content", "words"),
    [
        ("control", 0, b"garbage!", "not a tapmesh segment"),
        ("lane-0", 0, b"\0" * 8, "not a tapmesh segment"),
        ("lane-0", 8, (99).to_bytes(8, "little"), f"layout version 99, here {layout.LAYOUT_VERSION}"),
        ("control", layout.words(layout.PIPELINE)["drawing"] * 8, b"\1" * 8, "another version of tapmesh runs it"),
        ("lane-0", 24, (1 << 40).to_bytes(8, "little"), "n_blocks is 1099511627776: damaged"),
        ("lane-0", 24, (0).to_bytes(8, "little"), "n_blocks is 0: damaged"),
        ("lane-0", 24, (2).to_bytes(8, "little"), "bytes, expected"),
        ("lane-0", 72, (3).to_bytes(8, "little"), r"another version of tapmesh \(3 counters"),
    ],
)
def test_a_damaged_or_foreign_segment_is_refused_in_words(
    pipeline: Pipeline, name: str, file: str, at: int, content: bytes, words: str
) -> None:
    damage(pipeline.directory / file, at, content)
    with pytest.raises(PipelineError, match=words):
        open_pipeline(name)


def test_a_truncated_segment_is_refused(pipeline: Pipeline, name: str) -> None:
    os.truncate(pipeline.directory / "lane-0", 8192)
    with pytest.raises(PipelineError, match="8192 bytes, expected"):
        open_pipeline(name)


@pytest.mark.parametrize("bad", ["", "../x", "a/b", ".hidden", "white space"])
def test_a_name_that_would_leave_its_directory_is_refused(bad: str) -> None:
    with pytest.raises(PipelineError, match="pipeline name"):
        pipeline_directory(bad)


def test_shared_memory_that_does_not_fit_is_refused_before_anything_runs(
    name: str, geometry: Geometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int, offset: int, size: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shm_module.os, "posix_fallocate", no_room)
    with pytest.raises(PipelineError, match=r"cannot reserve [\d,]+ bytes of shared memory: No space left on device"):
        create_pipeline(name, [geometry])
