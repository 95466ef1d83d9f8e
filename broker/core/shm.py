"""The files of a pipeline in shared memory: made, attached, removed. What lies where in them says `layout`.

Plain files that are mapped, never `multiprocessing.shared_memory`: before Python 3.13 a process that merely attaches to one and exits
unlinks it for everyone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.core import flow_layout, layout
from broker.core.batch import Batch
from broker.core.errors import PipelineError, VersionError
from broker.core.layout import Geometry
from broker.core.metrics import COUNTERS, N_COUNTERS

CONTROL_BYTES = 2 * layout.PAGE
_ROWS = (
    layout.PIPELINE, layout.LANE, layout.WORKER, layout.BLOCK, layout.PACKET, layout.VERDICT, layout.FRAME, layout.TICKET,
    flow_layout.FLOW, flow_layout.ENTRY, flow_layout.UNDO, flow_layout.NAME, flow_layout.STATE, flow_layout.FLOWS, flow_layout.EXPORT,
)  # fmt: skip
_GEOMETRY_FIELDS = (
    "n_blocks", "max_packets", "max_frames", "header_bytes", "data_bytes", "shaped_bytes", "n_filter", "n_encapsulate", "n_send",
    "n_flows", "flows_follow_filter",
)  # fmt: skip
_MAY_BE_NONE = ("shaped_bytes", "n_flows", "flows_follow_filter")


def shared_memory_root() -> Path:
    return Path(os.environ.get("TAPMESH_SHM", "/dev/shm"))  # noqa: S108 - a directory of ours with mode 0700 goes in it


def pipeline_directory(name: str) -> Path:
    """Where the pipeline `name` lives. Letters, digits, dot, dash and underscore only: it becomes part of a path."""
    if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
        raise PipelineError(f"pipeline name {name!r}: use letters, digits, '.', '-' and '_', not starting with '.'")
    return shared_memory_root() / f"tapmesh-{name}"


def map_file(path: Path, *, size: int = 0, create: bool = False, writable: bool = True) -> NDArray[np.uint8]:
    """The bytes of a file, mapped. `create` makes it with `size` bytes that are reserved now, so that no later store can hit a full disk.

    Raises PipelineError in words when the file is missing, not ours to read, or when there is no room.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL if create else (os.O_RDWR if writable else os.O_RDONLY)
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise PipelineError(f"{path}: {error.strerror}") from None
    try:
        if create:
            os.posix_fallocate(fd, 0, size)
        else:
            size = os.fstat(fd).st_size
        if size == 0:
            raise PipelineError(f"{path}: empty")
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return np.frombuffer(mmap.mmap(fd, size, access=access), np.uint8)
    except OSError as error:
        raise PipelineError(f"{path}: cannot reserve {size:,} bytes of shared memory: {error.strerror}") from None
    finally:
        os.close(fd)


class LaneMemory:
    """Views over one lane's file.

    | name | dtype[shape] |
    |---|---|
    | header | LANE[1] |
    | workers | WORKER[n_workers], in the order of `geometry.workers` |
    | committed | int64[n_workers, 2, N_COUNTERS] |
    | live | int64[n_workers, N_COUNTERS] |
    | tickets | TICKET[2 * n_blocks] |
    """

    def __init__(self, path: Path, memory: NDArray[np.uint8]) -> None:
        self.path = path
        self.memory = memory
        self.header = _checked_header(path, memory, layout.LANE, layout.LANE_MAGIC)
        head = self.header[0]
        self.number = int(head["lane"])
        self.geometry = Geometry(**{name: int(head[name]) for name in _GEOMETRY_FIELDS})
        _check_geometry(path, self.geometry)
        if int(head["n_counters"]) != N_COUNTERS:
            raise VersionError(f"{path}: made by another version of tapmesh ({head['n_counters']} counters, here {N_COUNTERS})")
        self._offsets = o = layout.lane_offsets(self.geometry, N_COUNTERS)
        if memory.nbytes != o.file_bytes or int(head["file_bytes"]) != o.file_bytes:
            raise PipelineError(f"{path}: {memory.nbytes} bytes, expected {o.file_bytes}")
        n = len(self.geometry.workers)
        self.workers = memory[o.workers : o.workers + n * layout.WORKER.itemsize].view(layout.WORKER)
        self.committed = memory[o.committed : o.committed + n * 2 * N_COUNTERS * 8].view(np.int64).reshape(n, 2, N_COUNTERS)
        self.live = memory[o.live : o.live + n * N_COUNTERS * 8].view(np.int64).reshape(n, N_COUNTERS)
        tickets_bytes = 2 * self.geometry.n_blocks * layout.TICKET.itemsize
        self.tickets = memory[o.tickets : o.tickets + tickets_bytes].view(layout.TICKET)
        base = int(memory.ctypes.data)
        self.workers_at, self.committed_at = base + o.workers, base + o.committed
        self.live_at, self.tickets_at = base + o.live, base + o.tickets

    def batch(self, slot: int) -> Batch:
        """Views over block `slot` (0 <= slot < n_blocks): keep them, they are costly to make."""
        size = self._offsets.block.block_bytes
        at = self._offsets.blocks + slot * size
        return Batch(self.memory[at : at + size], self.geometry)


@dataclass(slots=True)
class Pipeline:
    name: str
    directory: Path
    header: NDArray[np.void]  # PIPELINE[1]
    header_at: int
    tool_sequence: NDArray[np.int64]  # [TOOLS]
    tool_sequence_at: int
    tool_state: NDArray[np.int64]  # [TOOLS]
    lanes: list[LaneMemory]


