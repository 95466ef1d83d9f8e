"""Packets of a running pipeline, looked at from beside the path: copies of blocks in its rings, which wait for nobody and are not touched.

A block that capture has published stays as it is until capture takes its slot for the block a whole ring later. So a copy is whole if
capture's cursor, read after it, has not come so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from broker.core.errors import PipelineError
from broker.core.shm import LaneMemory, map_file, pipeline_directory

_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Packets:
    """PACKET rows, and the data that they lie in: copies."""

    rows: NDArray[np.void]
    data: NDArray[np.uint8]


@dataclass
class Sampler:
    """`missed`: blocks that had gone before they could be copied, or that were left out to sample no more than was asked for. What was
    in the rings before the first look is sampled too, and does not count."""

    name: str
    missed: int = 0
    lanes: list[LaneMemory] = field(init=False)
    _seen: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """PipelineError in words when there is no such pipeline. Mapped for reading only."""
        directory = pipeline_directory(self.name)
        paths = sorted(directory.glob("lane-*"), key=lambda path: int(path.name.removeprefix("lane-")))
        if not paths or not (directory / "control").exists():
            raise PipelineError(f"no pipeline {self.name!r} is running ({directory} has no control file)")
        self.lanes = [LaneMemory(path, map_file(path, writable=False)) for path in paths]
        self._seen = [0] * len(self.lanes)
        self._batches = [[lane.batch(slot) for slot in range(lane.geometry.n_blocks)] for lane in self.lanes]

    @staticmethod
    def _cursor(lane: LaneMemory) -> int:
        return int(lane.workers[lane.geometry.row("capture", 0)]["cursor"])

    def packets(self, seconds: float, most: int) -> Iterator[Packets]:
        """What is in the rings, and what is captured from now on, for so long; `most` packets, spread over that time. It ends with the
        pipeline."""
        began, taken = time.monotonic(), 0
        self._seen = [max(0, self._cursor(lane) - lane.geometry.n_blocks // 2) for lane in self.lanes]
        while (passed := time.monotonic() - began) < seconds and taken < most:
            looked = False
            for number in range(len(self.lanes)):
                if taken > most * passed / seconds:
                    break  # enough for now: what comes meanwhile is left out
                found = self._next(number)
                if found is not None:
                    looked = True
                    rows = found.rows[: most - taken]
                    taken += len(rows)
                    yield Packets(rows, found.data)
            if not looked:
                if not (pipeline_directory(self.name) / "control").exists():
                    return
                time.sleep(_LOOK_S)

    def _next(self, number: int) -> Packets | None:
        """A copy of the next block of a lane, of those that capture will not take so soon; None when there is none."""
        lane = self.lanes[number]
        cursor = self._cursor(lane)
        if cursor <= self._seen[number]:
            return None
        seq = max(self._seen[number], cursor - lane.geometry.n_blocks // 2)
        self.missed += seq - self._seen[number]
        self._seen[number] = seq + 1
        batch = self._batches[number][seq % lane.geometry.n_blocks]
        n = max(0, min(int(batch.block["n_packets"][0]), batch.max_packets))
        used = max(0, min(int(batch.block["data_used"][0]), batch.data_bytes))
        rows, data = batch.packets[:n].copy(), batch.data[:used].copy()
        filled = int(batch.block["seq"][0])
        if filled != seq + 1 or self._cursor(lane) >= seq + lane.geometry.n_blocks:
            self.missed += 1
            return None
        whole = rows["data_at"].astype(np.int64) + rows["caplen"] <= used
        return Packets(rows[whole], data)
