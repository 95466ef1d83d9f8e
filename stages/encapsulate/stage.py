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
| row of b is there | this worker died after taking them | uses them again: same bytes |

A reload leaves them going on, a restart of the broker too (`broker/supervisor/numbers.py`); a replay begins at 0.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker.core import layout
from broker.core.batch import Batch
from broker.core.stage import AGAIN, Context, Generation
from stages.encapsulate.frames import list_frames
from stages.encapsulate.headers import write_headers
from stages.encapsulate.templates import TEMPLATE, make_templates
from stages.encapsulate.tickets import take_tickets, tickets_reached


class Encapsulate:
    """Stateless but for the tables of its generation."""

    KIND: ClassVar[str] = "encapsulate"

    def open(self, context: Context) -> None:
        self._context = context
        self._ticket_rows = 2 * context.geometry.n_blocks
        self._numbers = np.zeros(layout.TOOLS, np.int64)
        self._numbers_at = int(self._numbers.ctypes.data)
        self._templates = np.zeros(layout.TOOLS, TEMPLATE)
        self._templates_at = int(self._templates.ctypes.data)

    def load(self, generation: Generation) -> None:
        self._templates[:] = make_templates(generation.config.tools, generation.number)

    def step(self, batch: Batch) -> int:
        """Returns the number of packets looked at, or AGAIN while it is not this block's turn to take numbers."""
        context, seq = self._context, batch.seq
        if not tickets_reached(context.tickets_at, self._ticket_rows, seq):
            return AGAIN
        n_frames = list_frames(
            batch.block_at, batch.packets_at, batch.verdicts_at, batch.frames_at, batch.max_packets, batch.max_frames,
            batch.header_bytes, batch.data_at, batch.data_bytes, self._templates_at, self._numbers_at, context.counters_at,
        )  # fmt: skip
        take_tickets(context.tickets_at, self._ticket_rows, seq, context.tool_sequence_at, self._numbers_at)
        write_headers(
            batch.frames_at, n_frames, batch.headers_at, batch.data_at, batch.packets_at, batch.verdicts_at,
            self._templates_at, self._numbers_at,
        )  # fmt: skip
        return max(0, int(batch.block["n_packets"][0]))

    def close(self) -> None:
        pass
