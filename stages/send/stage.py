"""Send: every frame to its tool, over a socket, out of an interface, or into a file or a stream.

Reads   frames, headers, data, packets (times).
Writes  nothing in the block; ``progress`` in its own row.
Options tools: tunnel and its backend (`backends.py`), file (`files.py`), rotation (`rotation.py`), interface (`interface.py`),
        stream (`stream.py`), tap (`tap.py`).
Counts  per tool: delivered_frames, delivered_bytes, dropped_* by reason, repeated_frames, unheard_reports, reader_*, file_*.
        For each block: frames of a tool = delivered_frames + every dropped_*.

Every worker visits every block and takes the frames whose ``share % workers`` is its number: a flow stays with one worker, and what has
no tunnel or goes to a file with the worker whose number is the tool's slot (modulo). Within a tool frames leave in the order of the
ring, or where they leave in runs, each flow's do.

Nothing here waits for a tool longer than a few ms a block, and a tool that is full or down costs next to nothing: one tool never stalls
another. A crash repeats at most one block on sockets, counted in repeated_frames by what ``progress`` says; files are cut back instead.
Only the one tool of a replay may wait for its reader (`Tool.waits`): then the block is done in several steps.
"""

from __future__ import annotations

import ctypes
from typing import ClassVar

import numpy as np

from broker.core import layout, log
from broker.core.batch import Batch
from broker.core.metrics import index
from broker.core.model import Tool
from broker.core.stage import AGAIN, Context, Generation
from stages.send import kernels
from stages.send.backends import make_tunnel_egress
from stages.send.egress import TOOL_DOWN, Egress, Scratch
from stages.send.files import FileEgress
from stages.send.formats import make_format
from stages.send.interface import InterfaceEgress
from stages.send.rotation import RotatingEgress
from stages.send.stream import StreamEgress
from stages.send.tap import TapEgress

_REPEATED = index("send", "repeated_frames")
_N_PACKETS = layout.words(layout.BLOCK)["n_packets"]
_PROGRESS_MASK = (1 << layout.PROGRESS_BITS) - 1


class Send:
    """The end of the path. Holds sockets and files over reloads as long as their tool stays the same."""

    KIND: ClassVar[str] = "send"

    def open(self, context: Context) -> None:
        self._context = context
        self._log = log.get(stage=self.KIND, lane=context.lane.number, worker=context.worker)
        self._scratch = Scratch(context)
        self._mine = np.zeros(context.geometry.max_frames, np.int64)
        self._rows = np.zeros(context.geometry.max_frames, np.uint32)
        self._counts, self._found = np.zeros((2, layout.TOOLS), np.int64), np.zeros(3 * layout.TOOLS, np.int64)
        self._found_words, self._rows_at = self._found.data, int(self._rows.ctypes.data)
        self._sort = np.zeros(1, kernels.SORT)
        self._sort_at = int(self._sort.ctypes.data)
        self._sort[0] = (
            context.worker, context.n_workers, self._mine.ctypes.data, self._rows_at, self._counts.ctypes.data,
            self._found.ctypes.data, context.counters_at,
        )  # fmt: skip
        self._egresses: dict[int, Egress] = {}
        self._waiting: list[FileEgress] = []  # whose readers had no room for all of the block in hand
        self._in_step = False
        # The block that a worker before this one may have handed over in part, and how many of its frames.
        before = ctypes.c_int64.from_address(context.progress_at).value if context.epoch > 1 else 0
        self._redo_seq, self._redo_frames = before >> layout.PROGRESS_BITS, before & _PROGRESS_MASK

    def load(self, generation: Generation) -> None:
        """Close what is gone or changed, open what is new."""
        wanted = {tool.slot: tool for tool in generation.config.tools if self._is_mine(tool)}
        for slot, egress in list(self._egresses.items()):
            if wanted.get(slot) != egress.tool:
                egress.close()
                del self._egresses[slot]
        for slot, tool in wanted.items():
            if slot not in self._egresses:
                self._egresses[slot] = self._make_egress(tool, first=generation.number == 1)

    def _is_mine(self, tool: Tool) -> bool:
        """Does this worker get frames of it? Of the sockets of a tunnel each worker has its own; all else belongs to one."""
        one = tool.tunnel is None or tool.file
        return tool.slot % self._context.n_workers == self._context.worker if one else True

    def _make_egress(self, tool: Tool, *, first: bool) -> Egress:
        given = self._context, self._scratch, self._log
        if tool.tunnel is not None and not tool.file:
            return make_tunnel_egress(tool, *given)
        if tool.interface:
            return InterfaceEgress(tool, *given)
        made = make_format(tool, self._context)
        if tool.file:
            return FileEgress(tool, made, *given, overwrite=first)
        if tool.tap:
            return TapEgress(tool, *given)
        return RotatingEgress(tool, made, *given) if tool.rotation is not None else StreamEgress(tool, made, *given)

    def step(self, batch: Batch) -> int:
        """Deliver or count every frame of this worker. Returns the number of packets in the block, or AGAIN if a reader has to be waited
        for: called again with the same block it goes on where it was."""
        self._in_step = True
        if not self._waiting:
            self._start(batch)
        self._waiting = [egress for egress in self._waiting if not egress.go_on(batch)]
        if self._waiting:
            return AGAIN
        self._redo_frames = 0
        self._in_step = False
        return max(0, batch.head[_N_PACKETS])

    def _start(self, batch: Batch) -> None:
        n_found, found = kernels.sort_frames(batch.at, self._sort_at), self._found_words
        for i in range(0, 3 * n_found, 3):
            self._deliver(batch, found[i], found[i + 1], found[i + 2])

    def _deliver(self, batch: Batch, slot: int, first: int, n: int) -> None:
        """The `n` frames of a tool, of which `first` frames of other tools have gone before in this block."""
        egress = self._egresses.get(slot)
        if egress is None:
            self._context.counters[TOOL_DOWN + slot] += n
            return
        if self._redo_frames and batch.seq == self._redo_seq and egress.repeats:
            self._context.counters[_REPEATED + slot] += min(max(self._redo_frames - first, 0), n)
        egress.send(batch, self._rows_at + 4 * first, n, (batch.seq << layout.PROGRESS_BITS) + first)
        if isinstance(egress, FileEgress) and egress.unsent:
            self._waiting.append(egress)

    def close(self) -> None:
        for egress in self._egresses.values():
            if self._in_step and isinstance(egress, RotatingEgress):
                egress.abandon()
            else:
                egress.close()
        self._egresses.clear()
