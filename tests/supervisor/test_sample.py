"""Packets of a running pipeline, copied beside it: whole blocks, none that capture is writing over, none twice, and nothing touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.core.errors import PipelineError
from broker.core.shm import Pipeline
from broker.supervisor.sample import Sampler


def capture(pipeline: Pipeline, seq: int, n: int = 2, *, stamp: int | None = None) -> None:
    """As capture publishes a block: its packets hold its number."""
    lane = pipeline.lanes[0]
    batch = lane.batch(seq % lane.geometry.n_blocks)
    for i in range(n):
        batch.data[8 * i : 8 * i + 8] = np.frombuffer(seq.to_bytes(8, "little"), np.uint8)
        batch.packets[i] = (seq, 8 * i, 8, 60, 0, 0)
    batch.block["n_packets"], batch.block["data_used"] = n, 8 * n
    batch.block["seq"] = seq + 1 if stamp is None else stamp
    lane.workers[0]["cursor"] = seq + 1


def numbers(sampler: Sampler, seconds: float = 0.05, most: int = 1000) -> Iterator[int]:
    for packets in sampler.packets(seconds, most):
        for row in packets.rows:
            at = int(row["data_at"])
            yield int.from_bytes(packets.data[at : at + int(row["caplen"])].tobytes(), "little")


def test_what_is_in_the_ring_and_will_stay_there_is_sampled_once(pipeline: Pipeline) -> None:
    for seq in range(6):
        capture(pipeline, seq)
    sampler = Sampler(pipeline.name)
    assert list(numbers(sampler)) == [4, 4, 5, 5]  # half a ring of 4 blocks
    assert sampler.missed == 0


def test_what_is_captured_while_looking_is_sampled_and_what_was_too_fast_is_counted(pipeline: Pipeline) -> None:
    capture(pipeline, 0, 1)
    sampler, found = Sampler(pipeline.name), []
    for number in numbers(sampler, 5.0, 3):
        found.append(number)
        for seq in range(number + 1, number + 4):
            capture(pipeline, seq, 1)
    assert found == [0, 2, 4]
    assert sampler.missed == 2


@pytest.mark.parametrize(("cursor_after", "believed"), [(3, [0, 0]), (4, [])])
def test_a_block_that_may_have_been_written_over_is_not_believed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, cursor_after: int, believed: list[int]
) -> None:
    """With the cursor at 4 capture is at work in the slot of block 0."""
    capture(pipeline, 0)
    looks = iter((1, 1, cursor_after))  # at the start, before the copy, after it
    monkeypatch.setattr(Sampler, "_cursor", staticmethod(lambda lane: next(looks, 0)))
    sampler = Sampler(pipeline.name)
    assert list(numbers(sampler)) == believed
    assert sampler.missed == (0 if believed else 1)


def test_a_damaged_block_gives_nothing_outside_of_it(pipeline: Pipeline) -> None:
    capture(pipeline, 0)
    batch = pipeline.lanes[0].batch(0)
    batch.packets[0] = (0, 0xFFFFFFFF, 0xFFFFFFFF, 60, 0, 0)
    assert list(numbers(Sampler(pipeline.name))) == [0]
    capture(pipeline, 1, stamp=9)
    assert list(numbers(Sampler(pipeline.name))) == [0]


def test_it_takes_no_more_than_was_asked_for(pipeline: Pipeline) -> None:
    for seq in range(2):
        capture(pipeline, seq, 16)
    assert len(list(numbers(Sampler(pipeline.name), 0.5, 20))) == 20


def test_it_maps_the_rings_for_reading_only_and_ends_with_the_pipeline(pipeline: Pipeline) -> None:
    sampler = Sampler(pipeline.name)
    assert not sampler.lanes[0].memory.flags.writeable
    os.unlink(pipeline.directory / "control")
    assert list(sampler.packets(60, 10)) == []
    with pytest.raises(PipelineError, match="no pipeline"):
        Sampler(pipeline.name)


def test_there_is_no_such_pipeline(shm: Path) -> None:
    with pytest.raises(PipelineError, match="no pipeline 'absent' is running"):
        Sampler("absent")
