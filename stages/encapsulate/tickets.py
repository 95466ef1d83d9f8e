"""The numbers of a block's frames: consecutive in ring order whatever the number of workers (see `stage`)."""

from __future__ import annotations

from broker.core import layout
from broker.core.layout import TOOLS
from stages.jit import kernel
from stages.memory import fetch_add, load64, load_acquire, store64, store_release

assert layout.TICKET.fields is not None

_TICKET_BYTES = layout.TICKET.itemsize
_TICKET_FIRST, _TICKET_TAKEN = layout.TICKET.fields["first"][1], layout.TICKET.fields["taken"][1]


@kernel
def tickets_reached(tickets_at: int, n_rows: int, seq: int) -> int:
    """1 if block `seq` may take its numbers: the block before it has taken its own."""
    if seq == 0:
        return 1
    return 1 if load_acquire(tickets_at + (seq - 1) % n_rows * _TICKET_BYTES) == seq else 0


@kernel
def take_tickets(tickets_at: int, n_rows: int, seq: int, tool_sequence_at: int, numbers_at: int) -> None:
    """Turn the counts in `numbers` into first numbers, once for block `seq` however often it is done again.

    Lanes share the numbers of a tool, so they are taken with fetch_add; a worker killed between that and the store of its row leaves a
    gap, which the receiver takes for the loss of one block. So does one whose block has more frames when it is done again, because what
    the worker remembered of duplicates and limits died with it: new numbers are taken then, so that none is given to two frames.
    """
    row = tickets_at + seq % n_rows * _TICKET_BYTES
    again = load_acquire(row) == seq + 1
    for tool in range(TOOLS):
        n, first_at, taken_at = load64(numbers_at + 8 * tool), row + _TICKET_FIRST + 8 * tool, row + _TICKET_TAKEN + 8 * tool
        taken = load64(taken_at) if again else 0
        if n > taken:
            store64(first_at, fetch_add(tool_sequence_at + 8 * tool, n))
        if n > taken or not again:
            store64(taken_at, n)
        store64(numbers_at + 8 * tool, load64(first_at))
    if not again:
        store_release(row, seq + 1)
