"""Run the filter over packets without a ring, and hand-made configurations for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.config.policy import compile_policy
from broker.core.batch import heap_batch
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS, index
from broker.core.model import Config, Input, Lane, Map, Rule, Tool
from broker.core.stage import Context, Generation
from stages.filter.stage import Filter

MAX_MAPS = 64  # of `one_map_each`: one verdict bit each
GEOMETRY = Geometry(max_packets=512, max_frames=512, header_bytes=4096)


@dataclass(frozen=True)
class Frame:
    data: bytes
    wirelen: int
    input: int = 0


def frame(data: bytes, wirelen: int = -1, input_slot: int = 0) -> Frame:
    return Frame(data, len(data) if wirelen < 0 else wirelen, input_slot)


def one_map_each(expressions: Sequence[str], *, undetermined: str = "libpcap", sets: dict[str, tuple[str, ...]] | None = None) -> Config:
    """Map and tool i are about expression i: bit i of a verdict is whether it matches."""
    tools = tuple(Tool(f"t{i}", i, file="-") for i in range(len(expressions)))
    maps = tuple(
        Map(f"m{i}", (Rule("pass", text),), (f"t{i}",), undetermined=undetermined, slot=i)  # type: ignore[arg-type]
        for i, text in enumerate(expressions)
    )
    return Config("test", (Input("in0", "pcap", 0),), tools, maps, sets or {})


class Judge:
    """A filter stage with a policy loaded."""

    def __init__(
        self, config: Config, *, memo: bool = True, index: bool = True, memo_buckets: int = 1024, geometry: Geometry = GEOMETRY
    ) -> None:
        self.config = config
        self.batch = heap_batch(geometry)
        self.counters: NDArray[np.int64] = np.zeros(N_COUNTERS, np.int64)
        at = int(self.counters.ctypes.data)
        lane = Lane(0, config.inputs)
        self.stage = Filter(memo=memo, index=index, memo_buckets=memo_buckets)
        self.stage.open(Context(Path(), lane, 0, 1, geometry, 1, self.counters, at, self.counters, at, 0, 0, 0))
        self.number = 0
        self.load(config)

    def load(self, config: Config) -> None:
        self.number += 1
        self.image = np.frombuffer(compile_policy(config), np.uint8)
        self.stage.load(Generation(self.number, config, self.image, int(self.image.ctypes.data)))

    def fill(self, frames: Sequence[Frame]) -> int:
        """As many as fit; returns how many."""
        used, n = 0, 0
        for f in frames[: self.batch.max_packets]:
            if used + len(f.data) > self.batch.data_bytes:
                break
            self.batch.data[used : used + len(f.data)] = np.frombuffer(f.data, np.uint8)
            self.batch.packets[n] = (0, used, len(f.data), f.wirelen, f.input, 0)
            used += len(f.data)
            n += 1
        self.batch.block["n_packets"] = n
        return n

    def step(self) -> int:
        """Judge what was filled in, as the next block."""
        n = self.stage.step(self.batch)
        self.batch.seq += 1
        return n

    def judge(self, frames: Sequence[Frame]) -> list[tuple[int, int, int]]:
        """(verdict as an unsigned number, cause, flow) of each."""
        found: list[tuple[int, int, int]] = []
        while len(found) < len(frames):
            n = self.fill(frames[len(found) :])
            assert self.step() == n
            rows = self.batch.verdicts[:n]
            found += [(int(v["verdict"]) & (1 << 64) - 1, int(v["cause"]), int(v["flow"])) for v in rows]
        return found

    def verdicts(self, frames: Sequence[Frame]) -> list[int]:
        return [verdict for verdict, _, _ in self.judge(frames)]

    def rules(self) -> list[tuple[int, int, int]]:
        """(packets, bytes, undetermined packets) of each rule of the policy."""
        return [tuple(row) for row in self.stage.rule_counts.halves.read(lambda: self.batch.seq).tolist()]

    def count(self, name: str, slot: int = 0) -> int:
        return int(self.counters[index("filter", name) + slot])
