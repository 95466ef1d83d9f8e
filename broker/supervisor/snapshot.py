"""A consistent picture of a running pipeline, taken from outside without stopping it.

Each worker's cursor and counters are read together (`ring.read_counters`), send first and capture last, so that a block counted by one
stage is never missing in the stage before. The blocks between the cursors are *measured*: their packets, verdict bits and frames are
counted in the ring itself. If capture has begun to refill one of them meanwhile, all of it is read again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from broker.config.deliveries import deliveries, slot_name, tool_of
from broker.core import layout
from broker.core.batch import Batch
from broker.core.flow_ring import read_exports
from broker.core.layout import TOOLS, Geometry
from broker.core.model import Config
from broker.core.ring import read_counters
from broker.core.senders import Sender, read_senders
from broker.core.shm import LaneMemory, Pipeline, stride
from broker.supervisor.plan import WorkerId
from broker.supervisor.rule_counts import RuleCount, RuleReader

Counts = NDArray[np.int64]
LIMIT_S = 0.5
"""A ring that turns over faster than it can be read is tried for so long."""


@dataclass(frozen=True)
class Names:
    """What the slots in shared memory are called, by the configurations that have been in force."""

    inputs: Mapping[int, str] = field(default_factory=dict)
    maps: Mapping[int, str] = field(default_factory=dict)
    tools: Mapping[int, str] = field(default_factory=dict)

    def of(self, per: str, slot: int) -> str:
        named: Mapping[int, str] = {"input": self.inputs, "map": self.maps, "tool": self.tools}[per]
        return named.get(slot, f"{per} slot {slot}")

    def known(self, per: str) -> Mapping[int, str]:
        known: Mapping[int, str] = {"input": self.inputs, "map": self.maps, "tool": self.tools}[per]
        return known


def names_of(config: Config, before: Names | None = None) -> Names:
    """Names of `config`, and of what configurations before it have left in the counters."""
    before = before or Names()
    return Names(
        {**before.inputs, **{i.slot: i.name for i in config.inputs}},
        {**before.maps, **{m.slot: m.name for m in config.maps}},
        {**before.tools, **{d.slot: slot_name(config, d) for d in deliveries(config)}},
    )


@dataclass(frozen=True)
class WorkerSnapshot:
    id: WorkerId
    cursor: int
    counters: Counts  # int64[N_COUNTERS], committed with `cursor`
    live: Counts  # int64[N_COUNTERS]
    pid: int
    state: int
    epoch: int
    generation: int
    heartbeat_ns: int
    error: int


@dataclass(frozen=True)
class LaneSnapshot:
    number: int
    workers: tuple[WorkerSnapshot, ...]
    unjudged_packets: int = 0  # published by capture, not by filter
    unframed: Counts = field(default_factory=lambda: np.zeros(TOOLS, np.int64))  # verdict bits that encapsulate has not published
    unsent: Counts = field(default_factory=lambda: np.zeros(TOOLS, np.int64))  # frames that their send worker has not published
    blocks_in_use: int = 0
    n_blocks: int = 0
    trouble: str = ""  # why the ring could not be measured; its ledger is void then
    unmetered_packets: int = 0  # published by capture, not by the flows stage, if there is one


@dataclass(frozen=True)
class Snapshot:
    name: str
    generation: int
    taken_ns: int  # CLOCK_MONOTONIC
    names: Names
    lanes: tuple[LaneSnapshot, ...]
    rules: tuple[RuleCount, ...] = ()  # of all maps in force; empty unless asked for
    senders: tuple[Sender, ...] = ()  # of tunnel inputs
    tool_state: Counts = field(default_factory=lambda: np.zeros(TOOLS, np.int64))  # TOOL_*
    exports: tuple[dict[str, int | str], ...] = ()  # of flow records, fields of EXPORT; that of the store is called so

    @property
    def alive(self) -> dict[str, bool]:
        """Of the tools that are asked whether they are there, in the order of their slots."""
        known = {layout.TOOL_ALIVE: True, layout.TOOL_DEAD: False}
        states = ((name, int(self.tool_state[slot])) for slot, name in sorted(self.names.tools.items()) if tool_of(name) == name)
        return {name: known[state] for name, state in states if state in known}

    def workers(self, kind: str) -> list[WorkerSnapshot]:
        return [w for lane in self.lanes for w in lane.workers if w.id.kind == kind]


class Reader:
    """Takes pictures of one pipeline. Needs nothing but the mapped memory, for rules also the files of the generations; any number of
    readers may do so at any time."""

    def __init__(self, pipeline: Pipeline, rules: RuleReader | None = None) -> None:
        self.pipeline = pipeline
        self._rules = rules or RuleReader(pipeline)
        self._batches = [[memory.batch(slot) for slot in range(memory.geometry.n_blocks)] for memory in pipeline.lanes]

    def take(self, names: Names, *, rules: bool = False, rings: bool = True) -> Snapshot:
        """PipelineError when a table of senders is damaged, or, with `rules`, a file of a generation is missing or damaged. Without
        `rings` only what was counted is read, which takes no time to speak of: nothing is known of what is in flight then."""
        lanes = tuple(self._take_lane(i) if rings else self._count_lane(i) for i in range(len(self.pipeline.lanes)))
        generation, now = int(self.pipeline.header[0]["generation"]), time.monotonic_ns()
        counted = self._rules.take() if rules else ()
        senders = tuple(read_senders(self.pipeline.directory, len(lanes)))
        tools, exports = self.pipeline.tool_state.copy(), read_exports(self.pipeline.directory)
        return Snapshot(self.pipeline.name, generation, now, names, lanes, counted, senders, tools, exports)

    def _take_lane(self, lane: int) -> LaneSnapshot:
        memory, batches = self.pipeline.lanes[lane], self._batches[lane]
        give_up_ns = time.monotonic_ns() + int(LIMIT_S * 1e9)
        while True:
            found = _measure(memory, batches, _read_workers(memory))
            if not found.trouble or time.monotonic_ns() > give_up_ns:
                return found

    def _count_lane(self, lane: int) -> LaneSnapshot:
        memory = self.pipeline.lanes[lane]
        return LaneSnapshot(memory.number, _read_workers(memory), n_blocks=memory.geometry.n_blocks)


def _read_workers(memory: LaneMemory) -> tuple[WorkerSnapshot, ...]:
    read = []
    ids = memory.geometry.workers
    for row_index in reversed(range(len(ids))):
        cursor, counters = read_counters(memory, row_index)
        row = memory.workers[row_index].copy()
        read.append(
            WorkerSnapshot(
                WorkerId(memory.number, *ids[row_index]),
                cursor,
                counters,
                memory.live[row_index].copy(),
                *(int(row[name]) for name in ("pid", "state", "epoch", "generation", "heartbeat_ns", "error")),
            )
        )
    return tuple(reversed(read))


def passed(geometry: Geometry, cursors: list[int], kind: str, seq: int) -> bool:
    """Every worker of `kind` that touches block `seq` has published it."""
    first = geometry.row(kind, 0)
    n = geometry.count(kind)
    if stride(geometry, kind) > 1:
        return cursors[first + seq % n] > seq
    return all(cursors[first + w] > seq for w in range(n))


def behind(geometry: Geometry, cursors: list[int], kind: str, worker: int) -> bool:
    """The block at this worker's cursor is ready for it; for capture always False."""
    if kind == "capture":
        return False
    (before,) = geometry.before(kind)
    return passed(geometry, cursors, before, cursors[geometry.row(kind, worker)])


