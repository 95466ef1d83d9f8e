"""``python -m stages.send.tidy [--gzip] DIRECTORY FILE...``: what is left to do with a tool's capture files that nobody writes any more.

| FILE | done |
|---|---|
| ``NAME.part`` | cut to its whole records and renamed to ``NAME``, or removed if there is none; nothing if somebody holds its lock |
| ``NAME``, with --gzip | written to ``NAME.gz.part``, synced, renamed to ``NAME.gz``, and then ``NAME`` is removed |

A process of its own, at the lowest priority; killed at any moment it leaves a whole file behind, and the next one does it again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import os
import shutil
import struct
import sys
from pathlib import Path
from typing import IO

PART, ZIPPED = ".part", ".gz"
LEVEL = 6
_PCAP_HEADER, _RECORD_HEADER = 24, 16
_SECTION = b"\x0a\x0d\x0d\x0a"  # the same in both byte orders
_ENHANCED_PACKET = 6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.send.tidy", description="Close and compress capture files")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("directory", type=Path)
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    os.nice(19)
    status = 0
    for name in arguments.files:
        try:
            tidy(arguments.directory / name, zips=arguments.gzip)
        except FileNotFoundError:  # somebody has put it aside
            continue
        except OSError as error:
            print(f"{arguments.directory / name}: {error.strerror}", file=sys.stderr)  # noqa: T201
            status = 1
    return status


def tidy(path: Path, *, zips: bool) -> None:
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody writes it, or does what we would do
        if path.suffix == PART:
            whole = whole_bytes(file)
            if not whole:
                path.unlink()
                return
            file.truncate(whole)
            finished = path.with_suffix("")
            path.rename(finished)
            path = finished
        if zips and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            compress(path, file)


def whole_bytes(file: IO[bytes]) -> int:
    """Up to where the capture consists of whole records; 0: it has none. We write little-endian, so do those that we find."""
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) == _SECTION:
        return _whole_blocks(file, total)
    at = _PCAP_HEADER
    while at + _RECORD_HEADER <= total:
        file.seek(at + 8)
        (length,) = struct.unpack("<I", file.read(4))
        if at + _RECORD_HEADER + length > total:
            break
        at += _RECORD_HEADER + length
    return at if at > _PCAP_HEADER else 0


def _whole_blocks(file: IO[bytes], total: int) -> int:
    at = packets = 0
    while at + 12 <= total:
        file.seek(at)
        kind, length = struct.unpack("<II", file.read(8))
        if length < 12 or at + length > total:
            break
        packets += kind == _ENHANCED_PACKET
        at += length
    return at if packets else 0


def compress(path: Path, file: IO[bytes]) -> None:
    """The compressed file has the times and the mode of the plain one."""
    target = path.with_name(path.name + ZIPPED)
    unfinished = target.with_name(target.name + PART)
    file.seek(0)
    try:
        with unfinished.open("wb") as raw:
            with gzip.GzipFile(path.name, "wb", LEVEL, raw, mtime=path.stat().st_mtime) as zipped:
                shutil.copyfileobj(file, zipped, 1 << 20)
            raw.flush()
            os.fsync(raw.fileno())
        shutil.copystat(path, unfinished)  # FileNotFoundError: it has been removed meanwhile, as too old
        unfinished.rename(target)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        raise
    path.unlink()


if __name__ == "__main__":
    sys.exit(main())
