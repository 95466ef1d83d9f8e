"""What a file reader's glue and its kernel tell each other: one row, private to the process.

| field | set by | meaning |
|---|---|---|
| at, end | both | next record and end of the file's bytes, as offsets in the block's data; `end` is behind the data when a record is \
longer than it |
| last | glue | the last four bytes of such a record |
| need | kernel | NEED: so many bytes from `at` on are wanted |
| reason | kernel | BAD: REASON_*; `value` is the number that offends |
| n_packets, data_used, looked | both | of the block being filled; `looked` counts dropped packets too |
| max_packets, data_bytes | glue | how much the block may hold |
| ts_limit, ts_next | glue, kernel | PACED: the next packet has the time `ts_next` > `ts_limit` |
| input | glue | slot |
| big | glue | 1: the file (pcapng: the section) is big-endian |
| header_len, fraction_ns | glue | pcap: of a record's header; ns of one unit of its second word |
| order, snaplen | glue | pcap: ORDER_*; the longest that a record may store |
| interfaces_at, n_interfaces | glue | pcapng: INTERFACE rows of the section |
| emit | glue | pcapng: 0: walk over packets without giving them, to find the interfaces again |
| headers | glue | pcapng: sections and interfaces read in this step |
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np


class Walk(ctypes.Structure):
    """All int64. Not a numpy row: there an access to a field costs 100 ns, and a block takes forty."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "at", "end", "last", "need", "reason", "value", "n_packets", "data_used", "looked", "max_packets", "data_bytes", "ts_limit",
            "ts_next", "input", "big", "header_len", "fraction_ns", "order", "snaplen", "interfaces_at", "n_interfaces", "emit", "headers",
        )
    )  # fmt: skip

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> int: ...


INTERFACE = np.dtype([(name, "<i8") for name in ("ethernet", "snaplen", "unit", "amount", "offset_s")])
"""pcapng: what an Interface Description Block says. `amount`: see UNIT_*; `snaplen` 0: no limit."""

UNIT_MULTIPLY, UNIT_DIVIDE, UNIT_BINARY = range(3)
"""A time in the file is so many times `amount` ns; `amount` of them are a ns; 2**`amount` of them are a second."""

FULL, NEED, PACED, BAD, SECTION, DESCRIPTION, LATER, ENOUGH = range(8)
"""Why a kernel stopped. SECTION, DESCRIPTION: such a block is at `at` and the glue must read it. LATER and ENOUGH come from the
glue: a pipe has no more now; there is more, and a worker must show signs of life."""

ORDER_CAPLEN_FIRST, ORDER_WIRELEN_FIRST, ORDER_BY_SIZE = range(3)
"""Which length comes first in a record of a pcap file; by size: the smaller one is caplen (version 2.3 was written both ways)."""

(
    REASON_CAPLEN, REASON_BLOCK_LEN, REASON_TRAILER, REASON_SHORT, REASON_INTERFACE, REASON_DATA,
) = range(6)  # fmt: skip
REASONS = (
    "a record of {value} bytes, more than a packet can have (262,144)",
    "a block length of {value}, which is not a multiple of 4 from 12 to 16,777,216",
    "a block whose two lengths differ; the second is {value}",
    "a block of {value} bytes, too short for its type",
    "a packet of interface {value}, which its section does not describe",
    "a packet of {value} bytes, more than its block holds",
)

MAX_LOOKED = 65_536  # per step: packets that are dropped fill no block, and a worker must show signs of life
MAX_BLOCK_BYTES = 16 * 1024 * 1024  # what libpcap and Wireshark take at most

NS = 1_000_000_000
MAX_NS = 2**63 - 1  # in the year 2262; a later time in a pcapng file is given as this


def field(name: str) -> int:
    """Offset of a field of Walk, for kernels."""
    return int(getattr(Walk, name).offset)


def interface_field(name: str) -> int:
    fields = INTERFACE.fields
    assert fields is not None
    return int(fields[name][1])
