"""Sequence numbers of tunnels over restarts of the broker.

RFC 2890 section 2.2 lets a receiver drop what comes with a number below the last one, and the kernel's gretap and erspan devices do: to
begin at 0 again would cost everything up to the number that was reached. So when shared memory is removed, the numbers that receivers see
are left in a small file beside it, by the names of the tools, and the next pipeline of that name begins there. A replay leaves and takes
nothing: it is to give the same frames every time. After a reboot the file is gone, and numbers begin at 0, as for a new tunnel.

Events: numbers_go_on, numbers_lost.

| when | the numbers are |
|---|---|
| the broker ends by itself or is stopped | those of the last frames |
| all its processes were killed | the same: the next start reads them from the memory that was left |
| a frame was numbered and never sent | skipped: to the receiver it is a loss, which it was |
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgpack

from broker.core import messages
from broker.core.errors import PipelineError, TapmeshError
from broker.core.generations import read_generation
from broker.core.model import Config, Tool
from broker.core.shm import Pipeline, open_pipeline, pipeline_directory

MOST_BYTES = 1 << 16
"""A name and a number for each tool."""
VERSION = 1
"""Of the file: `{version, tools: {name: number}}`, msgpack."""


def numbers_path(name: str) -> Path:
    directory = pipeline_directory(name)
    return directory.with_name(f"{directory.name}.numbers")


def keep(pipeline: Pipeline, config: Config) -> None:
    """Leave the numbers of the tools of `config`, and of no others. OSError when there is no room."""
    numbers = {tool.name: int(pipeline.tool_sequence[tool.slot]) for tool in config.tools if _is_numbered(tool)}
    path = numbers_path(pipeline.name)
    if not numbers:
        path.unlink(missing_ok=True)
        return
    scratch = path.with_suffix(".numbers-new")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(msgpack.packb({"version": VERSION, "tools": numbers}))
        scratch.rename(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def keep_of_dead(name: str) -> None:
    """The same for what a broker has left that was killed with all its processes. What cannot be understood is left out."""
    with contextlib.suppress(PipelineError, OSError):
        pipeline = open_pipeline(name)
        if generation := int(pipeline.header[0]["generation"]):
            keep(pipeline, read_generation(pipeline.directory, generation, rules=False).config)


def restore(pipeline: Pipeline, config: Config, log: Any) -> None:
    """Before any worker starts. A file that is damaged, or another version's, is told and not believed."""
    path = numbers_path(pipeline.name)
    try:
        content = messages.unpack_map(messages.read_file(path, MOST_BYTES), version=int, tools=dict)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, here {VERSION}")
        numbers = content["tools"]
        found = {tool.slot: int(numbers.get(tool.name, 0)) for tool in config.tools if _is_numbered(tool)}
        for slot, number in found.items():
            pipeline.tool_sequence[slot] = number
    except FileNotFoundError:
        return
    except (TapmeshError, ValueError, TypeError, OverflowError) as error:
        log.warning("numbers_lost", file=str(path), reason=str(error) or type(error).__name__)
        return
    log.info("numbers_go_on", tools=len(found))


def _is_numbered(tool: Tool) -> bool:
    """Does a receiver see its numbers? (Over IPv4 they are in the identification too, which may be anything.)"""
    return tool.tunnel is not None and not tool.file and (tool.tunnel.sequence or tool.tunnel.kind in ("erspan2", "erspan3"))
