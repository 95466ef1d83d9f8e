"""What a capture begins with, and how its records are laid: pcap or pcapng, for files and streams alike.

| format | link type | times | says too |
|---|---|---|---|
| pcap | Ethernet; raw IP for outer packets | nanoseconds (magic 0xa1b23c4d) | |
| pcapng | Ethernet | nanoseconds (if_tsresol 9) | the input of each packet: an interface for each input of the lane |

A record's captured length is what is there; the original length counts what was on the wire, outer header included.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from broker.core import layout
from broker.core.batch import Batch
from broker.core.layout import MAX_FRAME_BYTES
from broker.core.model import Input, Tool
from broker.core.stage import Context
from stages.send import records
from stages.send.egress import BUFFER_BYTES, Scratch

NANOSECOND_MAGIC = 0xA1B23C4D
LINKTYPE_ETHERNET, LINKTYPE_RAW = 1, 101  # tcpdump.org/linktypes.html
_PCAP_HEADER = struct.Struct("<IHHiIII")

_SECTION, _INTERFACE = 0x0A0D0D0A, 1
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_END_OF_OPTIONS, _USER_APPLICATION, _IF_NAME, _IF_TSRESOL = 0, 4, 2, 9
_NANOSECONDS = b"\x09"


class Format(Protocol):
    """`header`: what a file begins with. `fill`: as `records.fill_pcap`, into the scratch buffer. `size`: bytes of these records."""

    header: bytes

    def fill(self, batch: Batch, rows_at: int, first: int, n_rows: int, scratch: Scratch) -> int: ...

    def size(self, batch: Batch, rows_at: int, n_rows: int) -> int: ...


def make_format(tool: Tool, context: Context) -> Format:
    if tool.format == "pcapng":
        return PcapNg(context.lane.inputs)
    return Pcap(LINKTYPE_RAW if tool.tunnel else LINKTYPE_ETHERNET)


class Pcap:
    def __init__(self, linktype: int) -> None:
        self.header = _PCAP_HEADER.pack(NANOSECOND_MAGIC, 2, 4, 0, 0, MAX_FRAME_BYTES, linktype)

    def fill(self, batch: Batch, rows_at: int, first: int, n_rows: int, scratch: Scratch) -> int:
        return records.fill_pcap(
            batch.frames_at, batch.packets_at, batch.headers_at, batch.data_at,
            rows_at, first, n_rows, scratch.buffer_at, BUFFER_BYTES, scratch.ends_at, scratch.lens_at,
        )  # fmt: skip

    def size(self, batch: Batch, rows_at: int, n_rows: int) -> int:
        return records.records_bytes(batch.frames_at, rows_at, n_rows, records.PCAP_AROUND, 1)


class PcapNg:
    """Inputs never change while a lane lives: all its interfaces stand at the beginning."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        names = {one.slot: one.name for one in inputs}  # an input of several files may come up again
        self.header = _block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1), [(_USER_APPLICATION, b"tapmesh")])
        self.interfaces = np.zeros(layout.INPUTS, np.int64)
        for number, (slot, name) in enumerate(names.items()):
            self.interfaces[slot] = number
            described = struct.pack("<HHI", LINKTYPE_ETHERNET, 0, MAX_FRAME_BYTES)
            self.header += _block(_INTERFACE, described, [(_IF_NAME, name.encode()), (_IF_TSRESOL, _NANOSECONDS)])
        self._interfaces_at = int(self.interfaces.ctypes.data)

    def fill(self, batch: Batch, rows_at: int, first: int, n_rows: int, scratch: Scratch) -> int:
        return records.fill_pcapng(
            batch.frames_at, batch.packets_at, batch.headers_at, batch.data_at,
            rows_at, first, n_rows, scratch.buffer_at, BUFFER_BYTES, scratch.ends_at, scratch.lens_at, self._interfaces_at,
        )  # fmt: skip

    def size(self, batch: Batch, rows_at: int, n_rows: int) -> int:
        return records.records_bytes(batch.frames_at, rows_at, n_rows, records.PCAPNG_AROUND, 4)


def _block(kind: int, fixed: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    """draft-ietf-opsawg-pcapng 3.1 and 3.5."""
    body = fixed + b"".join(struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in options)
    body += struct.pack("<HH", _END_OF_OPTIONS, 0)
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)
