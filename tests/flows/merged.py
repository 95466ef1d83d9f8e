"""Many captures in one file, one behind the other: what tools that take seconds to start are given."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from tests.corpus import Capture
from tests.libpcap import Record, read_ethernet

NOON_NS = 1_700_000_000 * 10**9
APART_NS = 600 * 10**9  # no flow goes on so long after
MOST = 2000  # packets of each


def records(captures: Iterable[Capture]) -> list[Record]:
    """Each begins APART_NS after the end of the one before; within one the distances stay, in whole microseconds."""
    found: list[Record] = []
    now_ns = NOON_NS
    for capture in captures:
        some = read_ethernet(capture.path, MOST)
        first_ns = min((one.ts_ns for one in some), default=0)
        span_ns = max((one.ts_ns for one in some), default=0) - first_ns
        if span_ns > 86_400 * 10**9:
            continue  # its clock is of another world
        found += [Record((now_ns + one.ts_ns - first_ns) // 1000 * 1000, one.wirelen, one.data) for one in some]
        now_ns += span_ns + APART_NS
    return found


def write(path: Path, packets: Iterable[Record]) -> Path:
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for one in packets:
            seconds, rest = divmod(one.ts_ns, 10**9)
            file.write(struct.pack("<IIII", seconds, rest // 1000, len(one.data), one.wirelen) + one.data)
    return path
