"""A flows stage without a ring: blocks on the heap, its file in a scratch directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.core.batch import Batch, heap_batch
from broker.core.flow_layout import FLOW, FlowSizes
from broker.core.flow_model import Flows as Options
from broker.core.flow_ring import FlowMemory, RecordReader, create_flows, flows_path
from broker.core.layout import Geometry
from broker.core.metrics import COUNTERS, index
from broker.core.model import Config, Input
from broker.core.stage import Generation
from stages import memory
from stages.flows.stage import Flows
from tests.stages.delivery import NOON_NS, Surroundings, fill, small

SECOND_NS = 1_000_000_000


class Guarded(Flows):
    """Plain kernels may touch its memory, and nothing else."""

    def _take_over(self) -> None:
        table = self.table
        for array in (
            table.flows.memory, table.row, table.free, table.names_free, table._scratch,
            self._ignored, self._key, self._seen, self._fragments.memory,
        ):  # fmt: skip
            memory.allow(int(array.ctypes.data), array.nbytes)
        super()._take_over()


class Meter:
    """`packets`: (frame, seconds after noon) or frames a millisecond apart; whatever is published is in `records`."""

    def __init__(
        self,
        directory: Path,
        options: Options | None = None,
        *,
        sizes: tuple[int, int, int] = (1024, 64, 4096),
        geometry: Geometry | None = None,
    ) -> None:
        self.geometry = geometry or small(max_packets=256, n_flows=1)
        self.directory, self.options = directory, options or Options()
        self.sizes = FlowSizes(*sizes, self.geometry.max_packets)
        if not flows_path(directory, 0).exists():
            create_flows(directory, 0, self.sizes)
        self.around = Surroundings(self.geometry, inputs=(Input("file", "pcap"),))
        self.batch: Batch = heap_batch(self.geometry)
        self.seq = 0
        self.time_ns = NOON_NS
        self.taken: list[np.ndarray] = []
        self.open()

    def open(self) -> None:
        for array in (self.around.counters, self.around.live, self.batch.memory):
            memory.allow(int(array.ctypes.data), array.nbytes)
        self.stage = Guarded()
        self.stage.open(replace(self.around.context, directory=self.directory, cursor=self.seq))
        self.stage.load(Generation(1, Config("test", (), (), (), flows=self.options), np.zeros(1, np.uint8), 0))
        self.memory = FlowMemory(self.directory, 0, self.geometry.max_packets)
        self.reader = RecordReader(self.memory)

    def block(self, packets: Sequence[bytes | tuple[bytes, float]], *, wirelens: Sequence[int] | None = None) -> None:
        """One block, committed."""
        frames, times = [], []
        for packet in packets:
            if isinstance(packet, tuple):
                frames.append(packet[0])
                times.append(NOON_NS + round(packet[1] * SECOND_NS))
            else:
                self.time_ns += 1_000_000
                frames.append(packet)
                times.append(self.time_ns)
        fill(self.batch, frames, times=times, wirelens=wirelens)
        self.batch.seq = self.seq
        assert self.stage.step(self.batch) == len(packets)
        self.seq += 1

    def packets(self, packets: Sequence[bytes | tuple[bytes, float]]) -> None:
        most = self.geometry.max_packets
        for first in range(0, len(packets), most):
            self.block(packets[first : first + most])

    def take(self) -> np.ndarray:
        """Records that are published, FLOW[n]; they are released."""
        self.stage.tick()
        rows = self.reader.read(1 << 24)
        self.reader.release(len(rows))
        return rows

    def end(self) -> np.ndarray:
        """All records that have not been taken, those of flows that are left too."""
        found = [self.take()]
        while self.stage.flush():
            found.append(self.take())
        found.append(self.take())
        return np.concatenate(found) if found else np.zeros(0, FLOW)

    def count(self, name: str) -> int:
        live = next(c.live for c in COUNTERS if c.stage == "flows" and c.name == name)
        return int((self.around.live if live else self.around.counters)[index("flows", name)])


def meter(directory: Path, packets: Sequence[bytes | tuple[bytes, float]], **options: object) -> np.ndarray:
    """All records of these packets."""
    metering = Meter(directory, Options(**options))  # type: ignore[arg-type]
    metering.packets(packets)
    return metering.end()
