"""Sections and interfaces of a pcapng file (draft-ietf-opsawg-pcapng). Packets are walked by `pcapng_kernels.copy_blocks`."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from broker.core.batch import Batch
from broker.core.metrics import N_COUNTERS
from stages.capture import walk
from stages.capture.chunks import END, LATER, READY, Chunks
from stages.capture.errors import SourceError
from stages.capture.pcap import LINKTYPE_ETHERNET
from stages.capture.pcapng_kernels import copy_blocks

MAGIC = b"\x0a\x0d\x0d\x0a"
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_HEAD_BYTES = 12  # of a section header: as far as its byte-order magic
_SECTION_BYTES, _DESCRIPTION_BYTES = 28, 20  # without options
_MAX_SECTION_BYTES = 1024 * 1024  # as libpcap: more is not a header
_MAX_INTERFACES = 65_536
_END_OF_OPTIONS, _IF_TSRESOL, _IF_TSOFFSET = 0, 9, 14
_MICROSECONDS = 6


class Pcapng:
    header_bytes = _HEAD_BYTES

    def __init__(self, row: Any, row_at: int) -> None:
        self._walk, self._walk_at = row, row_at
        self._section_at = self._described_to = 0
        self._interfaces = np.zeros(8, walk.INTERFACE)

    def start(self, chunks: Chunks) -> bool:
        self._walk["emit"] = 1
        return self._read_section(chunks)

    def resume(self, chunks: Chunks, at: int, state: tuple[int, int]) -> None:
        """Read the section's interfaces again, over the packets between them, then go to where it was left."""
        section_at, described_to = state
        chunks.seek(section_at)
        self._read_section(chunks)
        uncounted = np.zeros(N_COUNTERS, np.int64)
        self._walk["emit"], self._walk["max_packets"], self._walk["n_packets"], self._walk["looked"] = 0, 1, 0, 0
        while chunks.position < described_to:
            status = self._copy(chunks, 0, 0, int(uncounted.ctypes.data))  # no block: nothing is given
            if status == walk.DESCRIPTION:
                self._read_description(chunks)
            elif status != walk.NEED or chunks.want(int(self._walk["need"])) != READY:
                raise SourceError(chunks.path, chunks.position, "is not the file that it was when it was left")
        self._walk["emit"] = 1
        chunks.seek(at)

    def state(self) -> tuple[int, int]:
        return self._section_at, self._described_to

    def run(self, chunks: Chunks, batch: Batch, counters_at: int) -> int:
        while True:
            status = self._copy(chunks, batch.packets_at, batch.data_at, counters_at)
            if status == walk.SECTION:
                if not self._is_there(self._section_len(chunks)):
                    return walk.NEED
                self._read_section(chunks)
            elif status == walk.DESCRIPTION:
                self._read_description(chunks)
            else:
                return status

    def _copy(self, chunks: Chunks, packets_at: int, data_at: int, counters_at: int) -> int:
        self._walk["interfaces_at"] = self._interfaces.ctypes.data
        return copy_blocks(chunks.buffer_at, self._walk_at, packets_at, data_at, counters_at)

    def _is_there(self, block_len: int) -> bool:
        self._walk["need"] = block_len
        return int(self._walk["end"]) - int(self._walk["at"]) >= block_len

    def _section_len(self, chunks: Chunks) -> int:
        """Checks the head of a Section Header Block and says how long the block is."""
        head = chunks.peek(_HEAD_BYTES)
        for order in "<>":
            _, block_len, magic = struct.unpack(f"{order}III", head)
            if magic == _BYTE_ORDER_MAGIC:
                break
        else:
            raise SourceError(chunks.path, chunks.position + 8, f"byte-order magic {head[8:12].hex()} is not known")
        if not _SECTION_BYTES <= block_len <= _MAX_SECTION_BYTES or block_len % 4:
            raise SourceError(chunks.path, chunks.position + 4, f"a section header of {block_len} bytes")
        return int(block_len)

    def _read_section(self, chunks: Chunks) -> bool:
        """False: a pipe has not given all of it yet."""
        found, block_len = chunks.want(_HEAD_BYTES), 0
        if found == READY:
            block_len = self._section_len(chunks)
            found = chunks.want(block_len)
        if found == LATER:
            return False
        if found == END:
            raise SourceError(chunks.path, chunks.position, "ends in the middle of a section header")
        block = chunks.peek(block_len)
        order = "<" if struct.unpack_from("<I", block, 8)[0] == _BYTE_ORDER_MAGIC else ">"
        major, minor = struct.unpack_from(f"{order}HH", block, 12)
        if (major, minor) not in ((1, 0), (1, 2)):
            raise SourceError(chunks.path, chunks.position + 12, f"pcapng version {major}.{minor} is not known")
        self._check_trailer(chunks, block, order)
        self._section_at, self._described_to = chunks.position, 0
        self._walk["big"], self._walk["n_interfaces"] = order == ">", 0
        self._walk["at"] += block_len
        return True

    def _check_trailer(self, chunks: Chunks, block: bytes, order: str) -> None:
        (trailer,) = struct.unpack_from(f"{order}I", block, len(block) - 4)
        if trailer != len(block):
            raise SourceError(chunks.path, chunks.position, walk.REASONS[walk.REASON_TRAILER].format(value=trailer))

    def _read_description(self, chunks: Chunks) -> None:
        """An Interface Description Block; the kernel has seen that all of it is there and that its lengths agree."""
        order = ">" if self._walk["big"] else "<"
        (block_len,) = struct.unpack(f"{order}I", chunks.peek(8)[4:])
        block, number = chunks.peek(block_len), int(self._walk["n_interfaces"])
        if block_len < _DESCRIPTION_BYTES:
            raise SourceError(chunks.path, chunks.position, walk.REASONS[walk.REASON_SHORT].format(value=block_len))
        if number == _MAX_INTERFACES:
            raise SourceError(chunks.path, chunks.position, f"a section with more than {_MAX_INTERFACES:,} interfaces")
        if number == len(self._interfaces):
            self._interfaces = np.concatenate([self._interfaces, np.zeros(number, walk.INTERFACE)])
        linktype, _, snaplen = struct.unpack_from(f"{order}HHI", block, 8)
        row = self._interfaces[number]
        row["ethernet"], row["snaplen"] = linktype == LINKTYPE_ETHERNET, snaplen
        row["unit"], row["amount"] = _unit(_MICROSECONDS)
        row["offset_s"] = 0
        self._read_options(chunks, block, order, row)
        self._walk["n_interfaces"] += 1
        self._walk["at"] += block_len
        self._described_to = chunks.position

    def _read_options(self, chunks: Chunks, block: bytes, order: str, row: Any) -> None:
        """if_tsresol and if_tsoffset; of another length than theirs they are not what they say, and left alone as by Wireshark."""
        at, end = 16, len(block) - 4
        while end - at >= 4:
            code, option_len = struct.unpack_from(f"{order}HH", block, at)
            value = block[at + 4 : at + 4 + option_len]
            if code == _END_OF_OPTIONS:
                return
            if at + 4 + option_len > end:
                raise SourceError(chunks.path, chunks.position + at, f"an option of {option_len} bytes, more than its block holds")
            if code == _IF_TSRESOL and option_len == 1:
                if 19 < value[0] < 128 or value[0] > 128 + 63:
                    base = "2" if value[0] & 128 else "10"
                    raise SourceError(chunks.path, chunks.position + at, f"a time resolution of {base}^-{value[0] & 127} s")
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
