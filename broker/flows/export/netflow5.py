"""NetFlow 5: IPv4, one way, counts of 32 bits. Its layout is what Cisco documents as "NetFlow Export Datagram Format", version 5.

    version 5 | records | uptime | seconds | nanoseconds | sequence | engine | sampling || record ...    24 bytes, 48 each

The sequence number counts records. What it has no words for: IPv6 (counted as dropped), VLANs, tunnels, sizes, names, why a flow ended.
A count that 32 bits cannot hold is sent as several records that add up to it, up to PIECES of them. A
message holds at most 30.
"""

from __future__ import annotations

import struct

import numpy as np

from broker.core.flow_ring import Rows
from broker.flows.export.messages import ExportContext, Message, cut
from broker.flows.export.one_way import clock, contiguous_address, counts_of, one_way, uptime

MOST_RECORDS = 30
MOST = 0xFFFF_FFFF
PIECES = 1024  # 4 TB: a minute at 500 Gbit/s; beyond it the last piece says MOST

RECORD = np.dtype(
    [
        ("source", "V4"), ("destination", "V4"), ("next_hop", ">u4"), ("input", ">u2"), ("output", ">u2"),
        ("packets", ">u4"), ("bytes", ">u4"), ("first", ">u4"), ("last", ">u4"), ("source_port", ">u2"), ("destination_port", ">u2"),
        ("pad", "u1"), ("tcp_flags", "u1"), ("protocol", "u1"), ("tos", "u1"), ("source_as", ">u2"), ("destination_as", ">u2"),
        ("source_mask", "u1"), ("destination_mask", "u1"), ("pad2", ">u2"),
    ]
)  # fmt: skip
assert RECORD.itemsize == 48


class NetFlow5:
    per_session = False

    def __init__(self, context: ExportContext, engine: int) -> None:
        self._context = context
        self._engine = engine & 0xFFFF

    def encode(self, rows: Rows, most_bytes: int, now_ns: int) -> tuple[list[Message], Rows]:
        some = rows[rows["version"] == 4]
        rest = rows[rows["version"] != 4]
        if not len(some):
            return [], rest
        now_s, boot_ms = clock(some, self._context.run_ns, now_ns)
        ways = _split(one_way(some))
        records = np.zeros(len(ways), RECORD)
        for name in ("source", "destination"):
            records[name] = contiguous_address(ways, name, 4)
        for name in ("packets", "bytes"):
            records[name] = np.minimum(ways[name], MOST)
        for name in ("source_port", "destination_port", "tcp_flags", "protocol", "tos"):
            records[name] = ways[name]
        records["first"], records["last"] = (uptime(ways[name], boot_ms) for name in ("first_ns", "last_ns"))
        records["input"] = ways["interface"]

        one_in = self._context.sample.one_in if self._context.sample else 1
        # Two bits of mode (1: every so many packets), 14 of interval: more than that it cannot say.
        sampling = 0x4000 | min(one_in, 0x3FFF) if one_in > 1 else 0

        def header(n: int) -> bytes:
            uptime_ms = now_s * 1000 - boot_ms & 0xFFFF_FFFF
            return struct.pack(">HHIIIIHH", 5, n, uptime_ms, now_s & 0xFFFF_FFFF, 0, 0, self._engine, sampling)

        return cut(records, counts_of(ways), header, min(most_bytes, 24 + MOST_RECORDS * RECORD.itemsize)), rest

    def greeting(self, most_bytes: int, now_ns: int) -> list[Message]:  # noqa: ARG002 - every message explains itself
        return []

    def report(self, row: np.void, most_bytes: int, now_ns: int) -> list[Message]:  # noqa: ARG002 - it has no words for that
        return []

    def stamp(self, data: memoryview, sequence: int, now_ns: int) -> None:  # noqa: ARG002 - the time belongs to the uptimes in the records
        struct.pack_into(">I", data, 16, sequence & 0xFFFF_FFFF)


def _split(ways: Rows) -> Rows:
    """Those that count more than 32 bits hold as several that add up."""
    n_pieces = np.clip(-(-np.maximum(ways["bytes"], ways["packets"]) // MOST), 1, PIECES)
    if not len(n_pieces) or int(n_pieces.max()) == 1:
        return ways
    made = np.repeat(ways, n_pieces)
    firsts = np.cumsum(n_pieces) - n_pieces
    number = np.arange(len(made)) - np.repeat(firsts, n_pieces)
    for name in ("packets", "bytes"):
        made[name] = np.repeat(ways[name] // n_pieces, n_pieces) + (number < np.repeat(ways[name] % n_pieces, n_pieces))
    made["begins"][number > 0] = 0
    return made
