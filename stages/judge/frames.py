"""What would be sent of one packet: the encapsulate stage over a block that holds nothing else.

The bytes are those that the wire would carry, as in a tool's file: the source address is the one that the route says, and UDP checksums
over IPv6, which on sockets the kernel makes, are made. Of what depends on the traffic before it, a frame is the first of its tool: its
sequence number and IPv4 identification are 0. A generation that a header tells is the judge's own number of the policy: 1, as in a replay.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from broker.core import layout
from broker.core.batch import Batch, heap_batch
from broker.core.layout import Geometry
from broker.core.metrics import COUNTERS, index
from broker.core.model import Config, Lane, Tool
from broker.core.stage import Generation
from stages.encapsulate.routes import addresses
from stages.encapsulate.stage import Encapsulate
from stages.encapsulate.templates import HEADER_ROOM
from stages.judge.policy import Alone

_FRAMES = 64 * layout.TOOLS  # a super-frame is cut into as many
GEOMETRY = Geometry(
    max_packets=1, max_frames=_FRAMES, header_bytes=_FRAMES * 2 * HEADER_ROOM, shaped_bytes=layout.TOOLS * layout.MAX_FRAME_BYTES
)


_DROPS = tuple(c.name for c in COUNTERS if c.stage == Encapsulate.KIND and c.name.startswith("dropped_"))


def one_packet_batch() -> Batch:
    return heap_batch(GEOMETRY)


def frames(batch: Batch, generation: Generation) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """`batch`: of `one_packet_batch`, judged. The frames, and of the tools that get none, or fewer, the counter that says why. `data_at` of
    a frame is -1 where its bytes are not as they were in the packet."""
    config = generation.config
    stage = Encapsulate()
    alone = Alone(Path(), Lane(0, config.inputs), GEOMETRY)
    stage.open(alone.context)
    stage.load(replace(generation, config=_in_files(config)))
    batch.seq = 0
    stage.step(batch)
    stage.close()
    names = {tool.slot: tool.name for tool in config.tools}
    found = []
    for frame in batch.frames[: int(batch.block["n_frames"][0])]:
        at, n = int(frame["header_at"]), int(frame["header_len"])
        data_at = int(frame["data_at"])
        header, data = batch.headers[at : at + n].tobytes(), batch.windows[data_at : data_at + int(frame["data_len"])].tobytes()
        offset = data_at - int(batch.packets[0]["data_at"]) if data_at < batch.shaped_from else -1
        found.append({"tool": names[int(frame["tool"])], "header": header, "data_at": offset, "data_len": len(data), "data": data})
    dropped = {names[slot]: name for name in _DROPS for slot in names if alone.counters[index(stage.KIND, name) + slot]}
    return found, dropped


def _in_files(config: Config) -> Config:
    return replace(config, tools=tuple(_in_file(tool) for tool in config.tools))


def _in_file(tool: Tool) -> Tool:
    if tool.tunnel is None or tool.file:
        return tool
    source, _ = addresses(tool.tunnel, ask_routes=True)
    return replace(tool, file="-", tunnel=replace(tool.tunnel, source=str(source)))
