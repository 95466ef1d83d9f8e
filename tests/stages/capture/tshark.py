"""tshark as the second independent reader: it reads what libpcap will not (interfaces that differ, odd versions)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.libpcap import Record

_ETHERNET = "1"  # WTAP_ENCAP_ETHERNET


def read(path: Path) -> tuple[list[Record], int, bool]:
    """Ethernet frames, the number of the others, and whether the file was read to its end. A frame without a time gets 0."""
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("tshark is not installed")
    done = subprocess.run([tshark, "-n", "-r", path, "-T", "json", "-x", "-j", "frame"], capture_output=True, check=False)
    records, others = [], 0
    packets: list[Any] = json.loads(done.stdout, strict=False) if done.stdout.strip() else []
    for packet in packets:
        layers = packet["_source"]["layers"]
        head = layers["frame"]
        if "frame.encap_type" not in head:
            continue  # a custom block: tshark lists it, but it is not a packet
        if head["frame.encap_type"] != _ETHERNET:
            others += 1
            continue
        seconds, _, fraction = head.get("frame.time_epoch", "0").partition(".")
        ts_ns = int(seconds) * 10**9 + int(fraction.ljust(9, "0"))
        records.append(Record(ts_ns, int(head["frame.len"]), bytes.fromhex(layers["frame_raw"][0])))
    return records, others, done.returncode == 0
