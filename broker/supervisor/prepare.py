"""Before the first worker: is there a pipeline of this name already, is there room, and making it."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.config.lanes import flow_sizes, geometry, lanes
from broker.core.errors import PipelineError, TapmeshError, VersionError
from broker.core.flow_layout import flow_offsets
from broker.core.flow_ring import create_exports, create_flows, left_of
from broker.core.generations import read_generation
from broker.core.model import Config
from broker.core.rule_counts import file_bytes
from broker.core.shm import Pipeline, bytes_needed, create_pipeline, open_pipeline, pipeline_directory, remove_pipeline, shared_memory_root
from broker.supervisor.companions import end_all
from broker.supervisor.descriptors import check_descriptors
from broker.supervisor.lock import AlreadyRunningError, hold
from broker.supervisor.numbers import keep_of_dead
from broker.supervisor.processes import attach, find

MIB = 1024 * 1024
POLICY_BYTES = 8 * MIB
"""Left free for the policies that come with reloads."""


@dataclass(frozen=True)
class Running:
    """A pipeline that an earlier supervisor has left working."""

    pipeline: Pipeline
    config: Config  # of its present generation
    pids: dict[int, str]


def look(name: str, log: Any) -> Running | None:
    """The running pipeline of that name; what a dead one has left behind is removed. The lock must be held.

    PipelineError when processes run on memory that cannot be read; VersionError when it is another version's.
    """
    directory = pipeline_directory(name)
    if not directory.exists():
        return None
    pids = find(name)
    if not pids:
        end_all(name)
        keep_of_dead(name)
        lost = _flows_of_dead(name)
        remove_pipeline(name)
        log.warning("left_overs_removed", directory=str(directory), **lost)
        return None
    try:
        pipeline = open_pipeline(name)
        generation = int(pipeline.header[0]["generation"])
        if generation:
            return Running(pipeline, read_generation(directory, generation).config, pids)
    except (PipelineError, OSError) as error:
        kind = VersionError if isinstance(error, VersionError) else PipelineError
        raise kind(f"{error}; its processes are running (pids {', '.join(map(str, sorted(pids)))})") from None
    # Its supervisor died before any worker could be started: only an idle host can be there.
    clear(name)
    log.warning("left_overs_removed", directory=str(directory), pids=sorted(pids))
    return None


def _flows_of_dead(name: str) -> dict[str, int]:
    """What is lost of flows with its memory; nothing if nobody can tell."""
    with contextlib.suppress(PipelineError):
        left = left_of(open_pipeline(name))
        if left.flows or left.records:
            return {"lost_flows": left.flows, "lost_records": left.records, "lost_packets": left.packets}
    return {}


def clear(name: str) -> None:
    """kill -9 every process of the pipeline and remove its memory."""
    held = [process for pid in find(name) if (process := attach(pid, name))]
    for process in held:
        process.send(9)
    for process in held:
        process.wait(5.0)
        process.close()
    end_all(name)
    remove_pipeline(name)


def sweep(prefix: str) -> None:
    """Remove what replays that were killed have left: pipelines named `prefix` and a pid that is no more."""
    for directory in shared_memory_root().glob(f"tapmesh-{prefix}*"):
        name = directory.name.removeprefix("tapmesh-").removesuffix(".lock")
        pid = name.removeprefix(prefix)
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(AlreadyRunningError), hold(name):
                clear(name)


def create(name: str, config: Config) -> Pipeline:
    """The shared memory for `config`, its counters zero, no generation yet. TapmeshError in words when there is no room."""
    plan = lanes(config)
    geometries = [geometry(config, lane) for lane in plan]
    rules = file_bytes(sum(len(m.rules) for m in config.maps), len(plan), config.stages.filter)
    metered = [sizes for g in geometries if (sizes := flow_sizes(config, g))]
    flows = sum(flow_offsets(sizes).file_bytes for sizes in metered)
    check_descriptors(len(config.tools), sum(len(g.workers) for g in geometries))
    check_room(shared_memory_root(), bytes_needed(geometries) + flows + 2 * rules, len(plan), config, flows)  # twice while a reload goes on
    try:
        pipeline = create_pipeline(name, geometries)
        for lane, sizes in enumerate(metered):
            create_flows(pipeline.directory, lane, sizes)
        if metered:
            create_exports(pipeline.directory)
    except PipelineError:
        remove_pipeline(name)
        raise
    pipeline.header[0]["supervisor_pid"] = os.getpid()
    return pipeline


def refuse_overwriting(config: Config) -> None:
    """TapmeshError when a tool's file is a file that is played, or another tool's, under whatever name: opening it would empty it."""
    known = {i: f"input {source.name!r} plays it" for source in config.inputs for path in source.files if (i := _identity(path))}
    for tool in config.tools:
        this = _identity(tool.file)
        if this and this in known:
            raise TapmeshError(f"tool {tool.name!r}: {tool.file} would be overwritten, but {known[this]}")
        if this:
            known[this] = f"tool {tool.name!r} writes it"


def _identity(path: str) -> tuple[int, int] | None:
    """(device, inode) of a regular file that exists."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return (about.st_dev, about.st_ino) if stat.S_ISREG(about.st_mode) else None


def check_room(root: Path, needed: int, n_lanes: int, config: Config, n_flow_bytes: int = 0) -> None:
    """Refuse what does not fit before a single byte of it is taken: others live in this memory too. `n_flow_bytes` of it are for flows."""
    try:
        space = os.statvfs(root)
    except OSError as error:
        raise TapmeshError(f"{root}: {error.strerror}: shared memory is needed there; or set TAPMESH_SHM to another tmpfs") from None
    free = space.f_bavail * space.f_frsize
    if free < needed + POLICY_BYTES:
        flows = f"{n_flow_bytes / MIB:,.0f} MiB of flows, " if config.flows else ""
        smaller = "flows.max_flows or flows.records" if 2 * n_flow_bytes > needed else "ring.blocks or ring.block_bytes"
        raise TapmeshError(
            f"{root} has {free / MIB:,.0f} MiB free, the pipeline needs {(needed + POLICY_BYTES) / MIB:,.0f} MiB "
            f"({n_lanes} lane{'s' if n_lanes != 1 else ''} of {config.ring.blocks} blocks, {flows}and room for policies): "
            f"make {smaller} smaller, or enlarge it: mount -o remount,size=SIZE {root}"
        )
