"""Packets to KEY rows, as the filter does it: parsed and followed in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.core import layout
from broker.core.metrics import N_COUNTERS, index
from stages.wire.fragment_table import BUCKETS, FragmentTable
from stages.wire.fragments import follow_fragments
from stages.wire.key import KEY
from stages.wire.parse import parse_packets

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Packet:
    data: bytes
    ts_ns: int = START_NS
    input: int = 0


class Reader:
    """A table of fragmented datagrams and its counters. `allow(at, n_bytes)` is told what may be touched."""

    def __init__(self, seed: int = 0, *, buckets: int = BUCKETS, chunk: int = 64, allow: Callable[[int, int], None] | None = None) -> None:
        self.table = FragmentTable(seed, buckets=buckets)
        self.counters: NDArray[np.int64] = np.zeros(N_COUNTERS, np.int64)
        self.chunk, self.allow = chunk, allow

    def read(self, *packets: Packet | bytes) -> NDArray[np.void]:
        found = np.zeros(len(packets), KEY)
        for first in range(0, len(packets), self.chunk):
            some = [p if isinstance(p, Packet) else Packet(p) for p in packets[first : first + self.chunk]]
            found[first : first + len(some)] = self._read_chunk(some)
        return found

    def _read_chunk(self, packets: Sequence[Packet]) -> NDArray[np.void]:
        data = np.frombuffer(b"".join(packet.data for packet in packets) + bytes(layout.SLACK), np.uint8)
        rows, found = np.zeros(len(packets), layout.PACKET), np.zeros(len(packets), KEY)
        at = 0
        for row, packet in zip(rows, packets, strict=True):
            row["ts_ns"], row["data_at"], row["input"] = packet.ts_ns, at, packet.input
            row["caplen"] = row["wirelen"] = len(packet.data)
            at += len(packet.data)
        rows_at, found_at = int(rows.ctypes.data), int(found.ctypes.data)
        if self.allow:
            self.allow(int(data.ctypes.data), at)
            for array in (rows, found, self.table.memory, self.counters):
                self.allow(int(array.ctypes.data), array.nbytes)
        if parse_packets(rows_at, 0, len(rows), int(data.ctypes.data), at, found_at):
            follow_fragments(found_at, rows_at, len(rows), self.table.at, int(self.counters.ctypes.data))
        return found

    def count(self, name: str) -> int:
        return int(self.counters[index("filter", name)])

    def counts(self) -> dict[str, int]:
        """Those that are not 0."""
        names = [f"fragments_{name}packets" for name in ("", "followed_", "unknown_", "tiny_", "overlapping_", "atomic_")]
        found = {name: self.count(name) for name in (*names, "fragments_evicted", "ip6_chain_long_packets")}
        return {name: n for name, n in found.items() if n}


def shown(row: np.void) -> tuple[int, ...]:
    """What fragments are about."""
    fields = ("fragment", "source_state", "source_port", "destination_state", "destination_port", "detail")
    return tuple(int(row[field]) for field in fields)
