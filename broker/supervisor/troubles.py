"""What is wrong with inputs, groups and exports though every worker is up, in words. Read from shared memory alone, so whoever asks, with a
supervisor or without one, in whatever network namespace, reads what the workers have seen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.core.flow_ring import read_exports
from broker.core.layout import SOURCE_ABSENT, SOURCE_DOWN, SOURCE_FAILED, SOURCE_NO_LINK, TOOL_DEAD
from broker.core.metrics import index
from broker.core.model import Config
from broker.core.shm import Pipeline

_SOURCE_TROUBLE = index("capture", "source_trouble")
_OF_INTERFACE = {
    SOURCE_ABSENT: "there is no interface {}",
    SOURCE_DOWN: "interface {} is down",
    SOURCE_NO_LINK: "interface {} has no link",
}


def troubles(config: Config, pipeline: Pipeline) -> list[str]:
    return [
        *input_troubles(config, pipeline),
        *group_troubles(config, pipeline.tool_state),
        *export_troubles(config, pipeline.directory),
    ]


def input_troubles(config: Config, pipeline: Pipeline) -> Iterator[str]:
    """Inputs of which nothing can come: the interface is missing, down or without a link, or a file could not be read to its end."""
    captures = [lane.live[0] for lane in pipeline.lanes]
    for one in config.inputs:
        found = {int(live[_SOURCE_TROUBLE + one.slot]) for live in captures}
        if SOURCE_FAILED in found:
            said = source_errors(pipeline.directory)
            reasons = [line for line in said if line.startswith(tuple(f"{file}: " for file in one.files))]
            yield from (f"input {one.name}: {reason}" for reason in reasons or ["a file could not be read to its end"])
        for trouble, text in _OF_INTERFACE.items():
            if trouble in found:
                yield f"input {one.name}: {text.format(one.interface)}"
                break


def group_troubles(config: Config, tool_state: NDArray[np.int64]) -> list[str]:
    """Groups of which no member answers. `tool_state`: int64[TOOLS], TOOL_*."""
    dead = {tool.name for tool in config.tools if tool_state[tool.slot] == TOOL_DEAD}
    return [f"group {g.name}: all members are dead: {', '.join(g.members)}" for g in config.groups if dead.issuperset(g.members)]


def export_troubles(config: Config, directory: Path) -> Iterator[str]:
    """Where records are dropped, or wait because the last attempt to hand some over was refused."""
    if config.flows is None:
        return
    for row in read_exports(directory):
        if row["errors"] and not row["connected"] and int(row["waiting_records"]):
            what = "the store of flow records" if row["name"] == "store" else f"export {row['name']}"
            yield f"{what} refuses: {int(row['waiting_records']):,} records wait"
        if row["refusing"]:
            yield f"there is no room for flow records: {int(row['dropped_records']):,} are dropped by now"


def dropped_records(exports: Iterable[dict[str, int | str]]) -> list[str]:
    """What each export, and the store, has dropped. Counted, so no fault of the run: as packets that a tool did not take."""
    return [
        f"{row['name']}: {int(row['dropped_records']):,} flow records were dropped, of {int(row['dropped_packets']):,} packets"
        for row in exports
        if row["dropped_records"]
    ]


def source_errors(directory: Path) -> list[str]:
    """What the sources found wrong with their files: `FILE: byte N: reason`, a line each."""
    with contextlib.suppress(FileNotFoundError):
        return (directory / "source-error").read_text(errors="replace").splitlines()
    return []
