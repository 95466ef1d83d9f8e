"""The exporter's end of the records of one lane, and the rows of `exports`: what lies where says `flow_layout`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.core import flow_layout as layout
from broker.core.errors import PipelineError
from broker.core.flow_layout import FlowSizes
from broker.core.shm import Pipeline, map_file

Rows = NDArray[np.void]


def flows_path(directory: Path, lane: int) -> Path:
    return directory / f"flows-{lane}"


def create_flows(directory: Path, lane: int, sizes: FlowSizes) -> None:
    """Reserve the file of a lane, all flows free. PipelineError in words when there is no room."""
    offsets = layout.flow_offsets(sizes)
    memory = map_file(flows_path(directory, lane), size=offsets.file_bytes, create=True)
    header = memory[: layout.FLOWS.itemsize].view(layout.FLOWS)[0]
    header["version"], header["lane"], header["file_bytes"] = layout.FLOWS_VERSION, lane, offsets.file_bytes
    header["max_flows"], header["n_index"], header["n_names"] = sizes.max_flows, sizes.n_index, sizes.n_names
    header["n_undo"], header["n_records"] = sizes.n_undo, sizes.n_records
    header["magic"] = layout.FLOWS_MAGIC


class FlowMemory:
    """The mapped file of one lane. PipelineError: missing, damaged, or of another version.

    | name | dtype[shape] |
    |---|---|
    | header | FLOWS[1] |
    | entries | ENTRY[max_flows] |
    | names | NAME[n_names] |
    | records | FLOW[n_records] |
    """

    def __init__(self, directory: Path, lane: int, block_packets: int) -> None:
        path = flows_path(directory, lane)
        self.memory = memory = map_file(path)
        if memory.nbytes < layout.FLOWS.itemsize:
            raise PipelineError(f"{path}: {memory.nbytes} bytes are too few for a table of flows")
        self.header = memory[: layout.FLOWS.itemsize].view(layout.FLOWS)
        head = self.header[0]
        if int(head["magic"]) != layout.FLOWS_MAGIC or int(head["version"]) != layout.FLOWS_VERSION:
            raise PipelineError(f"{path}: not a table of flows of this version of tapmesh")
        self.sizes = sizes = FlowSizes(int(head["max_flows"]), int(head["n_names"]), int(head["n_records"]), block_packets)
        if min(sizes.max_flows, sizes.n_records) < 1 or max(sizes.max_flows, sizes.n_names, sizes.n_records) >= 1 << 24:
            raise PipelineError(f"{path}: sizes of {sizes.max_flows} flows and {sizes.n_records} records: damaged")
        self.offsets = o = layout.flow_offsets(sizes)
        if memory.nbytes != o.file_bytes or (int(head["n_index"]), int(head["n_undo"])) != (sizes.n_index, sizes.n_undo):
            raise PipelineError(f"{path}: {memory.nbytes} bytes, expected {o.file_bytes}")
        self.at = int(memory.ctypes.data)
        self.entries = memory[o.entries :][: sizes.max_flows * layout.ENTRY.itemsize].view(layout.ENTRY)
        self.names = memory[o.names :][: sizes.n_names * layout.NAME.itemsize].view(layout.NAME)
        self.records = memory[o.records :][: sizes.n_records * layout.FLOW.itemsize].view(layout.FLOW)


class RecordReader:
    """Takes the records of one lane: `read`, hand over, `release`. What was read and not released is read again by the next process."""

    def __init__(self, memory: FlowMemory) -> None:
        self._memory = memory
        self._row = memory.header[0]

    @property
    def waiting(self) -> int:
        return int(self._row["published"]) - int(self._row["taken"])

    def read(self, most: int) -> Rows:
        """A copy of the oldest `most` records, FLOW[n]; none: empty. What the flows stage writes meanwhile lies elsewhere: a record is
        overwritten only once it is released."""
        taken = int(self._row["taken"])
        n_records = self._memory.sizes.n_records
        n = min(most, max(0, int(self._row["published"]) - taken), n_records)
        first = taken % n_records
        head = self._memory.records[first : first + n]
        return np.concatenate([head, self._memory.records[: n - len(head)]]) if len(head) < n else head.copy()

    def release(self, n: int) -> None:
        self._row["taken"] += n


@dataclass(frozen=True)
class Left:
    """What is in the file of a lane and nowhere else."""

    flows: int = 0  # that have not ended
    records: int = 0  # that nobody has taken
    packets: int = 0  # of both

    def __add__(self, other: Left) -> Left:
        return Left(self.flows + other.flows, self.records + other.records, self.packets + other.packets)


def left_of(pipeline: Pipeline) -> Left:
    """When neither flows stages nor exporter are there any more: what is lost with the memory. PipelineError: it is damaged."""
    lanes = [lane for lane in pipeline.lanes if flows_path(pipeline.directory, lane.number).exists()]
    return sum((_left_in(FlowMemory(pipeline.directory, lane.number, lane.geometry.max_packets)) for lane in lanes), Left())


def _left_in(memory: FlowMemory) -> Left:
    row = memory.header[0]
    live = memory.entries["what"] != 0
    numbers = np.arange(int(row["taken"]), int(row["published"])) % memory.sizes.n_records
    packets = int(memory.entries["packets"][live].sum()) + int(memory.records["packets"][numbers].sum())
    return Left(int(live.sum()), len(numbers), packets)


COMPANIONS = ("export", "store")
"""The processes that have a heartbeat, in the order of `open_beats`."""


def exports_path(directory: Path) -> Path:
    return directory / "exports"


def create_exports(directory: Path) -> None:
    map_file(exports_path(directory), size=layout.EXPORT.itemsize * layout.EXPORTS, create=True)
    map_file(directory / "companions", size=8 * len(COMPANIONS), create=True)


def open_beats(directory: Path) -> NDArray[np.int64]:
    """int64[COMPANIONS], each written by its process alone: when it was last seen to go on, CLOCK_MONOTONIC in ns."""
    return map_file(directory / "companions").view("<i8")


def name_exports(directory: Path, names: Sequence[str]) -> None:
    """A row for each of `names`; one that has a row keeps it, with its counts. Rows of names that are gone are given away last."""
    rows = open_exports(directory)
    present = [name.decode() for name in rows["name"].tolist()]
    free = sorted((row for row, name in enumerate(present) if name not in names), key=lambda row: (bool(present[row]), row))
    for name in names:
        if name not in present:
            row = free.pop(0)
            rows[row] = np.zeros(1, layout.EXPORT)[0]
            rows[row]["name"] = name.encode()


def open_exports(directory: Path) -> Rows:
    """EXPORT[EXPORTS]; rows without a name are free."""
    return map_file(exports_path(directory)).view(layout.EXPORT)


def read_exports(directory: Path) -> tuple[dict[str, int | str], ...]:
    """What every export has counted, fields of EXPORT by name; none where nothing is metered."""
    if not exports_path(directory).exists():
        return ()
    rows = open_exports(directory).copy()
    names = rows.dtype.names or ()
    return tuple(
        {"name": row["name"].decode(errors="replace"), **{name: int(row[name]) for name in names[1:]}} for row in rows if row["name"]
    )
