"""Sections and interfaces of a pcapng file (draft-ietf-opsawg-pcapng). Packets are walked by `pcapng_kernels.walk_blocks`."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np

from broker.core.batch import Batch
from broker.core.metrics import N_COUNTERS
from stages.capture import walk
from stages.capture.errors import SourceError
from stages.capture.pcap import LINKTYPE_ETHERNET
from stages.capture.pcapng_kernels import walk_blocks
from stages.capture.window import Window

MAGIC = b"\x0a\x0d\x0d\x0a"
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_HEAD_BYTES = 12  # of a section header: as far as its byte-order magic
_SECTION_BYTES, _DESCRIPTION_BYTES = 28, 20  # without options
_MAX_SECTION_BYTES = 1024 * 1024  # as libpcap: more is not a header
_MAX_INTERFACES = 65_536
_HEADERS_PER_STEP = 2048  # each takes up to 25 us, and a file may hold nothing else
_PASSED_BYTES = 256 * 1024  # read at once of what is only walked over
_END_OF_OPTIONS, _IF_TSRESOL, _IF_TSOFFSET = 0, 9, 14
_MICROSECONDS = 6


class Pcapng:
    header_bytes = _HEAD_BYTES

    def __init__(self, row: walk.Walk) -> None:
        self._walk, self._walk_at = row, ctypes.addressof(row)
        self._section_at = self._described_to = 0
        self._interfaces = np.zeros(8, walk.INTERFACE)

    def start(self, window: Window) -> bool:
        self._walk.emit = 1
        return self._read_section(window)

    def resume(self, window: Window, at: int, state: tuple[int, int]) -> None:
        """Read the section's interfaces again, over the packets between them, then go to where it was left."""
        section_at, described_to = state
        window.seek(section_at)
        self._read_section(window)
        row, passed, uncounted = self._walk, np.zeros(_PASSED_BYTES, np.uint8), np.zeros(N_COUNTERS, np.int64)
        row.emit, row.max_packets, row.n_packets, row.looked, row.data_bytes = 0, 1, 0, 0, len(passed)
        while window.position < described_to:
            status = self._walk_blocks(0, int(passed.ctypes.data), int(uncounted.ctypes.data))
            if status == walk.DESCRIPTION:
                self._read_description(window)
            elif status != walk.NEED or not window.fill(passed, 0, row.need, len(passed)):
                raise SourceError(window.path, window.position, "is not the file that it was when it was left")
        row.emit = 1
        window.seek(at)

    def state(self) -> tuple[int, int]:
        return self._section_at, self._described_to

    def run(self, window: Window, batch: Batch, counters_at: int) -> int:
        while self._walk.headers < _HEADERS_PER_STEP:
            status = self._walk_blocks(batch.packets_at, batch.data_at, counters_at)
            if status == walk.SECTION:
                if not self._read_section(window):
                    return walk.LATER
                self._walk.headers += 1
            elif status == walk.DESCRIPTION:
                self._read_description(window)
                self._walk.headers += 1
            else:
                return status
        return walk.ENOUGH

    def _walk_blocks(self, packets_at: int, data_at: int, counters_at: int) -> int:
        self._walk.interfaces_at = self._interfaces.ctypes.data
        return walk_blocks(self._walk_at, packets_at, data_at, counters_at)

    def _section_len(self, window: Window, head: bytes) -> int:
        """Checks the head of a Section Header Block and says how long the block is."""
        for order in "<>":
            _, block_len, magic = struct.unpack(f"{order}III", head)
            if magic == _BYTE_ORDER_MAGIC:
                break
        else:
            raise SourceError(window.path, window.position + 8, f"byte-order magic {head[8:12].hex()} is not known")
        if not _SECTION_BYTES <= block_len <= _MAX_SECTION_BYTES or block_len % 4:
            raise SourceError(window.path, window.position + 4, f"a section header of {block_len} bytes")
        return int(block_len)

    def _read_section(self, window: Window) -> bool:
        """False: a pipe has not given all of it yet."""
        block, block_len = window.peek(_HEAD_BYTES), _HEAD_BYTES
        if len(block) == block_len:
            block_len = self._section_len(window, block)
            block = window.peek(block_len)
        if len(block) < block_len:
            if window.ended:
                raise SourceError(window.path, window.position, "ends in the middle of a section header")
            return False
        order = "<" if struct.unpack_from("<I", block, 8)[0] == _BYTE_ORDER_MAGIC else ">"
        major, minor = struct.unpack_from(f"{order}HH", block, 12)
        if (major, minor) not in ((1, 0), (1, 2)):
            raise SourceError(window.path, window.position + 12, f"pcapng version {major}.{minor} is not known")
        self._check_trailer(window, block, order)
        self._section_at, self._described_to = window.position, 0
        self._walk.big, self._walk.n_interfaces = order == ">", 0
        self._walk.at += block_len
        return True

    def _check_trailer(self, window: Window, block: bytes, order: str) -> None:
        (trailer,) = struct.unpack_from(f"{order}I", block, len(block) - 4)
        if trailer != len(block):
            raise SourceError(window.path, window.position, walk.REASONS[walk.REASON_TRAILER].format(value=trailer))

    def _read_description(self, window: Window) -> None:
        """An Interface Description Block; the kernel has seen that all of it is there and that its lengths agree."""
        order = ">" if self._walk.big else "<"
        (block_len,) = struct.unpack(f"{order}I", window.peek(8)[4:])
        block, number = window.peek(block_len), self._walk.n_interfaces
        if block_len < _DESCRIPTION_BYTES:
            raise SourceError(window.path, window.position, walk.REASONS[walk.REASON_SHORT].format(value=block_len))
        if number == _MAX_INTERFACES:
            raise SourceError(window.path, window.position, f"a section with more than {_MAX_INTERFACES:,} interfaces")
        if number == len(self._interfaces):
            self._interfaces = np.concatenate([self._interfaces, np.zeros(number, walk.INTERFACE)])
        linktype, _, snaplen = struct.unpack_from(f"{order}HHI", block, 8)
        row = self._interfaces[number]
        row["ethernet"], row["snaplen"] = linktype == LINKTYPE_ETHERNET, snaplen
        row["unit"], row["amount"] = _unit(_MICROSECONDS)
        row["offset_s"] = 0
        self._read_options(window, block, order, row)
        self._walk.n_interfaces += 1
        self._walk.at += block_len
        self._described_to = window.position

    def _read_options(self, window: Window, block: bytes, order: str, row: Any) -> None:
        """if_tsresol and if_tsoffset; of another length than theirs they are not what they say, and left alone as by Wireshark."""
        at, end = 16, len(block) - 4
        while end - at >= 4:
            code, option_len = struct.unpack_from(f"{order}HH", block, at)
            value = block[at + 4 : at + 4 + option_len]
            if code == _END_OF_OPTIONS:
                return
            if at + 4 + option_len > end:
                raise SourceError(window.path, window.position + at, f"an option of {option_len} bytes, more than its block holds")
            if code == _IF_TSRESOL and option_len == 1:
                if 19 < value[0] < 128 or value[0] > 128 + 63:
                    base = "2" if value[0] & 128 else "10"
                    raise SourceError(window.path, window.position + at, f"a time resolution of {base}^-{value[0] & 127} s")
                row["unit"], row["amount"] = _unit(value[0])
            elif code == _IF_TSOFFSET and option_len == 8:
                (row["offset_s"],) = struct.unpack(f"{order}q", value)
            at += 4 + (option_len + 3 & ~3)


def _unit(tsresol: int) -> tuple[int, int]:
    """The option if_tsresol as UNIT_* and its amount."""
    if tsresol & 128:
        return walk.UNIT_BINARY, tsresol & 127
    if tsresol <= 9:
        return walk.UNIT_MULTIPLY, 10 ** (9 - tsresol)
    return walk.UNIT_DIVIDE, 10 ** (tsresol - 9)
