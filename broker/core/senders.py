"""What a tunnel input knows of each of its senders, in shared memory: what lies where, making it, reading it while the worker counts.

    senders-LANE:  SENDERS header | SENDER[MAX_SENDERS] | NOTE[max_packets]

A *sender* is a source address and a session (kind of tunnel; GRE key, VNI or ERSPAN session id): what numbers its packets by itself.

The packets of a block are *noted* while it is filled, and *folded* into the table when it is published:

| who | does | when | killed right then |
|---|---|---|---|
| capture worker | writes `noted_seq`, the notes, then `n_notes` | before the block is published | notes and packets go: a gap, so lost |
| | folds note `n_folded`, then counts it there | after that | at most one packet is counted twice or not |
| capture worker, started again | as if it had never been away | at its first block | |

So a packet that was received and died with the worker counts as lost, and everything else as received. Nobody else writes.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core.errors import PipelineError
from broker.core.layout import LINE
from broker.core.shm import map_file

MAGIC = 0x3144_4E45_534D_4154  # "TAMSEND1" little-endian
MAX_SENDERS = 512
WINDOW = 8192
"""Sequence numbers before the newest for which is remembered whether they came: how late a packet may be. A power of two."""

SENDERS = np.dtype(
    [("magic", "<i8"), ("n_notes", "<i8"), ("n_folded", "<i8"), ("noted_seq", "<i8"), ("max_packets", "<i8"), ("pad", "<i8", (3,))]
)
assert SENDERS.itemsize == LINE

SENDER = np.dtype(
    [
        ("address", "u1", (16,)),  # IPv6, or IPv4-mapped
        ("session", "<i8"),  # kind << KIND_AT | id + 1 (0: it has none)
        ("used", "<i8"),  # 0: a free row; set last
        ("received", "<i8"),  # packets
        ("received_bytes", "<i8"),  # as they were before the tunnel
        ("numbered", "<i8"),  # packets with a sequence number
        ("lost", "<i8"),  # numbers that did not come, so far
        ("reordered", "<i8"),  # came after a higher number
        ("repeated", "<i8"),  # numbers that had come already
        ("stray", "<i8"),  # numbers far from all others, of which no second followed
        ("restarts", "<i8"),  # began to count anew
        ("next", "<i8"),  # the number after the highest; -1: none came yet
        ("span", "<i8"),  # how many numbers lie between the first and `next`, at most WINDOW
        ("candidate", "<i8"),  # a stray number + 1: if that comes, the sender has begun anew
        ("first_ns", "<i8"),  # times of packets
        ("last_ns", "<i8"),
        ("n_delays", "<i8"),
        ("delay_sum_ns", "<i8"),
        ("delay_min_ns", "<i8"),
        ("delay_max_ns", "<i8"),
        ("seen", "<u8", (WINDOW // 64,)),  # a bit for each number, at number % WINDOW
    ]
)

NOTE = np.dtype([("sender", "<i8"), ("sequence", "<i8"), ("ts_ns", "<i8"), ("wirelen", "<i8"), ("delay_ns", "<i8")])
"""`sender`: a row; -1: there was no room for it. `sequence` -1, `delay_ns` NO_DELAY: it has none."""
NO_DELAY = -(1 << 62)

KIND_AT = 40
KINDS = ("gre", "erspan1", "erspan2", "erspan3", "vxlan", "geneve")
"""By the numbers that the decapsulating kernel gives them; tests/stages/wire/test_decap.py compares."""
_MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True)
class Sender:
    """One sender as it was when it was read. expected = numbered - repeated - stray + lost."""

    lane: int
    address: str
    tunnel: str
    session: int | None
    received_packets: int
    received_bytes: int
    numbered_packets: int
    lost_packets: int
    reordered_packets: int
    repeated_packets: int
    stray_packets: int
    restarts: int
    silent_since_ns: int  # time of its last packet
    delay_min_ns: int | None  # None: its tunnel carries no time
    delay_mean_ns: int | None
    delay_max_ns: int | None

    @property
    def expected_packets(self) -> int:
        """How many numbers it must have given, as far as they tell."""
        return self.numbered_packets - self.repeated_packets - self.stray_packets + self.lost_packets


class SenderTable:
    """A mapped file. Kernels use the addresses."""

    def __init__(self, path: Path, memory: NDArray[np.uint8]) -> None:
        """PipelineError when it is none of ours."""
        self.head = memory[: SENDERS.itemsize].view(SENDERS) if len(memory) >= SENDERS.itemsize else np.zeros(1, SENDERS)
        self.max_packets = int(self.head["max_packets"][0])
        if int(self.head["magic"][0]) != MAGIC or len(memory) != file_bytes(self.max_packets):
            raise PipelineError(f"{path}: no table of senders")
        notes = SENDERS.itemsize + MAX_SENDERS * SENDER.itemsize
        self.rows = memory[SENDERS.itemsize : notes].view(SENDER)
        self.head_at = int(memory.ctypes.data)
        self.rows_at, self.notes_at = self.head_at + SENDERS.itemsize, self.head_at + notes

    def read(self, lane: int = 0) -> list[Sender]:
        """Of a table that is being written a row may be a packet ahead of itself."""
        return [_sender(lane, row) for row in self.rows.copy() if row["used"]]


def file_bytes(max_packets: int) -> int:
    return SENDERS.itemsize + MAX_SENDERS * SENDER.itemsize + max_packets * NOTE.itemsize


def senders_path(directory: Path, lane: int) -> Path:
    return directory / f"senders-{lane}"


def make_senders(directory: Path, lane: int, max_packets: int) -> SenderTable:
    """The table of a lane, made if there is none. PipelineError in words."""
    path = senders_path(directory, lane)
    if not path.exists():
        scratch = path.with_name(f".{path.name}")  # a worker that dies here leaves no half a table
        scratch.unlink(missing_ok=True)
        head = map_file(scratch, size=file_bytes(max_packets), create=True)[: SENDERS.itemsize].view(SENDERS)
        head["max_packets"], head["noted_seq"], head["magic"] = max_packets, -1, MAGIC
        scratch.rename(path)
    return SenderTable(path, map_file(path))


def read_senders(directory: Path, n_lanes: int) -> list[Sender]:
    """Of all lanes that have a table, in the order of lanes, then as they came. PipelineError when one is damaged."""
    found = []
    for lane in range(n_lanes):
        path = senders_path(directory, lane)
        if path.exists():
            found += SenderTable(path, map_file(path, writable=False)).read(lane)
    return found


def _sender(lane: int, row: Any) -> Sender:
    packed = row["address"].tobytes()
    kind, number = int(row["session"]) >> KIND_AT, int(row["session"]) & (1 << KIND_AT) - 1
    n_delays = int(row["n_delays"])
    low, total, high = (int(row[f"delay_{name}_ns"]) for name in ("min", "sum", "max"))
    names = ("received", "received_bytes", "numbered", "lost", "reordered", "repeated", "stray", "restarts", "last_ns")
    return Sender(
        lane,
        str(ipaddress.ip_address(packed[12:] if packed.startswith(_MAPPED) else packed)),
        KINDS[kind] if 0 <= kind < len(KINDS) else str(kind),
        number - 1 if number else None,
        *(int(row[name]) for name in names),
        *((low, total // n_delays, high) if n_delays else (None, None, None)),
    )
