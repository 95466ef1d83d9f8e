"""NetFlow 9 (RFC 3954): a record for each direction that has packets.

    version 9 | records | uptime | seconds | sequence | source id || flowset id | length | record ...      20 + 4 bytes, then the records

The sequence number counts messages. Times are milliseconds since the device was started, which is when the header's seconds less its
uptime were: see `one_way.clock`.
"""

from __future__ import annotations

import struct

import numpy as np

from broker.core.flow_ring import Rows
from broker.flows.export.messages import ExportContext, Message, Part, cut, joined
from broker.flows.export.one_way import clock, contiguous_address, counts_of, one_way, uptime

V4, V6 = 256, 257
_SAMPLING, _INTERFACES, _STATISTICS = 258, 259, 260
_SYSTEM, _INTERFACE = 1, 2  # scopes
NAME_BYTES = 32

_COMMON = [
    (22, "first", ">u4"),  # FIRST_SWITCHED
    (21, "last", ">u4"),  # LAST_SWITCHED
    (2, "packets", ">u8"),  # IN_PKTS
    (1, "bytes", ">u8"),  # IN_BYTES
    (10, "interface", ">u4"),  # INPUT_SNMP
    (7, "source_port", ">u2"),  # L4_SRC_PORT
    (11, "destination_port", ">u2"),  # L4_DST_PORT
    (32, "icmp", ">u2"),  # ICMP_TYPE: type << 8 | code
    (58, "vlan", ">u2"),  # SRC_VLAN
    (25, "min_bytes", ">u2"),  # MIN_PKT_LNGTH
    (26, "max_bytes", ">u2"),  # MAX_PKT_LNGTH
    (4, "protocol", "u1"),  # PROTOCOL
    (5, "tos", "u1"),  # SRC_TOS
    (6, "tcp_flags", "u1"),  # TCP_FLAGS
    (60, "version", "u1"),  # IP_PROTOCOL_VERSION
]
FIELDS = {
    V4: [(8, "source", "V4"), (12, "destination", "V4"), *_COMMON],
    V6: [(27, "source", "V16"), (28, "destination", "V16"), *_COMMON],
}
RECORDS: dict[int, np.dtype[np.void]] = {
    template: np.dtype([(name, form) for _, name, form in fields]) for template, fields in FIELDS.items()
}
assert all(dtype.itemsize % 4 == 0 for dtype in RECORDS.values())  # else a flowset would need padding


def _flowset(flowset: int, content: bytes) -> bytes:
    content += bytes(-len(content) % 4)
    return struct.pack(">HH", flowset, 4 + len(content)) + content


def _templates() -> list[bytes]:
    made = b""
    for template, fields in FIELDS.items():
        made += struct.pack(">HH", template, len(fields))
        made += b"".join(struct.pack(">HH", element, np.dtype(form).itemsize) for element, _, form in fields)
    options = (
        struct.pack(">HHH4H2H", _SAMPLING, 4, 8, _SYSTEM, 4, 34, 4, 35, 1),
        struct.pack(">HHH4H", _INTERFACES, 4, 4, _INTERFACE, 4, 82, NAME_BYTES),
        struct.pack(">HHH4H4H", _STATISTICS, 4, 12, _SYSTEM, 4, 40, 8, 41, 8, 42, 8),
    )
    return [_flowset(0, made), *(_flowset(1, option) for option in options)]


class NetFlow9:
    per_session = False

    def __init__(self, context: ExportContext, source: int) -> None:
        self._context = context
        self._source = source

    def _header(self, n_records: int, now_s: int, boot_ms: int) -> bytes:
        return struct.pack(">HHIIII", 9, n_records, now_s * 1000 - boot_ms & 0xFFFF_FFFF, now_s & 0xFFFF_FFFF, 0, self._source)

    def encode(self, rows: Rows, most_bytes: int, now_ns: int) -> tuple[list[Message], Rows]:
        made: list[Message] = []
        if not len(rows):
            return made, rows
        now_s, boot_ms = clock(rows, self._context.run_ns, now_ns)
        ways = one_way(rows)
        for template, version in ((V4, 4), (V6, 6)):
            some = ways[ways["version"] == version]
            if not len(some):
                continue
            dtype = RECORDS[template]

            def header(n: int, template: int = template, size: int = dtype.itemsize) -> bytes:
                return self._header(n, now_s, boot_ms) + struct.pack(">HH", template, 4 + n * size)

            made += cut(_records(some, template, boot_ms), counts_of(some), header, most_bytes, step=1)
        return made, rows[(rows["version"] != 4) & (rows["version"] != 6)]

    def greeting(self, most_bytes: int, now_ns: int) -> list[Message]:
        return self._joined([(template, 2 if n == 0 else 1) for n, template in enumerate(_templates())], most_bytes, now_ns)

    def report(self, row: np.void, most_bytes: int, now_ns: int) -> list[Message]:
        parts = []
        for slot, name in self._context.inputs.items():
            parts.append((_flowset(_INTERFACES, struct.pack(f">I{NAME_BYTES}s", slot + 1, name.encode())), 1))
        if self._context.sample and self._context.sample.one_in > 1:
            parts.append((_flowset(_SAMPLING, struct.pack(">IIB", 0, self._context.sample.one_in, 2)), 1))
        sent = struct.pack(">IQQQ", 0, int(row["bytes"]), int(row["messages"]), int(row["records"]))
        return self._joined([*parts, (_flowset(_STATISTICS, sent), 1)], most_bytes, now_ns)

    def _joined(self, parts: list[Part], most_bytes: int, now_ns: int) -> list[Message]:
        now_s = now_ns // 1_000_000_000
        boot_ms = max(min(self._context.run_ns // 1_000_000, now_s * 1000), now_s * 1000 - 0xFFFF_FFFF)
        made = joined(parts, lambda _, n: self._header(n, now_s, boot_ms), most_bytes)
        return [message._replace(step=1) for message in made]

    def stamp(self, data: memoryview, sequence: int, now_ns: int) -> None:  # noqa: ARG002 - the time belongs to the uptimes in the records
        struct.pack_into(">I", data, 12, sequence & 0xFFFF_FFFF)


def _records(ways: Rows, template: int, boot_ms: int) -> Rows:
    records = np.empty(len(ways), RECORDS[template])
    for _, name, form in FIELDS[template]:
        if form.startswith("V"):
            records[name] = contiguous_address(ways, name, records.dtype[name].itemsize)
        elif name in ("first", "last"):
            records[name] = uptime(ways[f"{name}_ns"], boot_ms)
        else:
            records[name] = ways[name]
    return records