def _measure(memory: LaneMemory, batches: list[Batch], workers: tuple[WorkerSnapshot, ...]) -> LaneSnapshot:
    g = memory.geometry
    cursors = [w.cursor for w in workers]
    first_send = g.row("send", 0)
    head, tail = cursors[0], min(cursors[first_send:])
    unjudged = unmetered = 0
    metered_to = cursors[g.row("flows", 0)] if g.n_flows else head
    unframed, unsent = np.zeros(TOOLS, np.int64), np.zeros(TOOLS, np.int64)
    trouble = "" if 0 <= head - tail <= g.n_blocks else f"cursors {tail} to {head} span more than {g.n_blocks} blocks"
    for seq in range(tail, head) if not trouble else ():
        batch = batches[seq % g.n_blocks]
        n_packets, n_frames = (int(batch.block[0][name]) for name in ("n_packets", "n_frames"))
        if not 0 <= n_packets <= g.max_packets:
            trouble = f"block {seq} claims {n_packets} packets of {g.max_packets}"
            continue
        unmetered += n_packets if seq >= metered_to else 0
        if not passed(g, cursors, "filter", seq):
            unjudged += n_packets
        elif not passed(g, cursors, "encapsulate", seq):
            unframed += _count_bits(batch.verdicts["verdict"][:n_packets].copy())
        elif not 0 <= n_frames <= g.max_frames:
            trouble = f"block {seq} claims {n_frames} frames of {g.max_frames}"
        else:
            frames = batch.frames[:n_frames].copy()
            waiting = np.array([cursor <= seq for cursor in cursors[first_send:]])
            tools = frames["tool"][waiting[frames["share"] % g.n_send]]
            unsent += np.bincount(tools % TOOLS, minlength=TOOLS)
    if not trouble and head > tail and _refilled(memory, tail):
        trouble = "the ring turns over faster than it can be read"
    return LaneSnapshot(memory.number, workers, unjudged, unframed, unsent, max(0, head - tail), g.n_blocks, trouble, unmetered)


def _refilled(memory: LaneMemory, tail: int) -> bool:
    """Capture may have begun to write over block `tail`: it stands a lap ahead of it, and all send workers have let go of it."""
    g = memory.geometry
    if int(memory.workers[0]["cursor"]) < tail + g.n_blocks:
        return False
    return bool((memory.workers["cursor"][g.row("send", 0) :] > tail).all())


def _count_bits(verdicts: Counts) -> Counts:
    """How many of `verdicts` have each bit set."""
    counts = np.zeros(TOOLS, np.int64)
    any_set = int(np.bitwise_or.reduce(verdicts)) if len(verdicts) else 0
    for tool in range(TOOLS):
        if any_set >> tool & 1:
            counts[tool] = np.count_nonzero(verdicts >> tool & 1)
    return counts
