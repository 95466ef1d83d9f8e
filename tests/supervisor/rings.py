"""Rings filled by hand, as the stages would: the ledger's tests say what each stage has done, and count themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker.core.metrics import index
from broker.core.shm import LaneMemory, stride
from broker.supervisor.snapshot import Names

NAMES = Names(inputs={0: "span"}, maps={0: "web"}, tools={0: "ids", 63: "recorder"})


def count(lane: LaneMemory, kind: str, name: str, n: int, *, slot: int = 0, worker: int = 0) -> None:
    """Add to a committed counter (both halves, so that any cursor finds it) or to a live one."""
    row, at = lane.geometry.row(kind, worker), index(kind, name) + slot
    lane.committed[row, :, at] += n


def count_live(lane: LaneMemory, kind: str, name: str, n: int, *, slot: int = 0, worker: int = 0) -> None:
    lane.live[lane.geometry.row(kind, worker), index(kind, name) + slot] += n


def move(lane: LaneMemory, kind: str, cursor: int, *, worker: int = 0) -> None:
    lane.workers[lane.geometry.row(kind, worker)]["cursor"] = cursor


def capture_block(lane: LaneMemory, n_packets: int, *, generation: int = 1) -> int:
    """Capture publishes its next block; returns its number."""
    seq = int(lane.workers[0]["cursor"])
    block = lane.batch(seq % lane.geometry.n_blocks).block
    block["seq"], block["n_packets"], block["generation"], block["n_frames"] = seq + 1, n_packets, generation, 0
    count(lane, "capture", "captured_packets", n_packets)
    move(lane, "capture", seq + 1)
    return seq


def judge_block(lane: LaneMemory, seq: int, verdicts: Sequence[int]) -> None:
    """Filter publishes block `seq`; a verdict of 0 is a packet that no map wanted."""
    batch = lane.batch(seq % lane.geometry.n_blocks)
    batch.verdicts["verdict"][: len(verdicts)] = np.array(verdicts, np.int64)
    worker = seq % lane.geometry.n_filter
    forwarded = sum(1 for v in verdicts if v)
    count(lane, "filter", "judged_packets", len(verdicts), worker=worker)
    count(lane, "filter", "forwarded_packets", forwarded, worker=worker)
    count(lane, "filter", "filtered_packets", len(verdicts) - forwarded, worker=worker)
    for tool in range(64):
        count(lane, "filter", "wanted_frames", sum(v >> tool & 1 for v in verdicts), slot=tool, worker=worker)
    move(lane, "filter", seq + stride(lane.geometry, "filter"), worker=worker)


def frame_block(lane: LaneMemory, seq: int, frames: Sequence[tuple[int, int]]) -> None:
    """Encapsulate publishes block `seq` with frames (tool, share)."""
    batch = lane.batch(seq % lane.geometry.n_blocks)
    batch.block["n_frames"] = len(frames)
    worker = seq % lane.geometry.n_encapsulate
    for row, (tool, share) in enumerate(frames):
        batch.frames[row]["tool"], batch.frames[row]["share"] = tool, share
        count(lane, "encapsulate", "framed_frames", 1, slot=tool, worker=worker)
    move(lane, "encapsulate", seq + stride(lane.geometry, "encapsulate"), worker=worker)


def send_block(lane: LaneMemory, seq: int, delivered: dict[int, int], *, worker: int = 0) -> None:
    """Send worker `worker` publishes block `seq`: tool -> frames delivered."""
    for tool, n in delivered.items():
        count(lane, "send", "delivered_frames", n, slot=tool, worker=worker)
    move(lane, "send", seq + 1, worker=worker)
