"""What the tests of encapsulate and send stand on: a block on the heap filled by hand, and a worker's surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from broker.core import layout
from broker.core.batch import Batch, heap_batch
from broker.core.layout import Geometry
from broker.core.metrics import COUNTERS, N_COUNTERS, index
from broker.core.model import Backend, Config, Input, Lane, Tool, Tunnel
from broker.core.stage import Context, Generation
from stages import memory
from stages.encapsulate.stage import Encapsulate
from stages.jit import PLAIN
from stages.send import libc
from stages.send.egress import SENDING
from stages.send.formats import PcapNg
from stages.send.stage import Send

SMALL = Geometry(n_blocks=4, max_packets=256, max_frames=512, header_bytes=512 * 80, data_bytes=layout.MAX_FRAME_BYTES)
NOON_NS = 1_700_000_000_123_456_789


@dataclass
class Surroundings:
    """A context and the memory that its addresses point to. `tickets` and `sequences` may be shared by several workers."""

    geometry: Geometry = SMALL
    worker: int = 0
    n_workers: int = 1
    epoch: int = 1
    lane: int = 0
    lanes_total: int = 1
    inputs: tuple[Input, ...] = (Input("span0", "afpacket"),)
    counters: np.ndarray = field(default_factory=lambda: np.zeros(N_COUNTERS, np.int64))
    live: np.ndarray = field(default_factory=lambda: np.zeros(N_COUNTERS, np.int64))
    tickets: np.ndarray = field(default_factory=lambda: np.zeros(2 * SMALL.n_blocks, layout.TICKET))
    sequences: np.ndarray = field(default_factory=lambda: np.zeros(layout.TOOLS, np.int64))
    progress: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    @property
    def context(self) -> Context:
        def at(array: np.ndarray) -> int:
            return int(array.ctypes.data)

        return Context(
            Path("/nonexistent"), Lane(self.lane, self.inputs), self.worker, self.n_workers, self.geometry, self.epoch,
            self.counters, at(self.counters), self.live, at(self.live), at(self.sequences), at(self.tickets), at(self.progress),
            self.lanes_total,
        )  # fmt: skip

    def count(self, stage: str, name: str, slot: int) -> int:
        return int(self.counters[index(stage, name) + slot])

    def drops(self, stage: str, slot: int) -> dict[str, int]:
        """Frames dropped, by reason; reasons that did not occur are left out."""
        rows = [c.name for c in COUNTERS if c.stage == stage and c.name.startswith("dropped_")]
        return {name.removeprefix("dropped_"): n for name in rows if (n := self.count(stage, name, slot))}


def generation(*tools: Tool, number: int = 1) -> Generation:
    return Generation(number, Config("test", (), tools, ()), np.zeros(1, np.uint8), 0)


def gre_tool(
    slot: int = 0, kind: Any = "gre", remote: str = "192.0.2.9", file: str = "", *, backend: Backend = "socket", **options: Any
) -> Tool:
    return Tool(f"tool{slot}", slot, Tunnel(kind, remote, **options), file, backend=backend)


def file_tool(slot: int, path: Path | str) -> Tool:
    return Tool(f"file{slot}", slot, None, str(path))


def fill(
    batch: Batch,
    packets: Sequence[bytes],
    verdicts: Sequence[int] | int = 1,
    *,
    flows: Sequence[int] | None = None,
    times: Sequence[int] | None = None,
    wirelens: Sequence[int] | None = None,
) -> None:
    """What capture and filter would have left. A verdict is a mask of slots as a plain integer, bit 63 included."""
    at = 0
    for i, packet in enumerate(packets):
        batch.data[at : at + len(packet)] = np.frombuffer(packet, np.uint8)
        mask = verdicts if isinstance(verdicts, int) else verdicts[i]
        batch.packets[i] = (times[i] if times else NOON_NS + i, at, len(packet), wirelens[i] if wirelens else len(packet), 0, 0)
        batch.verdicts[i] = (mask - (1 << 64) if mask >> 63 else mask, flows[i] if flows else 0x9E3779B1 * i & 0xFFFF_FFFF, 0, 0)
        at += len(packet)
    batch.block["n_packets"], batch.block["data_used"] = len(packets), at


def frames(batch: Batch) -> list[tuple[int, int, bytes, bytes]]:
    """(packet, tool, outer header, window) of each frame in the block."""
    found = []
    for row in batch.frames[: int(batch.block["n_frames"][0])]:
        header = batch.headers[int(row["header_at"]) : int(row["header_at"]) + int(row["header_len"])].tobytes()
        window = batch.windows[int(row["data_at"]) : int(row["data_at"]) + int(row["data_len"])].tobytes()
        found.append((int(row["packet"]), int(row["tool"]), header, window))
    return found


def payload(n_bytes: int, seed: int = 0) -> bytes:
    """Bytes that are all different enough for a checksum to notice any change."""
    return bytes((seed * 31 + i * 167 + (i >> 8) * 13) & 0xFF for i in range(n_bytes))


def new_batch(geometry: Geometry = SMALL) -> Batch:
    return heap_batch(geometry)


def small(**sizes: int) -> Geometry:
    return replace(SMALL, **sizes)


def allow_arrays(*arrays: np.ndarray, slack: int = 0) -> None:
    """Let kernels that run as plain Python touch these, and `slack` bytes after each; nothing when they are compiled."""
    if PLAIN:
        for array in arrays:
            memory.allow(int(array.ctypes.data), array.nbytes + slack)


def allow_batch(batch: Batch) -> None:
    allow_arrays(batch._place, batch.block, batch.packets, batch.verdicts, batch.frames)
    allow_arrays(batch.headers, batch.windows, slack=layout.SLACK)


def allow_encapsulate(stage: Encapsulate, s: Surroundings) -> None:
    assert stage._ways is not None
    allow_arrays(
        s.counters,
        s.tickets,
        s.sequences,
        stage._numbers,
        stage._templates,
        stage._plan,
        stage._scratch,
        stage._shedding.shares,
        *stage._ways.arrays,
    )


def encapsulate(batch: Batch, *tools: Tool) -> None:
    """Frames as the stage before leaves them; numbers begin at 0."""
    stage = Encapsulate()
    surroundings = Surroundings(replace(SMALL, max_frames=batch.max_frames))  # lives until the end: the stage has its addresses only
    stage.open(surroundings.context)
    stage.load(generation(*tools))
    allow_batch(batch)
    allow_encapsulate(stage, surroundings)
    seq, batch.seq = batch.seq, 0
    stage.step(batch)
    batch.seq = seq


senders: list[Sender] = []
"""Those that tests/stages/send/conftest.py has to close."""


class Sender:
    """A send worker, and the sum that must close after each block: framed = delivered + dropped."""

    def __init__(self, *tools: Tool, surroundings: Surroundings | None = None) -> None:
        self.surroundings = surroundings or Surroundings()
        self.stage = Send()
        senders.append(self)
        self.stage.open(self.surroundings.context)
        self.tools: tuple[Tool, ...] = ()
        self.generation = 0
        self.load(*tools)

    def load(self, *tools: Tool) -> None:
        self.tools = tools
        self.generation += 1
        self.stage.load(generation(*tools, number=self.generation))

    def step(self, batch: Batch, *, check: bool = True) -> None:
        s, stage = self.surroundings, self.stage
        allow_batch(batch)
        allow_arrays(s.counters, s.progress, stage._mine, stage._rows, stage._counts, stage._found, stage._sort)
        allow_arrays(stage._scratch.job, stage._scratch.messages, stage._scratch.buffer, stage._scratch.ends, stage._scratch.lens, SENDING)
        allow_arrays(*stage._scratch.runs.arrays)
        allow_arrays(*(fds for egress in stage._egresses.values() if (fds := getattr(egress, "_fds", None)) is not None))
        for made in (getattr(egress, "format", None) for egress in stage._egresses.values()):
            if isinstance(made, PcapNg):
                allow_arrays(made.interfaces)
        if PLAIN:
            memory.allow(libc.errno_location(), 4)
        before = [self.accounted(slot) for slot in range(layout.TOOLS)]
        stage.step(batch)
        for slot in range(layout.TOOLS) if check else ():
            rows = batch.frames[: int(batch.block["n_frames"][0])]
            mine = int(np.count_nonzero((rows["tool"] == slot) & (rows["share"] % s.n_workers == s.worker)))
            assert self.accounted(slot) - before[slot] == mine, (slot, s.drops("send", slot))

    def accounted(self, slot: int) -> int:
        return self.delivered(slot) + sum(self.surroundings.drops("send", slot).values())

    def delivered(self, slot: int = 0) -> int:
        return self.surroundings.count("send", "delivered_frames", slot)

    def drops(self, slot: int = 0) -> dict[str, int]:
        return self.surroundings.drops("send", slot)

    def count(self, name: str, slot: int = 0) -> int:
        return self.surroundings.count("send", name, slot)
