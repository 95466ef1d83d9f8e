"""The header of a pcap file (draft-ietf-opsawg-pcap; libpcap sf-pcap.c). Records are walked by `kernels.walk_records`."""

from __future__ import annotations

import ctypes
import struct
from typing import Protocol

from broker.core.batch import Batch
from broker.core.layout import MAX_FRAME_BYTES
from stages.capture import walk
from stages.capture.errors import SourceError
from stages.capture.kernels import walk_records
from stages.capture.window import Window

HEADER_BYTES = 24
LINKTYPE_ETHERNET = 1

# magic: (length of a record's header, ns of one unit of its fraction)
_MAGICS = {
    0xA1B2C3D4: (16, 1000),
    0xA1B23C4D: (16, 1),
    0xA1B2CD34: (24, 1000),  # Kuznetzov's modified libpcap: interface, protocol and packet type follow the lengths
}
_MODIFIED = 0xA1B2CD34
_COOKED_BYTES = 14  # the modified libpcap did not count the Ethernet header that it made up


class Format(Protocol):
    """How to read one kind of capture file."""

    header_bytes: int  # that must be there before `start`

    def start(self, window: Window) -> bool:
        """Read the file's header and stand after it; False: a pipe has not given all of it yet. SourceError when it cannot be read."""
        ...

    def resume(self, window: Window, at: int, state: tuple[int, int]) -> None:
        """After `start`: stand at offset `at`, with what `state` gave then."""
        ...

    def state(self) -> tuple[int, int]: ...

    def run(self, window: Window, batch: Batch, counters_at: int) -> int:
        """Make packets of what the window holds: FULL, NEED, PACED, BAD, LATER or ENOUGH."""
        ...


def matches(magic: bytes) -> bool:
    return int.from_bytes(magic, "little") in _MAGICS or int.from_bytes(magic, "big") in _MAGICS


class Pcap:
    header_bytes = HEADER_BYTES

    def __init__(self, row: walk.Walk) -> None:
        self._walk, self._walk_at = row, ctypes.addressof(row)

    def start(self, window: Window) -> bool:
        header = window.peek(HEADER_BYTES)
        big = int.from_bytes(header[:4], "big") in _MAGICS
        magic, major, minor, _zone, _figures, snaplen, network = struct.unpack(">IHHIIII" if big else "<IHHIIII", header)
        if major < 2:
            raise SourceError(window.path, 4, f"pcap version {major}.{minor} is not known")
        linktype = network & 0xFFFF  # above it: length of the frame check sequence
        if linktype != LINKTYPE_ETHERNET:
            raise SourceError(window.path, 20, f"link type {linktype}; only Ethernet (1) is read")
        if not 0 < snaplen < 2**31:
            snaplen = MAX_FRAME_BYTES
        elif magic == _MODIFIED:
            snaplen += _COOKED_BYTES
        row = self._walk
        row.big, row.snaplen = big, snaplen
        row.header_len, row.fraction_ns = _MAGICS[magic]
        row.order = walk.ORDER_CAPLEN_FIRST
        if (major == 2 and minor < 3) or (major == 543 and minor == 0):  # 543.0: DG/UX tcpdump
            row.order = walk.ORDER_WIRELEN_FIRST
        elif major == 2 and minor == 3:
            row.order = walk.ORDER_BY_SIZE
        window.seek(HEADER_BYTES)
        return True

    def resume(self, window: Window, at: int, state: tuple[int, int]) -> None:  # noqa: ARG002
        window.seek(at)

    def state(self) -> tuple[int, int]:
        return 0, 0

    def run(self, window: Window, batch: Batch, counters_at: int) -> int:  # noqa: ARG002
        return walk_records(self._walk_at, batch.packets_at, batch.data_at, counters_at)
