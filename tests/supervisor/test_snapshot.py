"""A picture of a ring that turns over while it is taken is consistent, or says that it is not."""

from __future__ import annotations

import os
import signal

import numpy as np

from broker.core.layout import PATH, Geometry
from broker.core.metrics import N_COUNTERS, index
from broker.core.shm import LaneMemory, Pipeline, create_pipeline
from broker.supervisor import snapshot
from broker.supervisor.ledger import balance
from broker.supervisor.snapshot import Reader, behind, passed
from tests.supervisor.rings import NAMES, capture_block, move
from tests.waiting import until


class Player:
    """Plays all four stages over a lane without a pause, each block of 4 packets of which tool 0 wants 3.

    A worker's counters go to the half that its next cursor names before the cursor moves, as the ring does it.
    """

    def __init__(self, lane: LaneMemory) -> None:
        self.lane = lane
        self.counters = {kind: np.zeros(N_COUNTERS, np.int64) for kind in PATH}

    def publish(self, kind: str, seq: int, **counts: int) -> None:
        for name, n in counts.items():
            self.counters[kind][index(kind, name)] += n
        row = self.lane.geometry.row(kind, 0)
        self.lane.committed[row, (seq + 1) & 1] = self.counters[kind]
        self.lane.workers[row]["cursor"] = seq + 1

    def run(self) -> None:
        batches = [self.lane.batch(slot) for slot in range(self.lane.geometry.n_blocks)]
        seq = 0
        while True:
            batch = batches[seq % len(batches)]
            batch.block["n_packets"] = 4
            self.publish("capture", seq, captured_packets=4)
            batch.verdicts["verdict"][:4] = (1, 0, 1, 1)
            self.publish("filter", seq, judged_packets=4, forwarded_packets=3, filtered_packets=1, wanted_frames=3)
            batch.frames["tool"][:3], batch.block["n_frames"] = 0, 3
            self.publish("encapsulate", seq, framed_frames=3)
            self.publish("send", seq, delivered_frames=3)
            seq += 1


def test_every_picture_of_a_ring_that_never_stands_still_balances(name: str):
    geometry = Geometry(n_blocks=16, max_packets=16, max_frames=32, header_bytes=2048, data_bytes=4096)
    pipeline = create_pipeline(name, [geometry])
    player = os.fork()
    if player == 0:
        try:
            Player(pipeline.lanes[0]).run()
        finally:
            os._exit(1)
    try:
        reader, seen = Reader(pipeline), set()

        def taken_at_many_places() -> bool:
            picture = reader.take(NAMES)
            if not picture.lanes[0].trouble:
                assert balance(picture).faults() == []
                seen.add(picture.lanes[0].workers[0].cursor)
            return len(seen) >= 50

        until(taken_at_many_places, "50 pictures of different moments")
    finally:
        os.kill(player, signal.SIGKILL)
        os.waitpid(player, 0)


def test_a_block_that_capture_takes_again_meanwhile_is_noticed(pipeline: Pipeline, monkeypatch):
    lane = pipeline.lanes[0]
    for _ in range(4):
        capture_block(lane, 1)
    monkeypatch.setattr(snapshot, "LIMIT_S", 0.0)
    reader, read = Reader(pipeline), snapshot._read_workers

    def read_and_run_on(memory):
        workers = read(memory)
        for kind in ("filter", "encapsulate", "send"):
            move(memory, kind, 4)
        move(memory, "capture", 5)
        return workers

    monkeypatch.setattr(snapshot, "_read_workers", read_and_run_on)
    picture = reader.take(NAMES)
    assert picture.lanes[0].trouble == "the ring turns over faster than it can be read"
    assert not balance(picture).balanced


def test_passed_and_behind_follow_the_sharing_of_blocks():
    g = Geometry(n_blocks=8, n_filter=2, n_encapsulate=2, n_send=2)
    # capture 5 | filter 4, 3 | encapsulate 2, 3 | send 2, 1
    cursors = [5, 4, 3, 2, 3, 2, 1]
    assert [passed(g, cursors, "filter", seq) for seq in range(5)] == [True, True, True, False, False]
    assert [passed(g, cursors, "send", seq) for seq in range(3)] == [True, False, False]
    assert behind(g, cursors, "filter", 0)
    assert behind(g, cursors, "filter", 1)
    assert behind(g, cursors, "encapsulate", 0)
    assert not behind(g, cursors, "encapsulate", 1)
    assert not behind(g, cursors, "send", 0)
    assert behind(g, cursors, "send", 1)
    assert not behind(g, cursors, "capture", 0)
