"""Encapsulate: one frame for each tool that wants a packet, with its outer header.

Reads   packets, verdicts, data (checksums, IP headers and VLAN tags only); the tickets of the block before.
Writes  frames, headers, ``n_frames``, ``headers_used``; its own ticket; the tools' sequence numbers.
Options tools: tunnel and its parameters (`templates.py`, also for how to add a tunnel).
Counts  per tool: framed_frames, framed_bytes, dropped_too_long, dropped_not_ip, dropped_no_room, dropped_no_tool,
        dropped_damaged_packet.

Frames lie in packet order, those of one packet in slot order. Each frame of a tunnel has a number: the GRE sequence number is its low
32 bits (the first is 0, RFC 2890 section 2.2), the IPv4 identification its low 16. Numbers are consecutive in ring order whatever the
number of workers, because block b takes its own only after block b - 1:

| ticket row of block b | means | `step` |
|---|---|---|
| row of b - 1 is not there | its worker has not come so far | AGAIN, nothing changed |
| row of b - 1 is there, row of b is not | its turn | takes numbers, writes the row |
| row of b is there | this worker died after taking them | uses them again: same bytes; takes others for a tool that gets more frames now |

A reload leaves them going on, a restart of the broker too (`broker/supervisor/numbers.py`); a replay begins at 0.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker.core import layout
from broker.core.batch import Batch
from broker.core.metrics import index
from broker.core.model import MAX_PRIORITY
from broker.core.stage import Context, Generation
from stages.encapsulate.block import encapsulate_block
from stages.encapsulate.paths import Paths
from stages.encapsulate.plan import PLAN, SCRATCH_BYTES
from stages.encapsulate.shed import Shedding
from stages.encapsulate.templates import TEMPLATE, make_templates
from stages.encapsulate.ways import Ways

_EVICTED = index("encapsulate", "dedup_evicted")


class Encapsulate:
    """Its tables are those of the generation; what it remembers of traffic (duplicates, limits) is private and lost with the worker."""

    KIND: ClassVar[str] = "encapsulate"

    def open(self, context: Context) -> None:
        self._context = context
        self._numbers = np.zeros(layout.TOOLS, np.int64)
        self._scratch = np.zeros(SCRATCH_BYTES, np.uint8)
        self._templates = np.zeros(layout.TOOLS, TEMPLATE)
        self._plan = np.zeros(1, PLAN)
        self._plan_at = int(self._plan.ctypes.data)
        for name, array in (("numbers", self._numbers), ("scratch", self._scratch), ("templates", self._templates)):
            self._plan[f"{name}_at"] = array.ctypes.data
        self._plan["counters_at"], self._plan["tool_sequence_at"] = context.counters_at, context.tool_sequence_at
        self._plan["tickets_at"], self._plan["n_tickets"] = context.tickets_at, 2 * context.geometry.n_blocks
        self._shedding = Shedding()
        self._plan["shed_at"] = self._shedding.shares.ctypes.data
        self._sheds, self._shed_seq = False, -1
        self._ways: Ways | None = None

    def load(self, generation: Generation) -> None:
        self._templates[:] = make_templates(generation.config.tools, generation.number)
        self._ways = ways = Ways(generation.config, self._templates, self._ways)
        self._plan["ways_at"], self._plan["routes_at"] = ways.ways.ctypes.data, ways.routes.ctypes.data
        self._paths = Paths(generation.config.tools)
        self._sheds = self._context.lane.is_live and bool((ways.routes["priority"] < MAX_PRIORITY).any())
        self._state = b""
        self._look()

    def _look(self) -> None:
        """What has changed of the tools and of the way to them."""
        assert self._ways is not None
        state = self._context.tool_state.tobytes()
        if state != self._state:
            self._state = state
            self._ways.mark_alive((np.frombuffer(state, np.int64) != layout.TOOL_DEAD).tolist())
        for slot, mtu in self._paths.changed():
            self._ways.set_mtu(slot, mtu)

    def step(self, batch: Batch) -> int:
        """Returns the number of packets looked at, or AGAIN while it is not this block's turn to take numbers."""
        self._look()
        if self._sheds and batch.seq != self._shed_seq:
            self._shed_seq = batch.seq
            self._shedding.look(self._context.ring_fill())
        n = encapsulate_block(self._plan_at, batch.at)
        self._count_evicted()
        return n

    def _count_evicted(self) -> None:
        assert self._ways is not None
        for slot, n in self._ways.evicted():
            self._context.counters[_EVICTED + slot] += n

    def close(self) -> None:
        pass
