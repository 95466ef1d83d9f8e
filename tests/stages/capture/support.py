"""A runner in small for the tests: steps a Capture on a heap batch, commits its counters as the ring does, and lets it die."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from broker.core.batch import heap_batch
from broker.core.layout import Geometry
from broker.core.metrics import COUNTERS, N_COUNTERS, index
from broker.core.model import Input, Lane
from broker.core.stage import Context
from stages.capture.errors import REPORT
from stages.capture.stage import Capture
from tests.libpcap import Record

SLOT = 5
LIVE = {c.name for c in COUNTERS if c.live}


def files(*paths: Path | str, pace: str = "max", name: str = "files", slot: int = SLOT) -> Input:
    return Input(name, "pcap", slot, files=tuple(str(path) for path in paths), pace=pace)


class Worker:
    """`committed` and `live` outlive a crash, as shared memory does."""

    def __init__(self, directory: Path, *inputs: Input, geometry: Geometry | None = None, lane: Lane | None = None) -> None:
        self.directory, self.lane = directory, lane or Lane(0, inputs)
        self.geometry = geometry or Geometry()
        self.batch = heap_batch(self.geometry)
        self.committed, self.live = np.zeros(N_COUNTERS, np.int64), np.zeros(N_COUNTERS, np.int64)
        self.records: list[Record] = []  # published
        self.flags: list[int] = []
        self.inputs: list[int] = []
        self.blocks: list[int] = []  # packets in each
        self.epoch = 0

    def start(self) -> Worker:
        self.epoch += 1
        self.counters = self.committed.copy()
        self.capture = Capture()
        context = Context(
            directory=self.directory,
            lane=self.lane,
            worker=0,
            n_workers=1,
            geometry=self.geometry,
            epoch=self.epoch,
            counters=self.counters,
            counters_at=int(self.counters.ctypes.data),
            live=self.live,
            live_at=int(self.live.ctypes.data),
            tool_sequence_at=0,
            tickets_at=0,
            progress_at=0,
        )
        self.capture.open(context)
        return self

    def step(self, *, publish: bool = True) -> int:
        """One step; what it gave is committed unless the worker is to die with it."""
        looked = self.capture.step(self.batch)
        if looked > 0 and publish:
            self.committed[:] = self.counters
            n_packets = int(self.batch.block["n_packets"][0])
            self.blocks.append(n_packets)
            for p in self.batch.packets[:n_packets]:
                at, caplen = int(p["data_at"]), int(p["caplen"])
                assert at + caplen <= int(self.batch.block["data_used"][0]) <= self.geometry.data_bytes
                self.records.append(Record(int(p["ts_ns"]), int(p["wirelen"]), self.batch.data[at : at + caplen].tobytes()))
                self.flags.append(int(p["flags"]))
                self.inputs.append(int(p["input"]))
            self.batch.seq += 1
        return looked

    def run(self) -> Worker:
        """Until the source has ended."""
        while not self.capture.finished:
            self.step()
        self.capture.close()
        return self

    def run_empty(self) -> None:
        """Until nothing more has come."""
        while self.step():
            pass

    def die(self) -> None:
        """kill -9 as far as this process can: the kernel closes what it had open."""
        if self.epoch:
            self.capture.close()

    def count(self, name: str, slot: int = SLOT) -> int:
        row = self.live if name in LIVE else self.committed
        return int(row[index("capture", name) + slot])

    @property
    def report(self) -> str:
        path = self.directory / REPORT
        return path.read_text() if path.exists() else ""


def read(directory: Path, *paths: Path | str, geometry: Geometry | None = None) -> Worker:
    """Everything that capture makes of the files."""
    return Worker(directory, files(*paths), geometry=geometry).start().run()
