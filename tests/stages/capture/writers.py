"""Capture files written with struct, by the drafts: the other end of what the readers are tested with."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.libpcap import Record

ETHERNET = 1


def pcap_header(
    order: str = "<", magic: int = 0xA1B2C3D4, version: tuple[int, int] = (2, 4), snaplen: int = 262_144, network: int = 1
) -> bytes:
    return struct.pack(f"{order}IHHiIII", magic, *version, 0, 0, snaplen, network)


def pcap_record(record: Record, order: str = "<", fraction_ns: int = 1000, *, swapped: bool = False, extra: bytes = b"") -> bytes:
    seconds, fraction = divmod(record.ts_ns, 10**9)
    lengths = (len(record.data), record.wirelen)
    return struct.pack(f"{order}IIII", seconds, fraction // fraction_ns, *(lengths[::-1] if swapped else lengths)) + extra + record.data


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


@dataclass
class Pcapng:
    """Blocks of one section, in its byte order."""

    order: str = "<"
    blocks: list[bytes] = field(default_factory=list)

    def block(self, kind: int, body: bytes, *, length: int | None = None, trailer: int | None = None) -> Pcapng:
        body += bytes(-len(body) % 4)
        length = 12 + len(body) if length is None else length
        trailer = length if trailer is None else trailer
        self.blocks.append(struct.pack(f"{self.order}II", kind, length) + body + struct.pack(f"{self.order}I", trailer))
        return self

    def section(self, version: tuple[int, int] = (1, 0), options: bytes = b"") -> Pcapng:
        return self.block(0x0A0D0D0A, struct.pack(f"{self.order}IHHq", 0x1A2B3C4D, *version, -1) + options)

    def interface(self, linktype: int = ETHERNET, snaplen: int = 0, tsresol: int | None = None, tsoffset: int | None = None) -> Pcapng:
        options = option(2, b"eth0", self.order)
        if tsresol is not None:
            options += option(9, bytes([tsresol]), self.order)
        if tsoffset is not None:
            options += option(14, struct.pack(f"{self.order}q", tsoffset), self.order)
        return self.block(1, struct.pack(f"{self.order}HHI", linktype, 0, snaplen) + options + option(0, b"", self.order))

    def enhanced(self, data: bytes, wirelen: int | None = None, interface: int = 0, units: int = 0, caplen: int | None = None) -> Pcapng:
        caplen = len(data) if caplen is None else caplen
        wirelen = caplen if wirelen is None else wirelen
        head = struct.pack(f"{self.order}IIIII", interface, units >> 32, units & 0xFFFFFFFF, caplen, wirelen)
        return self.block(6, head + data + bytes(-len(data) % 4) + option(1, b"a comment", self.order))

    def obsolete(self, data: bytes, wirelen: int, interface: int = 0, units: int = 0) -> Pcapng:
        head = struct.pack(f"{self.order}HHIIII", interface, 9, units >> 32, units & 0xFFFFFFFF, len(data), wirelen)
        return self.block(2, head + data)

    def simple(self, data: bytes, wirelen: int | None = None) -> Pcapng:
        return self.block(3, struct.pack(f"{self.order}I", len(data) if wirelen is None else wirelen) + data)

    def bytes(self) -> bytes:
        return b"".join(self.blocks)


def frame(n: int, length: int = 60) -> bytes:
    """Tells its number; not a valid packet of anything, as capture must not care."""
    return (b"%08d" % n * (length // 8 + 1))[:length]


def numbered(n: int, *, length: int = 60, start_ns: int = 1_700_000_000 * 10**9, step_ns: int = 1_000_000) -> list[Record]:
    """Times are whole microseconds when step_ns is."""
    return [Record(start_ns + i * step_ns, length + i % 3, frame(i, length + i % 3)) for i in range(n)]