def _checked_header(path: Path, memory: NDArray[np.uint8], dtype: np.dtype[np.void], magic: int) -> NDArray[np.void]:
    if memory.nbytes < dtype.itemsize:
        raise PipelineError(f"{path}: {memory.nbytes} bytes are too few for a tapmesh segment")
    header = memory[: dtype.itemsize].view(dtype)
    if int(header[0]["magic"]) != magic:
        raise PipelineError(f"{path}: not a tapmesh segment (magic {int(header[0]['magic']):#x}, not {magic:#x})")
    version = int(header[0]["version"])
    if version != layout.LAYOUT_VERSION:
        raise VersionError(f"{path}: layout version {version}, here {layout.LAYOUT_VERSION}: another version of tapmesh runs it")
    return header


@functools.cache
def drawing() -> int:
    """A digest of the rows that the memory is made of and of the counters in their order, 0 < n < 2**63."""
    rows = [(row.itemsize, str(row.fields)) for row in _ROWS]
    counters = [(c.stage, c.name, c.per, c.live) for c in COUNTERS]
    return int.from_bytes(hashlib.sha256(repr((rows, counters)).encode()).digest()[:7], "big") + 1


def _check_geometry(path: Path, g: Geometry) -> None:
    """Refuse sizes that would send an index out of the file before they are used as such."""
    limits = {"n_blocks": 1 << 16, "max_packets": 1 << 16, "max_frames": 1 << 22}
    limits |= dict.fromkeys(("header_bytes", "data_bytes", "shaped_bytes"), 1 << 30) | dict.fromkeys(("n_flows", "flows_follow_filter"), 1)
    for name in _GEOMETRY_FIELDS:
        value = getattr(g, name)
        if not (0 if name in _MAY_BE_NONE else 1) <= value <= limits.get(name, 1 << 10):
            raise PipelineError(f"{path}: {name} is {value}: damaged, or not a tapmesh lane")


def _control(directory: Path, memory: NDArray[np.uint8], lanes: list[LaneMemory]) -> Pipeline:
    path = directory / "control"
    header = _checked_header(path, memory, layout.PIPELINE, layout.PIPELINE_MAGIC)
    if memory.nbytes != CONTROL_BYTES:
        raise PipelineError(f"{path}: {memory.nbytes} bytes, expected {CONTROL_BYTES}")
    sequence = memory[layout.PAGE : layout.PAGE + 8 * layout.TOOLS].view(np.int64)
    state = memory[layout.PAGE + 8 * layout.TOOLS :][: 8 * layout.TOOLS].view(np.int64)
    base = int(memory.ctypes.data)
    name = directory.name.removeprefix("tapmesh-")
    return Pipeline(name, directory, header, base, sequence, base + layout.PAGE, state, lanes)


def bytes_needed(geometries: Sequence[Geometry]) -> int:
    """Shared memory that `create_pipeline` reserves, without the policies."""
    return CONTROL_BYTES + sum(layout.lane_offsets(g, N_COUNTERS).file_bytes for g in geometries)


def create_pipeline(name: str, geometries: Sequence[Geometry]) -> Pipeline:
    """Make the directory and its files, a lane for each geometry, counters zero. `control` appears last, whole: who sees it may attach."""
    directory = pipeline_directory(name)
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise PipelineError(f"{directory}: {error.strerror}") from None
    lanes = []
    for number, geometry in enumerate(geometries):
        offsets = layout.lane_offsets(geometry, N_COUNTERS)
        path = directory / f"lane-{number}"
        memory = map_file(path, size=offsets.file_bytes, create=True)
        header = memory[: layout.LANE.itemsize].view(layout.LANE)
        row = header[0]
        row["version"], row["lane"], row["n_counters"], row["file_bytes"] = layout.LAYOUT_VERSION, number, N_COUNTERS, offsets.file_bytes
        for field in _GEOMETRY_FIELDS:
            row[field] = getattr(geometry, field)
        row["magic"] = layout.LANE_MAGIC
        lane = LaneMemory(path, memory)
        for i, (kind, worker) in enumerate(geometry.workers):
            lane.workers[i]["cursor"] = worker if stride(geometry, kind) > 1 else 0
        lanes.append(lane)
    control = map_file(directory / ".control", size=CONTROL_BYTES, create=True)
    header = control[: layout.PIPELINE.itemsize].view(layout.PIPELINE)
    row = header[0]
    row["version"], row["created_ns"], row["n_lanes"] = layout.LAYOUT_VERSION, time.time_ns(), len(lanes)
    row["drawing"] = drawing()
    row["magic"] = layout.PIPELINE_MAGIC
    (directory / ".control").rename(directory / "control")
    return _control(directory, control, lanes)


def open_pipeline(name: str) -> Pipeline:
    """Attach to a running pipeline. PipelineError in words when there is none or it is not ours to understand."""
    directory = pipeline_directory(name)
    if not (directory / "control").exists():
        raise PipelineError(f"no pipeline {name!r} is running ({directory} has no control file)")
    control = map_file(directory / "control")
    header = _checked_header(directory / "control", control, layout.PIPELINE, layout.PIPELINE_MAGIC)
    if int(header[0]["drawing"]) != drawing():
        raise VersionError(f"{directory / 'control'}: its rows or counters are not those here: another version of tapmesh runs it")
    n_lanes = int(header[0]["n_lanes"])
    lanes = [LaneMemory(path, map_file(path)) for path in (directory / f"lane-{i}" for i in range(n_lanes))]
    return _control(directory, control, lanes)


def remove_pipeline(name: str) -> None:
    """Remove the directory and all in it. Whoever still maps the files keeps the memory until it lets go."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(pipeline_directory(name))


def stride(geometry: Geometry, kind: str) -> int:
    """Distance between the blocks of one worker: filter and encapsulate share blocks out, capture and every send worker visit all."""
    return geometry.count(kind) if kind in ("filter", "encapsulate") else 1
