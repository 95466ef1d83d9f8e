"""All that becomes of a block, in one call: its frames, their numbers, their headers."""

from __future__ import annotations

from broker.core import layout
from broker.core.batch import BATCH
from broker.core.stage import AGAIN
from stages.encapsulate.frames import list_frames
from stages.encapsulate.headers import write_headers
from stages.encapsulate.plan import (
    BLOCK,
    DATA,
    FRAMES,
    HEADERS,
    MAX_PACKETS,
    N_TICKETS,
    NUMBERS,
    PACKETS,
    SEQ,
    TEMPLATES,
    TICKETS,
    TOOL_SEQUENCE,
    VERDICTS,
)
from stages.encapsulate.tickets import take_tickets, tickets_reached
from stages.jit import kernel
from stages.memory import copy, load64

assert layout.BLOCK.fields is not None
_N_PACKETS = layout.BLOCK.fields["n_packets"][1]
_BATCH_BYTES = BATCH.itemsize


@kernel
def encapsulate_block(plan: int, batch: int) -> int:
    """`plan`: PLAN; `batch`: BATCH. Returns the packets looked at, or AGAIN: it is not this block's turn to take numbers."""
    copy(plan, batch, _BATCH_BYTES)
    tickets, n_tickets, seq = load64(plan + TICKETS), load64(plan + N_TICKETS), load64(plan + SEQ)
    if tickets_reached(tickets, n_tickets, seq) == 0:
        return AGAIN
    n_frames, numbers = list_frames(plan), load64(plan + NUMBERS)
    take_tickets(tickets, n_tickets, seq, load64(plan + TOOL_SEQUENCE), numbers)
    write_headers(
        load64(plan + FRAMES), n_frames, load64(plan + HEADERS), load64(plan + DATA), load64(plan + PACKETS),
        load64(plan + VERDICTS), load64(plan + TEMPLATES), numbers,
    )  # fmt: skip
    return max(0, min(load64(load64(plan + BLOCK) + _N_PACKETS), load64(plan + MAX_PACKETS)))
