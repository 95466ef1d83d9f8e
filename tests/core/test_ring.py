"""Interleavings of the ring stepped by hand, and the promises of `commit with the cursor`."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from broker.core.layout import PATH, STAGES, Geometry
from broker.core.metrics import index
from broker.core.ring import Ring, read_counters
from broker.core.shm import LaneMemory, Pipeline, create_pipeline
from stages import atomics

JUDGED = index("filter", "judged_packets")


def rings(lane: LaneMemory) -> list[Ring]:
    return [Ring(lane, kind, worker, atomics) for kind, worker in lane.geometry.workers]


def by_kind(all_rings: list[Ring], kind: str) -> list[Ring]:
    return [ring for ring in all_rings if ring.kind == kind]


def test_only_capture_is_ready_in_an_empty_ring(pipeline: Pipeline) -> None:
    assert [ring.kind for ring in rings(pipeline.lanes[0]) if ring.ready()] == ["capture"]


def test_a_block_is_ready_for_the_next_stage_only_once_it_is_published(pipeline: Pipeline) -> None:
    capture, filter_, encapsulate, send = rings(pipeline.lanes[0])
    for stage, after in ((capture, filter_), (filter_, encapsulate), (encapsulate, send)):
        assert not after.ready()
        stage.publish()
        assert after.ready()


def test_capture_waits_when_send_is_a_lap_behind(pipeline: Pipeline) -> None:
    capture, *others = rings(pipeline.lanes[0])
    for _ in range(capture.n_blocks):
        assert capture.ready()
        capture.publish()
    assert not capture.ready()
    for ring in others:
        assert not capture.ready()
        ring.publish()
    assert capture.ready()


@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 1, 2), (2, 3, 1), (1, 2, 3), (3, 3, 3)])
def test_any_order_of_steps_takes_every_block_once_and_in_order(name: str, geometry: Geometry, counts: tuple[int, int, int]) -> None:
    """Random schedules against the plainest model there is: a list of who has done which block."""
    n_filter, n_encapsulate, n_send = counts
    lane = create_pipeline(name, [replace(geometry, n_filter=n_filter, n_encapsulate=n_encapsulate, n_send=n_send)]).lanes[0]
    all_rings = rings(lane)
    done: dict[str, list[int]] = {kind: [] for kind in PATH}
    chooser = random.Random(repr(counts))
    for _ in range(3000):
        ring = chooser.choice(all_rings)
        if not ring.ready():
            continue
        seq = ring.seq
        if ring.kind != "capture":
            before = PATH[PATH.index(ring.kind) - 1]
            assert done[before].count(seq) == len(by_kind(all_rings, before)) if before == "send" else seq in done[before]
        elif seq >= lane.geometry.n_blocks:
            assert done["send"].count(seq - lane.geometry.n_blocks) == n_send
        if ring.kind in ("filter", "encapsulate"):
            assert seq % len(by_kind(all_rings, ring.kind)) == ring.worker
        ring.publish()
        done[ring.kind].append(seq)
    assert done["capture"] == list(range(len(done["capture"])))
    assert len(done["send"]) > 100
    for kind in ("filter", "encapsulate"):
        assert len(set(done[kind])) == len(done[kind])


def test_counters_are_committed_by_the_cursor_and_by_nothing_else(pipeline: Pipeline) -> None:
    lane = pipeline.lanes[0]
    capture, filter_, *_ = rings(lane)
    row = lane.geometry.row("filter", 0)
    for block in range(5):
        if capture.ready():
            capture.publish()
        if not filter_.ready():
            break
        filter_.counters[JUDGED] += 7
        cursor, committed = read_counters(lane, row)
        assert (cursor, committed[JUDGED]) == (block, 7 * block)
        filter_.publish()
        cursor, committed = read_counters(lane, row)
        assert (cursor, committed[JUDGED]) == (block + 1, 7 * (block + 1))


def test_a_worker_that_died_resumes_at_its_cursor_with_the_counters_of_that_moment(name: str, geometry: Geometry) -> None:
    lane = create_pipeline(name, [replace(geometry, n_filter=2)]).lanes[0]
    all_rings = rings(lane)
    for _ in range(4):
        all_rings[0].publish()
    second = by_kind(all_rings, "filter")[1]
    assert second.seq == 1
    second.counters[JUDGED] = 10
    second.publish()
    second.counters[JUDGED] = 99  # counted for block 3, which it dies in
    reborn = Ring(lane, "filter", 1, atomics)
    assert (reborn.seq, reborn.counters[JUDGED]) == (3, 10)


def test_a_bell_is_rung_only_for_a_neighbour_that_is_parked_and_waits_for_this_block(name: str, geometry: Geometry) -> None:
    lane = create_pipeline(name, [replace(geometry, n_filter=2)]).lanes[0]
    all_rings = rings(lane)
    capture, (first, second) = all_rings[0], by_kind(all_rings, "filter")
    assert capture.publish() == []  # block 0: nobody sleeps
    assert second.park()  # waits for block 1
    assert not first.park()  # block 0 is there
    assert capture.publish() == [("filter", 1)]
    second.unpark()
    second.publish()
    assert second.park()  # waits for block 3
    assert capture.publish() == []  # block 2 is not for it
    assert capture.publish() == [("filter", 1)]


@pytest.mark.parametrize(("follow_filter", "n_filter"), [(0, 1), (0, 3), (1, 1), (1, 3)])
def test_a_reader_beside_the_path_takes_every_block_and_capture_waits_for_it(
    name: str, geometry: Geometry, follow_filter: int, n_filter: int
) -> None:
    lane = create_pipeline(name, [replace(geometry, n_filter=n_filter, n_send=2, n_flows=1, flows_follow_filter=follow_filter)]).lanes[0]
    all_rings = rings(lane)
    passed: dict[str, set[int]] = {kind: set() for kind in STAGES}
    chooser = random.Random(n_filter)
    for _ in range(3000):
        ring = chooser.choice(all_rings)
        if not ring.ready():
            continue
        seq = ring.seq
        if ring.kind == "flows":
            assert seq in passed["filter" if follow_filter else "capture"]
        if ring.kind == "capture" and seq >= lane.geometry.n_blocks:
            assert seq - lane.geometry.n_blocks in passed["flows"] & passed["send"]
        ring.publish()
        passed[ring.kind].add(seq)
    assert len(passed["flows"]) > 100
    assert passed["flows"] == set(range(len(passed["flows"])))


@pytest.mark.parametrize("follow_filter", [0, 1])
def test_the_bell_of_a_reader_beside_the_path_is_rung_by_whom_it_follows(name: str, geometry: Geometry, follow_filter: int) -> None:
    lane = create_pipeline(name, [replace(geometry, n_filter=2, n_flows=1, flows_follow_filter=follow_filter)]).lanes[0]
    all_rings = rings(lane)
    capture, first, flows = all_rings[0], by_kind(all_rings, "filter")[0], by_kind(all_rings, "flows")[0]
    assert flows.park()
    assert first.park()
    assert capture.publish() == [("filter", 0)] + ([] if follow_filter else [("flows", 0)])
    first.unpark()
    assert first.publish() == ([("flows", 0)] if follow_filter else [])
    flows.unpark()
    for _ in range(capture.n_blocks - 1):
        capture.publish()
    for stage in ("filter", "encapsulate", "send"):
        for ring in by_kind(all_rings, stage):
            while ring.ready() and ring.seq < capture.seq:
                ring.publish()
    assert capture.park()
    rung = [flows.publish() for _ in range(capture.n_blocks)]
    assert rung.index([("capture", 0)]) == capture.n_blocks // 2


def test_capture_is_woken_when_half_the_ring_is_free(pipeline: Pipeline) -> None:
    capture, filter_, encapsulate, send = rings(pipeline.lanes[0])
    for ring in (capture, filter_, encapsulate):
        for _ in range(capture.n_blocks):
            ring.publish()
    assert capture.park()
    rung = [bool(send.publish()) for _ in range(capture.n_blocks)]
    assert rung.index(True) == capture.n_blocks // 2


def test_park_sees_what_was_published_just_before(pipeline: Pipeline) -> None:
    capture, filter_, *_ = rings(pipeline.lanes[0])
    capture.publish()
    assert not filter_.park()
    assert pipeline.lanes[0].workers[1]["parked"] == 0


def test_backlog_is_what_the_stage_before_has_published_without_a_gap(name: str, geometry: Geometry) -> None:
    lane = create_pipeline(name, [replace(geometry, n_filter=2)]).lanes[0]
    all_rings = rings(lane)
    first, second = by_kind(all_rings, "filter")
    encapsulate = by_kind(all_rings, "encapsulate")[0]
    for _ in range(4):
        all_rings[0].publish()
    second.publish()  # block 1 is done, block 0 is not
    assert encapsulate.backlog() == 0
    first.publish()
    assert encapsulate.backlog() == 2


def test_batches_of_different_slots_do_not_overlap(pipeline: Pipeline) -> None:
    lane = pipeline.lanes[0]
    for slot in range(lane.geometry.n_blocks):
        lane.batch(slot).memory[:] = slot + 1
    for slot in range(lane.geometry.n_blocks):
        assert np.all(lane.batch(slot).memory == slot + 1)
    assert lane.header[0]["lane"] == 0
    assert not lane.committed.any()
    assert not lane.tickets["seq"].any()
