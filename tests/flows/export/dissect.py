"""What tshark makes of messages, and what was to be in them, said by itself."""

from __future__ import annotations

import datetime
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.flows.export.messages import Encoder, Message
from tests.flows.export.rows import NOW_NS

needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
PORT = 2055
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def stamped(encoder: Encoder, messages: Sequence[Message], sequence: int = 0) -> list[bytes]:
    """As they would leave."""
    for message in messages:
        encoder.stamp(message.data, sequence, NOW_NS)
        sequence += message.step
    return [bytes(message.data) for message in messages]


def write_pcap(path: Path, datagrams: Sequence[bytes]) -> Path:
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 228))  # raw IPv4
        for data in datagrams:
            n = 28 + len(data)
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, n, 0, 0, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
            file.write(struct.pack("<IIII", 0, 0, n, n) + ip + struct.pack(">HHHH", 4000, PORT, n - 20, 0) + data)
    return path


def tshark(path: Path, *words: str) -> str:
    command = ["tshark", "-r", str(path), "-d", f"udp.port=={PORT},cflow", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin"}).stdout


def fields(path: Path, *names: str) -> list[dict[str, list[str]]]:
    """Of each message, all values of each field in the order in which they stand."""
    words = [word for name in names for word in ("-e", f"cflow.{name}")]
    text = tshark(path, "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=;", *words)
    split = [line.split("\t") for line in text.splitlines()]
    return [{name: value.split(";") if value else [] for name, value in zip(names, line, strict=True)} for line in split]


def records(path: Path, *names: str) -> list[dict[str, Any]]:
    """All data records of a capture whose messages have those fields once or twice in each record; a pair is a tuple."""
    made = []
    for message in fields(path, *names):
        n = len(message[names[0]])
        for at in range(n):
            each = {name: len(values) // n for name, values in message.items()}
            made.append({name: message[name][at * each[name] : (at + 1) * each[name]] for name in names})
    return made


def time_ns(text: str) -> int:
    """Of tshark: "Jan 15, 2027 08:00:00.123000000 UTC"."""
    whole, _, rest = text.removesuffix(" UTC").rpartition(".")
    moment = datetime.datetime.strptime(whole, "%b %d, %Y %H:%M:%S").replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // datetime.timedelta(seconds=1) * 1_000_000_000 + int(rest)


def lines(path: Path) -> list[str]:
    """All that tshark says."""
    return [" ".join(line.split()) for line in tshark(path, "-V").splitlines()]


def assert_clean(said: list[str]) -> None:
    """Nothing is malformed, undissected or suspicious, and every set had its template."""
    text = "\n".join(said)
    assert text.count("Cisco NetFlow/IPFIX") == text.count("Frame Number:")
    assert not [word for word in ("Malformed", "Expert Info", "No template", "Unknown", "undecoded") if word in text]
