"""Writes the minute of the shop as a capture file (pcap, nanoseconds, Ethernet).

python -m broker.demo.generate FILE
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from broker.demo.traffic import minute

_MAGIC_NS, _ETHERNET, _SNAPLEN = 0xA1B23C4D, 1, 262_144


def generate(path: Path) -> int:
    """Returns the number of packets."""
    packets = minute()
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", _MAGIC_NS, 2, 4, 0, 0, _SNAPLEN, _ETHERNET))
        for ts_ns, frame in packets:
            seconds, rest_ns = divmod(ts_ns, 1_000_000_000)
            file.write(struct.pack("<IIII", seconds, rest_ns, len(frame), len(frame)) + frame)
    return len(packets)


if __name__ == "__main__":
    print(f"{generate(Path(sys.argv[1]))} packets")  # noqa: T201 - a command
