"""What the flows stage knows: the shared file of its lane (`broker.core.flow_layout`), and TABLE, by which kernels find their way in it.

| kernel | does |
|---|---|
| save_entry | must be called before an entry is changed: keeps it as it was, once a transaction |

**A block is one transaction.** It is committed by the ring's cursor, with the block's counters; what is done between blocks is committed by
`open` becoming 0. A worker that takes over puts back the entries that an open transaction has changed, and STATE; index and free entries
are made anew from the entries, so they need no saving. Records lie behind `published` until their block is committed: nobody has seen
those that are written once more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.core.flow_layout import ENTRY, FLOWS, TRANSACTION, UNDO
from broker.core.flow_ring import FlowMemory
from stages.jit import kernel
from stages.memory import add64, copy, load32, load64, order_stores, store32, store64

assert FLOWS.fields is not None
assert TRANSACTION.fields is not None
assert UNDO.fields is not None
assert ENTRY.fields is not None

TABLE = np.dtype(
    [
        (name, "<i8")
        for name in (
            "header_at", "state_at", "index_at", "n_index", "entries_at", "max_flows", "names_at", "n_names", "undo_at", "n_undo",
            "records_at", "n_records", "lane",
            "free_at", "n_free",  # i4[max_flows]: a stack of entries
            "names_free_at", "names_head", "names_tail", "names_limit",  # i4[n_names]: a queue of names; [head, limit) may be taken
            "scratch_at",  # a name in the making
            "seed_a", "seed_b",
            "idle_ns", "active_ns", "one_in", "by_packet", "inner", "forwarded", "use_names",
            "number",  # of the packet, for samples
            "fragments_at", "ignored_at",  # what is known of fragments; counters that nobody reads
            "key_at", "seen_at", "counters_at", "live_at",
            "closer",  # no packet is taken for a plain one
        )
    ]
)  # fmt: skip
assert TABLE.fields is not None
_HEADER_AT, _STATE_AT, _ENTRIES_AT, _UNDO_AT, _N_UNDO = (
    TABLE.fields[name][1] for name in ("header_at", "state_at", "entries_at", "undo_at", "n_undo")
)
_NUMBER, _UNDONE = (FLOWS.fields["transaction"][1] + TRANSACTION.fields[name][1] for name in ("number", "n_undo"))
_UNDO_WAS = UNDO.fields["was"][1]
_ENTRY_UNDO = ENTRY.fields["undo"][1]
ENTRY_BYTES, _UNDO_BYTES = ENTRY.itemsize, UNDO.itemsize

SCRATCH_BYTES = 512


class Table:
    """TABLE and what it points to: the mapped file, and memory of this process."""

    def __init__(self, flows: FlowMemory, *, seed: tuple[int, int]) -> None:
        self.flows = flows
        sizes, o, at = flows.sizes, flows.offsets, flows.at
        self.row = np.zeros(1, TABLE)
        self.free: NDArray[np.int32] = np.zeros(sizes.max_flows, np.int32)
        self.names_free: NDArray[np.int32] = np.zeros(max(1, sizes.n_names), np.int32)
        self._scratch = np.zeros(SCRATCH_BYTES, np.uint8)
        for name, value in {
            "header_at": at,
            "state_at": at + FLOWS.fields["state"][1],  # type: ignore[index]
            "index_at": at + o.index,
            "n_index": sizes.n_index,
            "entries_at": at + o.entries,
            "max_flows": sizes.max_flows,
            "names_at": at + o.names,
            "n_names": sizes.n_names,
            "undo_at": at + o.undo,
            "n_undo": sizes.n_undo,
            "records_at": at + o.records,
            "n_records": sizes.n_records,
            "lane": int(flows.header[0]["lane"]),
            "free_at": int(self.free.ctypes.data),
            "names_free_at": int(self.names_free.ctypes.data),
            "scratch_at": int(self._scratch.ctypes.data),
            "seed_a": seed[0],
            "seed_b": seed[1],
        }.items():
            self.row[name] = value
        self.at = int(self.row.ctypes.data)

    @property
    def state(self) -> np.void:
        found: np.void = self.flows.header[0]["state"]
        return found


@kernel
def save_entry(table: int, entry: int) -> None:
    header = load64(table + _HEADER_AT)
    number = load64(header + _NUMBER)
    if load32(entry + _ENTRY_UNDO) == number:
        return
    n_undo = load64(header + _UNDONE)
    if n_undo >= load64(table + _N_UNDO):
        return  # cannot be: a transaction touches no more
    undo = load64(table + _UNDO_AT) + n_undo * _UNDO_BYTES
    store64(undo, (entry - load64(table + _ENTRIES_AT)) // ENTRY_BYTES)
    copy(undo + _UNDO_WAS, entry, ENTRY_BYTES)
    order_stores()  # a worker may be killed between any two instructions, and the compiler must not change their order here
    store64(header + _UNDONE, n_undo + 1)
    order_stores()
    store32(entry + _ENTRY_UNDO, number)


@kernel
def count(table: int, field: int, n: int) -> None:
    """`field`: offset in STATE."""
    add64(load64(table + _STATE_AT) + field, n)
