"""Files of the spool: rows of one kind behind a header that says all that is needed to store them. What writes them is `spool`.

| name | what |
|---|---|
| ``KIND-RUN-ID.open`` | being written by the exporter, or left by one that died |
| ``KIND-RUN-ID-N.segment`` | closed: N rows, never changed again; the store process removes it once it is stored |
| ``damaged/NAME``, ``damaged/NAME.reason`` | could not be understood; the reason in words |

KIND is ``flows`` or ``meters``, RUN when the pipeline was made, ID when the file was begun (both in ns since 1970; IDs only grow).

A file: the magic, int32 length and uint32 CRC-32 of the header, the header (msgpack), rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from broker.core.errors import TapmeshError
from broker.core.flow_layout import FLOW
from broker.flows.meters import METER

Rows = NDArray[np.void]

MAGIC = b"TAPMSEG1"
VERSION = 1
KINDS: dict[str, np.dtype[np.void]] = {"flows": FLOW, "meters": METER}
_LENGTHS = struct.Struct("<iI")
_HEADER_MOST = 1 << 20


class SegmentError(TapmeshError):
    """A file of the spool is damaged or another version wrote it."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the rows do not say themselves."""

    kind: str
    node: str
    run: int  # ns since 1970: when the pipeline was made
    inputs: dict[int, str]  # slot -> name


@dataclass(frozen=True, slots=True)
class Segment:
    """A closed one."""

    path: Path
    kind: str
    run: int
    id: int
    n_rows: int

    @property
    def name(self) -> str:
        """The same for every attempt to store it, and for no other segment of the node."""
        return f"{self.run}-{self.id}"


def _digest(dtype: np.dtype[np.void]) -> str:
    return hashlib.blake2b(repr((dtype.descr, dtype.itemsize)).encode(), digest_size=8).hexdigest()


def header_bytes(header: Header) -> bytes:
    packed: bytes = msgpack.packb(
        {
            "version": VERSION,
            "kind": header.kind,
            "node": header.node,
            "run": header.run,
            "inputs": header.inputs,
            "digest": _digest(KINDS[header.kind]),
        }
    )
    return MAGIC + _LENGTHS.pack(len(packed), zlib.crc32(packed)) + packed


def read_header(fd: int) -> tuple[Header, int]:
    """The header and its length in the file. SegmentError in words."""
    head = os.pread(fd, len(MAGIC) + _LENGTHS.size, 0)
    if len(head) < len(MAGIC) + _LENGTHS.size or not head.startswith(MAGIC):
        raise SegmentError("does not begin as a segment does")
    n_bytes, crc = _LENGTHS.unpack_from(head, len(MAGIC))
    packed = os.pread(fd, n_bytes, len(head)) if 0 <= n_bytes <= _HEADER_MOST else b""
    if len(packed) != n_bytes or zlib.crc32(packed) != crc:
        raise SegmentError("its header is damaged")
    plain: Any = msgpack.unpackb(packed, strict_map_key=False)
    if plain["version"] != VERSION or plain["kind"] not in KINDS or plain["digest"] != _digest(KINDS[plain["kind"]]):
        raise SegmentError("another version of tapmesh wrote it")
    return Header(plain["kind"], plain["node"], plain["run"], plain["inputs"]), len(head) + n_bytes


def read_rows(fd: int, header: Header, header_len: int) -> Rows:
    """All whole rows behind the header."""
    dtype = KINDS[header.kind]
    n = (os.fstat(fd).st_size - header_len) // dtype.itemsize
    rows = np.empty(n, dtype)
    view, at = rows.view(np.uint8).data, 0
    while at < len(view):
        got = os.preadv(fd, [view[at:]], header_len + at)
        if not got:
            raise SegmentError(f"ends after {at} of {len(view)} bytes")
        at += got
    return rows


def load(segment: Segment) -> tuple[Header, Rows]:
    """SegmentError in words when it is not what its name says; OSError as the kernel puts it."""
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header, header_len = read_header(fd)
        size, expected = os.fstat(fd).st_size, header_len + segment.n_rows * KINDS[header.kind].itemsize
        if (header.kind, header.run) != (segment.kind, segment.run) or size != expected:
            raise SegmentError(f"{size} bytes, expected {expected} of {segment.n_rows} {segment.kind} of run {segment.run}")
        return header, read_rows(fd, header, header_len)
    finally:
        os.close(fd)


def closed(directory: Path) -> list[Segment]:
    """Those that wait for the store, the oldest first. What is no segment by its name is left alone."""
    found = []
    for name in _names(directory):
        kind, *numbers = name.removesuffix(".segment").split("-")
        if name.endswith(".segment") and kind in KINDS and len(numbers) == 3 and all(n.isdecimal() for n in numbers):
            found.append(Segment(directory / name, kind, *map(int, numbers)))
    return sorted(found, key=lambda s: s.id)


def left_open(directory: Path) -> list[Path]:
    """Files that an exporter was writing, the oldest first."""
    found = [directory / name for name in _names(directory) if name.endswith(".open") and name.split("-")[0] in KINDS]
    return sorted(found, key=lambda path: int(path.stem.split("-")[2]))


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(directory)
    return []


def used_bytes(directory: Path) -> int:
    """Of all files, those that were set aside too."""
    total = 0
    for place in (directory, directory / "damaged"):
        with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # the other process may remove it right now
                    total += entry.stat().st_size
    return total


def set_aside(path: Path, reason: str) -> Path:
    """It blocks nothing any more, and whoever looks for what is missing finds it, with the reason."""
    place = path.parent / "damaged"
    place.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):  # the reason is logged too
        (place / f"{path.name}.reason").write_text(f"{reason}\n")
    return path.rename(place / path.name)


def sync_directory(directory: Path) -> None:
    """What was renamed in it has that name after a power cut too."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
