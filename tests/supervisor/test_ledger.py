"""The ledger closes over any state of the ring, and says so when it does not."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.core.layout import PATH, Geometry
from broker.core.metrics import COUNTERS
from broker.core.shm import LaneMemory, Pipeline, create_pipeline, remove_pipeline
from broker.supervisor.ledger import Ledger, balance
from broker.supervisor.snapshot import Reader
from tests.supervisor.rings import NAMES, capture_block, count, count_live, frame_block, judge_block, move, send_block

IDS, RECORDER = 1, -(1 << 63)  # verdicts: tool slots 0 and 63


def ledger_of(pipeline: Pipeline) -> Ledger:
    return balance(Reader(pipeline).take(NAMES))


@pytest.fixture
def lane(pipeline: Pipeline) -> LaneMemory:
    return pipeline.lanes[0]


def test_an_untouched_pipeline_balances(pipeline: Pipeline):
    ledger = ledger_of(pipeline)
    assert ledger.balanced
    assert ledger.in_flight == 0
    assert [t.tool for t in ledger.tools] == ["ids", "recorder"]


def test_blocks_between_the_cursors_are_measured_as_in_flight(pipeline: Pipeline, lane: LaneMemory):
    for _ in range(4):
        capture_block(lane, 5)
    judge_block(lane, 0, [IDS, IDS | RECORDER, RECORDER, 0, 0])
    judge_block(lane, 1, [IDS, 0, 0, 0, RECORDER])
    judge_block(lane, 2, [IDS] * 5)
    frame_block(lane, 0, [(0, 0), (0, 0), (63, 0), (63, 0)])
    frame_block(lane, 1, [(0, 0), (63, 0)])
    send_block(lane, 0, {0: 2, 63: 2})
    ledger = ledger_of(pipeline)
    assert ledger.faults() == []
    assert ledger.lanes[0].in_flight_packets == 5  # block 3 is not judged
    ids, recorder = ledger.tools
    assert (ids.wanted_frames, ids.delivered_frames, ids.in_flight_frames) == (8, 2, 6)  # block 1: a frame, block 2: five bits
    assert (recorder.wanted_frames, recorder.delivered_frames, recorder.in_flight_frames) == (3, 2, 1)


def test_what_the_kernel_has_left_out_is_received_and_filtered(pipeline: Pipeline, lane: LaneMemory):
    capture_block(lane, 3)
    judge_block(lane, 0, [IDS, 0, 0])
    count(lane, "capture", "filtered_in_kernel_packets", 7)
    count(lane, "capture", "dropped_shed_in_kernel", 5)
    ledger = ledger_of(pipeline)
    assert ledger.balanced
    assert ledger.judged_off_by == 0
    totals = ledger.totals
    assert (totals.received, totals.filtered, totals.filtered_in_kernel, totals.dropped["shed_in_kernel"]) == (15, 9, 7, 5)
    assert (ledger.inputs[0].received_packets, ledger.inputs[0].filtered_in_kernel_packets) == (15, 7)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_ledger_closes_wherever_the_workers_stand(data: st.DataObject, shm: object):
    """Random traffic, workers stopped anywhere: blocks judged, framed and sent by several workers, out of step with each other."""
    g = Geometry(n_blocks=8, max_packets=8, max_frames=24, header_bytes=2048, data_bytes=4096, n_filter=2, n_encapsulate=3, n_send=2)
    pipeline = create_pipeline("hypothesis", [g])
    try:
        lane = pipeline.lanes[0]
        verdict = st.sampled_from([0, IDS, RECORDER, IDS | RECORDER])
        blocks = data.draw(st.lists(st.lists(verdict, max_size=8), min_size=1, max_size=8))
        shares = data.draw(st.lists(st.integers(0, 1), min_size=16, max_size=16))
        judged = [data.draw(st.integers(0, len(blocks))) for _ in range(g.n_filter)]
        framed = [data.draw(st.integers(0, len(blocks))) for _ in range(g.n_encapsulate)]
        sent = [data.draw(st.integers(0, len(blocks))) for _ in range(g.n_send)]
        ends = []
        for seq, verdicts in enumerate(blocks):
            capture_block(lane, len(verdicts))
            frames = [(tool, share) for v, share in zip(verdicts, shares, strict=False) for tool in (0, 63) if v >> tool & 1]
            is_judged = seq < judged[seq % 2] and all(ends[s]["judged"] for s in range(seq % 2, seq, 2))
            is_framed = is_judged and seq < framed[seq % 3] and all(ends[s]["framed"] for s in range(seq % 3, seq, 3))
            ends.append({"judged": is_judged, "framed": is_framed, "frames": frames})
            if is_judged:
                judge_block(lane, seq, verdicts)
            if is_framed:
                frame_block(lane, seq, frames)
        delivered = 0
        for worker in range(2):
            for seq in range(sent[worker]):
                if not ends[seq]["framed"]:
                    break
                mine = [tool for tool, share in ends[seq]["frames"] if share % 2 == worker]
                send_block(lane, seq, {tool: mine.count(tool) for tool in (0, 63)}, worker=worker)
                delivered += len(mine)
        ledger = ledger_of(pipeline)
        assert ledger.faults() == []
        assert sum(t.delivered_frames for t in ledger.tools) == delivered
        wanted = sum(len(end["frames"]) for end in ends if end["judged"])
        assert sum(t.in_flight_frames for t in ledger.tools) == wanted - delivered
    finally:
        remove_pipeline("hypothesis")


@pytest.mark.parametrize(
    "reason", [c for c in COUNTERS if c.name.startswith("dropped_") and c.stage in PATH], ids=lambda c: f"{c.stage}-{c.name}"
)
def test_every_drop_reason_of_the_table_is_a_line_of_the_ledger(pipeline: Pipeline, lane: LaneMemory, reason):
    """One packet that comes in and is dropped for exactly this reason: the ledger closes and names it."""
    counted = count_live if reason.live else count
    name = reason.name.removeprefix("dropped_")
    if reason.stage == "capture":
        counted(lane, "capture", reason.name, 1)
    elif reason.stage == "filter":
        capture_block(lane, 1)
        counted(lane, "filter", reason.name, 1)
        count(lane, "filter", "judged_packets", 1)
        move(lane, "filter", 1)
    else:
        capture_block(lane, 1)
        judge_block(lane, 0, [IDS])
        move(lane, "encapsulate", 1)
        if reason.stage == "send":
            count(lane, "encapsulate", "framed_frames", 1)
        counted(lane, reason.stage, reason.name, 1)
    move(lane, "send", int(lane.workers[0]["cursor"]))
    move(lane, "filter", int(lane.workers[0]["cursor"]))
    move(lane, "encapsulate", int(lane.workers[0]["cursor"]))
    ledger = ledger_of(pipeline)
    assert ledger.faults() == []
    assert ledger.in_flight == 0
    where = ledger.lanes[0].dropped if reason.stage in ("capture", "filter") else ledger.tools[0].dropped
    assert {r: n for r, n in where.items() if n} == {name: 1}


def test_no_two_drop_reasons_of_one_line_have_the_same_name():
    for stages in (("capture", "filter"), ("encapsulate", "send")):
        names = [c.name for c in COUNTERS if c.stage in stages and c.name.startswith("dropped_")]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("kind", "counter", "n", "fault"),
    [
        ("capture", "captured_packets", 3, "lane 0: 3 packets missing between capture and filter"),
        ("capture", "captured_packets", -1, "lane 0: 1 packets too many between capture and filter"),
        ("filter", "judged_packets", 1, "filter: 1 packets missing judged without a counted fate"),
        ("filter", "wanted_frames", 2, "tool ids: 2 frames missing between wanted and delivered or dropped"),
        ("encapsulate", "framed_frames", 2, "tool ids: 2 frames missing between encapsulate and send"),
        ("send", "delivered_frames", 1, "tool ids: 1 frames too many between wanted and delivered or dropped"),
    ],
)
def test_a_broken_counter_is_reported_with_how_much_it_is_off_by(
    pipeline: Pipeline, lane: LaneMemory, kind: str, counter: str, n: int, fault: str
):
    capture_block(lane, 2)
    judge_block(lane, 0, [IDS, 0])
    frame_block(lane, 0, [(0, 0)])
    send_block(lane, 0, {0: 1})
    assert ledger_of(pipeline).balanced
    count(lane, kind, counter, n)
    ledger = ledger_of(pipeline)
    assert not ledger.balanced
    assert fault in ledger.faults()


def test_a_damaged_ring_is_told_and_not_followed(pipeline: Pipeline, lane: LaneMemory):
    capture_block(lane, 2)
    lane.batch(0).block["n_packets"] = 1 << 40
    ledger = ledger_of(pipeline)
    assert not ledger.balanced
    assert ledger.faults() == [f"lane 0: could not be measured: block 0 claims {1 << 40} packets of 16"]
    lane.workers[0]["cursor"] = 1 << 50
    assert "span more than 4 blocks" in ledger_of(pipeline).faults()[0]


def test_a_full_ring_that_stands_still_can_be_measured(pipeline: Pipeline, lane: LaneMemory):
    for _ in range(4):
        capture_block(lane, 3)
    assert ledger_of(pipeline).lanes[0].in_flight_packets == 12


def test_a_tool_that_a_reload_has_removed_stays_in_the_books(pipeline: Pipeline, lane: LaneMemory):
    capture_block(lane, 1)
    judge_block(lane, 0, [1 << 5])
    frame_block(lane, 0, [(5, 0)])
    send_block(lane, 0, {5: 1})
    ledger = ledger_of(pipeline)
    assert [t.tool for t in ledger.tools] == ["ids", "tool slot 5", "recorder"]
    assert ledger.balanced


def test_several_lanes_add_up_for_a_tool_and_stand_apart_for_packets(name: str, geometry: Geometry):
    pipeline = create_pipeline(name, [geometry, geometry])
    for n, lane in enumerate(pipeline.lanes):
        capture_block(lane, 1 + n)
        judge_block(lane, 0, [IDS] * (1 + n))
    ledger = ledger_of(pipeline)
    assert [lane.received_packets for lane in ledger.lanes] == [1, 2]
    assert ledger.tools[0].in_flight_frames == 3
    assert ledger.balanced


def test_the_json_of_equal_runs_is_equal_and_holds_no_time(pipeline: Pipeline, lane: LaneMemory):
    capture_block(lane, 1)
    count_live(lane, "send", "busy_ns", 12345)
    first = json.dumps(ledger_of(pipeline).as_json())
    count_live(lane, "send", "busy_ns", 999)
    assert json.dumps(ledger_of(pipeline).as_json()) == first
    assert "12345" not in first
