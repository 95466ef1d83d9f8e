"""IPFIX (RFC 7011): flows that go both ways in one record (RFC 5103), elements of IANA's registry only.

A message holds one set of records of one template::

    version 10 | length | export time | sequence | domain || set id | length | record ...        16 + 4 bytes, then the records

The sequence number counts data records, those of options too, that were sent before. What stands in the tables below is sent in this
order. No enterprise number is registered for this project, so nothing of its own is sent: what IANA has no element for is left out.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.core import flow_layout as layout
from broker.core.flow_ring import Rows
from broker.flows.export import ipfix_options as options
from broker.flows.export.messages import Counts, ExportContext, Message, Part, cut, joined

REVERSE_PEN = 29305  # RFC 5103, 6.1
V4, V6 = 256, 257  # template ids
_TCP, _ICMP, _ICMP6 = 6, 1, 58
_VXLAN_TYPE = 1 << 56  # layer2SegmentId: the upper byte says what the rest is


class Field(NamedTuple):
    element: int
    format: str
    column: str  # of FLOW, or of `_DERIVED`
    direction: int | None = None  # which of a pair
    key: bool = False
    reverse: bool = False


def _both(element: int, format: str, column: str) -> list[Field]:  # noqa: A002
    """The reverse one first: nfcapd takes the last for the forward one, where it knows no reverse."""
    return [Field(element, format, column, 1, reverse=True), Field(element, format, column, 0)]


def _fields(source: int, destination: int, address: str, icmp: int) -> list[Field]:
    return [
        Field(152, ">u8", "first_ms"),  # flowStartMilliseconds: every collector reads it, nanoseconds few do
        Field(153, ">u8", "last_ms"),  # flowEndMilliseconds
        *_both(2, ">u8", "packets"),  # packetDeltaCount
        *_both(1, ">u8", "bytes"),  # octetDeltaCount
        Field(source, address, "source", key=True),
        Field(destination, address, "destination", key=True),
        Field(7, ">u2", "source_port", key=True),  # sourceTransportPort
        Field(11, ">u2", "destination_port", key=True),  # destinationTransportPort
        Field(4, "u1", "protocol", key=True),  # protocolIdentifier
        Field(239, "u1", "biflow_direction"),
        Field(icmp, ">u2", "icmp"),  # icmpTypeCodeIPv4, icmpTypeCodeIPv6
        Field(58, ">u2", "vlan", key=True),  # vlanId, not dot1qVlanId (243): NetFlow 9 has it too, and more collectors
        Field(10, ">u4", "interface", key=True),  # ingressInterface
        Field(351, ">u8", "segment", key=True),  # layer2SegmentId
        *_both(25, ">u2", "min_bytes"),  # minimumIpTotalLength
        *_both(26, ">u2", "max_bytes"),  # maximumIpTotalLength
        *_both(5, "u1", "tos"),  # ipClassOfService
        *_both(6, "u1", "tcp_flags"),  # tcpControlBits, the lower octet (RFC 7125)
        Field(192, "u1", "ttl"),  # ipTTL: of the first packet, as RFC 7012 has it of what changes; not the minimum (52)
        Field(136, "u1", "end"),  # flowEndReason
    ]


FIELDS = {V4: _fields(8, 12, "V4", 32), V6: _fields(27, 28, "V16", 139)}


def _dtype(fields: list[Field]) -> np.dtype[np.void]:
    return np.dtype([(f"{f.column}{f.direction or ''}", f.format) for f in fields])


RECORDS = {template: _dtype(fields) for template, fields in FIELDS.items()}


def _template(template: int) -> bytes:
    """A template record: RFC 7011, 3.4.1."""
    fields = FIELDS[template]
    made = struct.pack(">HH", template, len(fields))
    for field in fields:
        element = field.element | (0x8000 if field.reverse else 0)
        made += struct.pack(">HH", element, np.dtype(field.format).itemsize)
        made += struct.pack(">I", REVERSE_PEN) if field.reverse else b""
    return made


def key_bits(template: int) -> int:
    """flowKeyIndicator: bit n is set if field n tells flows apart (RFC 7011, 4.4)."""
    return sum(1 << n for n, field in enumerate(FIELDS[template]) if field.key)


class Ipfix:
    per_session = True

    def __init__(self, context: ExportContext, domain: int) -> None:
        self._context = context
        self._domain = domain

    def _header(self, n_bytes: int) -> bytes:
        return struct.pack(">HHIII", 10, 16 + n_bytes, 0, 0, self._domain)

    def encode(self, rows: Rows, most_bytes: int, now_ns: int) -> tuple[list[Message], Rows]:  # noqa: ARG002 - other formats need the time
        made: list[Message] = []
        for template, version in ((V4, 4), (V6, 6)):
            some = rows[rows["version"] == version]
            if not len(some):
                continue
            records, set_id, size = _records(some, template), template, RECORDS[template].itemsize

            def header(n: int, set_id: int = set_id, size: int = size) -> bytes:
                return self._header(4 + n * size) + struct.pack(">HH", set_id, 4 + n * size)

            made += cut(records, _counts(some), header, most_bytes)
        return made, rows[(rows["version"] != 4) & (rows["version"] != 6)]

    def greeting(self, most_bytes: int, now_ns: int) -> list[Message]:  # noqa: ARG002 - likewise
        templates = [options.in_set(2, _template(V4)), options.in_set(2, _template(V6)), *options.templates()]
        return self._joined([(part, 0) for part in templates], most_bytes)

    def report(self, row: np.void, most_bytes: int, now_ns: int) -> list[Message]:
        keys = {template: key_bits(template) for template in FIELDS}
        facts = options.facts(self._context, keys, self._domain)
        return self._joined(facts + options.statistics(self._context, row, self._domain, now_ns), most_bytes)

    def _joined(self, parts: list[Part], most_bytes: int) -> list[Message]:
        return joined(parts, lambda n_bytes, _: self._header(n_bytes), most_bytes)

    def stamp(self, data: memoryview, sequence: int, now_ns: int) -> None:
        struct.pack_into(">II", data, 4, now_ns // 1_000_000_000 & 0xFFFF_FFFF, sequence & 0xFFFF_FFFF)


def _counts(rows: Rows) -> Counts:
    return np.ones(len(rows), np.int64), rows["packets"].sum(axis=1), rows["bytes"].sum(axis=1)


def _records(rows: Rows, template: int) -> Rows:
    """FLOW rows of one IP version as the records of its template."""
    records = np.empty(len(rows), RECORDS[template])
    derived = _derived(rows, 4 if template == V4 else 16)
    for name, field in zip(RECORDS[template].names or (), FIELDS[template], strict=True):
        of = derived[field.column] if field.column in derived else rows[field.column]
        records[name] = of if field.direction is None else of[:, field.direction]
    return records


def _derived(rows: Rows, address_bytes: int) -> dict[str, NDArray[np.generic]]:
    is_icmp = (rows["protocol"] == _ICMP) | (rows["protocol"] == _ICMP6)
    is_known = ((rows["flags"] & layout.FLOW_BEGAN) != 0) | (rows["protocol"] != _TCP)
    is_vxlan = rows["tunnel"] == layout.TUNNEL_VXLAN

    def address(column: str) -> NDArray[np.generic]:
        return np.ascontiguousarray(rows[column][:, 16 - address_bytes :]).view(f"V{address_bytes}")[:, 0]

    return {
        "first_ms": rows["first_ns"] // 1_000_000,
        "last_ms": rows["last_ns"] // 1_000_000,
        "source": address("source"),
        "destination": address("destination"),
        "source_port": np.where(is_icmp, 0, rows["source_port"]),
        "destination_port": np.where(is_icmp, 0, rows["destination_port"]),
        "biflow_direction": is_known.astype(np.uint8),  # 1: the source is who began; 0: who was seen first
        "interface": rows["input"].astype(np.uint32) + 1,
        "segment": np.where(is_vxlan, rows["tunnel_id"].astype(np.int64) | _VXLAN_TYPE, 0),
    }
