"""tshark as the judge of frames that were written: their checksums, and what stands in them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests import packets

_OPTIONS = (
    "ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "udp.check_checksum:TRUE", "tcp.desegment_tcp_streams:FALSE",
    "ip.defragment:FALSE", "ipv6.defragment:FALSE", "ip.tso_support:FALSE",
)  # fmt: skip
GOOD = "1"
CHECKSUMS = ("ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "icmp.checksum.status", "icmpv6.checksum.status")


def fields(frames: Sequence[bytes], directory: Path, *names: str) -> list[dict[str, list[str]]]:
    """All values of the named fields of each frame, outermost first; none where it has no such field."""
    file = directory / "frames.pcap"
    file.write_bytes(packets.pcap(frames))
    command = ["tshark", "-n", "-r", str(file), "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=;", "-E", "separator=/t"]
    for option in _OPTIONS:
        command += ["-o", option]
    for name in names:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(frames)
    return [{name: [v for v in value.split(";") if v] for name, value in zip(names, line.split("\t"), strict=True)} for line in lines]


def statuses(row: dict[str, list[str]]) -> list[str]:
    """Of every checksum that tshark looked at."""
    return [status for name in CHECKSUMS for status in row[name]]
