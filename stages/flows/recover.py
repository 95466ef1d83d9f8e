"""What a worker does with the file that another has left: put back what was not committed, and find its way in the rest."""

from __future__ import annotations

import numpy as np

from broker.core.flow_layout import ENTRY, TRANSACTION_TICK, UNDO
from broker.core.flow_ring import FlowMemory
from stages.flows.index import rebuild_index
from stages.flows.table import Table


def recover(table: Table, cursor: int) -> int:
    """`cursor`: the block that the worker does next. Returns how many entries were put back."""
    flows = table.flows
    undone = _roll_back(flows, cursor)
    header = flows.header[0]
    header["published"] = header["state"]["head"]
    o = flows.offsets
    flows.memory[o.index : o.index + 8 * flows.sizes.n_index] = 0
    _free_names(table)
    rebuild_index(table.at)
    return undone


def _roll_back(flows: FlowMemory, cursor: int) -> int:
    header = flows.header[0]
    opened = int(header["transaction"]["open"])
    undone = 0
    if opened == TRANSACTION_TICK or opened > cursor:
        o, n = flows.offsets, min(int(header["transaction"]["n_undo"]), flows.sizes.n_undo)
        undo = flows.memory[o.undo : o.undo + n * UNDO.itemsize].view(UNDO)
        for row in undo[::-1]:
            number = int(row["entry"])
            if 0 <= number < flows.sizes.max_flows:
                flows.entries[number : number + 1].view(np.uint8)[:] = row["was"]
                undone += 1
        header["state"] = header["saved"]
    header["transaction"]["open"] = 0
    return undone


def _free_names(table: Table) -> None:
    """All that no entry has."""
    flows = table.flows
    used = flows.entries["name"][flows.entries["what"] != 0].astype(np.int64) - 1
    free = np.setdiff1d(np.arange(flows.sizes.n_names), used)
    table.names_free[: len(free)] = free
    table.row["names_head"], table.row["names_tail"], table.row["names_limit"] = 0, len(free), len(free)
    flows.header[0]["state"]["names_in_use"] = flows.sizes.n_names - len(free)


assert ENTRY.itemsize == UNDO["was"].shape[0]
