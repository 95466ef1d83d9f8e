"""Rows of a segment -> the columns of `broker.flows.columns`, for whichever store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.core.flow_layout import NAMED_NAMES, TUNNEL_NAMES
from broker.flows import columns
from broker.flows.columns import Column
from broker.flows.meters import METER_KINDS
from broker.flows.segments import Header, Rows

Numbers = NDArray[np.generic]

TABLES: dict[str, tuple[Column, ...]] = {"flows": columns.FLOWS, "meters": columns.METERS}
TIMES = {"flows": "last_ns", "meters": "at_ns"}
"""By which a row belongs to an hour or a day."""


@dataclass(frozen=True, slots=True)
class Words:
    """A column of text, each text once: row i has ``words[codes[i]]``."""

    codes: NDArray[np.int32]
    words: list[str]

    def taken(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Words:
        return Words(self.codes[rows], self.words)


Table = dict[str, Numbers | Words]

# Columns that are a field of FLOW, or the half of a pair, under another name; all others have the field's own.
_PAIRS = ("packets", "bytes", "min_bytes", "max_bytes", "tcp_flags", "tos", "retransmitted")
_RENAMED: dict[str, tuple[str, int]] = {
    **{name: (name, 0) for name in _PAIRS},
    **{f"{name}_back": (name, 1) for name in _PAIRS},
    "rtt_source_us": ("rtt_us", 0),
    "rtt_destination_us": ("rtt_us", 1),
}


def to_table(header: Header, rows: Rows) -> Table:
    """The columns in their order, each contiguous and of the type that `columns` declares."""
    return flows_table(header, rows) if header.kind == "flows" else meters_table(header, rows)


def flows_table(header: Header, rows: Rows) -> Table:
    """Of FLOW[n]."""
    n = len(rows)
    made: Table = {
        "node": Words(np.zeros(n, np.int32), [header.node]),
        "input": _slots(rows["input"], header.inputs),
        "run": np.full(n, header.run, np.int64),
        "tunnel": _known(rows["tunnel"], TUNNEL_NAMES),
        "end_reason": rows["end"].copy(),
        "named": _known(rows["named"], NAMED_NAMES),
        "name": _texts(rows["name"]),
    }
    for end in ("source", "destination"):
        halves = np.ascontiguousarray(rows[end]).view(">u8").astype(np.uint64)
        made[f"{end}_high"], made[f"{end}_low"] = halves[:, 0].copy(), halves[:, 1].copy()
    return {c.name: made[c.name] if c.name in made else _field(rows, c.name) for c in columns.FLOWS}


def meters_table(header: Header, rows: Rows) -> Table:
    """Of METER[n]."""
    made: Table = {
        "node": Words(np.zeros(len(rows), np.int32), [header.node]),
        "kind": _known(rows["kind"], METER_KINDS),
        "name": _texts(rows["name"]),
    }
    return {c.name: made[c.name] if c.name in made else rows[c.name].copy() for c in columns.METERS}


def part(table: Table, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Table:
    """Only some of its rows."""
    return {name: column.taken(rows) if isinstance(column, Words) else column[rows] for name, column in table.items()}


def n_rows(table: Table) -> int:
    column = next(iter(table.values()))
    return len(column.codes if isinstance(column, Words) else column)


def _field(rows: Rows, name: str) -> Numbers:
    field, half = _RENAMED.get(name, (name, -1))
    return np.ascontiguousarray(rows[field] if half < 0 else rows[field][:, half])


def _slots(slots: NDArray[np.uint16], names: dict[int, str]) -> Words:
    most = max(int(slots.max(initial=0)), max(names, default=0))
    return Words(slots.astype(np.int32), [names.get(slot, f"input slot {slot}") for slot in range(most + 1)])


def _known(codes: Numbers, names: tuple[str, ...]) -> Words:
    # A number that this version has no name for is not dropped: it stands for itself.
    most = int(codes.max(initial=0))
    return Words(codes.astype(np.int32), [*names, *(str(code) for code in range(len(names), most + 1))])


def _texts(texts: NDArray[np.bytes_]) -> Words:
    # Sorting them, as np.unique does, takes eight times as long.
    known: dict[bytes, int] = {}
    codes = np.fromiter((known.setdefault(text, len(known)) for text in texts.tolist()), np.int32, len(texts))
    return Words(codes, [text.decode(errors="replace") for text in known])
