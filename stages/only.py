"""One stage alone: it and the stages before it run in this process, block by block, and what it wrote is dumped as JSON lines.

| stage | one line |
|---|---|
| capture | a packet: seq, packet, ts_ns, caplen, wirelen, input, flags, data (hex) |
| filter | a packet: seq, packet, generation, tools (names), cause, flow |
| encapsulate | a frame: seq, frame, packet, tool, header (hex), data_at, data_len |
| send | a block: seq, and its counters by tool (the tools' files are written too) |
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from broker.config.lanes import geometry, lanes
from broker.core import layout
from broker.core.batch import Batch, heap_batch
from broker.core.generations import read_generation
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS, of_stage
from broker.core.metrics import index as counter_index
from broker.core.model import Config
from broker.core.stage import AGAIN, Context, Source, Stage
from stages.capture.idle import await_source
from stages.registry import create
from stages.warm import warm


@dataclass(frozen=True)
class Chain:
    """The stages up to one, in one process, over blocks of its own. `bench.alone` measures with it what processes of their own cost."""

    config: Config
    sizes: Geometry
    stages: list[Stage]
    contexts: list[Context]  # the addresses in them are valid as long as this lives
    shared: tuple[NDArray[Any], ...]

    def play(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Every block that the source gives, when the last stage has done with it. Each stage does as many blocks as there are `batches`
        before the next one begins: so many lie between two processes of a pipeline, and with one a block stays in the nearest cache."""
        source, *others = self.stages
        source = cast(Source, source)
        seq = 0
        while not source.finished:
            filled: list[Batch] = []
            for batch in batches:
                batch.seq = seq
                batch.block["generation"] = 1
                if source.step(batch) <= 0:
                    break
                seq += 1
                batch.block["seq"] = seq
                filled.append(batch)
            if not filled and not source.finished:
                await_source(source)
            for stage in others:
                for batch in filled:
                    while stage.step(batch) == AGAIN:  # it waits a little by itself
                        pass
            yield from filled

    def close(self) -> None:
        for stage in self.stages:
            stage.close()


def open_chain(last: str, directory: Path) -> Chain:
    """Generation 1 of `directory`, loaded by the stages up to `last`."""
    generation = read_generation(directory, 1)
    config = generation.config
    lane = lanes(config)[0]
    sizes = geometry(config, lane)
    shared = np.zeros(layout.TOOLS + 1, np.int64)  # tool sequences, and the progress of send
    tickets = np.zeros(2 * sizes.n_blocks, layout.TICKET)
    chain = Chain(config, sizes, [], [], (shared, tickets))
    for kind in layout.PATH[: layout.PATH.index(last) + 1]:
        counters, live = np.zeros(N_COUNTERS, np.int64), np.zeros(N_COUNTERS, np.int64)
        at = int(shared.ctypes.data)
        context = Context(
            directory, lane, 0, 1, sizes, 1, counters, int(counters.ctypes.data), live, int(live.ctypes.data),
            tool_sequence_at=at, tickets_at=int(tickets.ctypes.data), progress_at=at + 8 * layout.TOOLS,
        )  # fmt: skip
        made = create(kind)
        made.open(context)
        made.load(generation)
        chain.stages.append(made)
        chain.contexts.append(context)
    return chain


def run_only(stage: str, directory: Path, dump: str) -> int:
    """Play generation 1 of `directory` through the stages up to `stage`; returns the exit status."""
    warm(lambda line: print(line, file=sys.stderr), layout.PATH)  # noqa: T201
    chain = open_chain(stage, directory)
    with contextlib.ExitStack() as closing:
        closing.callback(chain.close)
        file = sys.stdout if dump == "-" else closing.enter_context(open(dump, "w"))
        for batch in chain.play([heap_batch(chain.sizes)]):
            try:
                _write(file, _rows(stage, batch, chain.config, chain.contexts[-1]))
            except BrokenPipeError:  # `| head` has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # for what is flushed at the end
                return 1
    return 0


def _write(file: IO[str], rows: Iterator[dict[str, Any]]) -> None:
    for row in rows:
        file.write(json.dumps(row) + "\n")
    file.flush()  # while a reader that has gone can still be told; at exit nobody could catch it


def _rows(stage: str, batch: Batch, config: Config, context: Context) -> Iterator[dict[str, Any]]:
    block = batch.block[0]
    n_packets = int(block["n_packets"])
    names = {tool.slot: tool.name for tool in config.tools}
    if stage == "capture":
        for i, p in enumerate(batch.packets[:n_packets]):
            at, caplen = int(p["data_at"]), int(p["caplen"])
            fields = {name: int(p[name]) for name in ("ts_ns", "caplen", "wirelen", "input", "flags")}
            yield {"seq": batch.seq, "packet": i, **fields, "data": batch.data[at : at + caplen].tobytes().hex()}
    elif stage == "filter":
        for i, v in enumerate(batch.verdicts[:n_packets]):
            wants = [name for slot, name in sorted(names.items()) if int(v["verdict"]) >> slot & 1]
            cause = layout.CAUSE_NAMES[int(v["cause"])]
            yield {
                "seq": batch.seq,
                "packet": i,
                "generation": int(block["generation"]),
                "tools": wants,
                "cause": cause,
                "flow": int(v["flow"]),
            }
    elif stage == "encapsulate":
        for i, f in enumerate(batch.frames[: int(block["n_frames"])]):
            header = batch.headers[int(f["header_at"]) : int(f["header_at"]) + int(f["header_len"])].tobytes().hex()
            rest = {name: int(f[name]) for name in ("data_at", "data_len")}
            yield {"seq": batch.seq, "frame": i, "packet": int(f["packet"]), "tool": names[int(f["tool"])], "header": header, **rest}
    else:
        counted = [c for c in of_stage("send") if c.per == "tool"]
        counters = context.counters
        tools = {
            name: {c.name: n for c in counted if (n := int(counters[counter_index("send", c.name) + slot]))} for slot, name in names.items()
        }
        yield {"seq": batch.seq, "n_packets": n_packets, "n_frames": int(block["n_frames"]), "totals": tools}
