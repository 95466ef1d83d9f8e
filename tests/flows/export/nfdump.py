"""Collectors of others, run for a moment: nfcapd, and what they share."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until

needs_nfdump = pytest.mark.skipif(shutil.which("nfcapd") is None, reason="nfcapd and nfanon (nfdump) are not installed")
ENVIRONMENT = {**os.environ, "TZ": "UTC"}


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def queued_bytes(port: int) -> int | None:
    """What waits in the socket on that port; None: nobody listens."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1] == f"0100007F:{port:04X}":
            return int(words[4].partition(":")[2], 16)
    return None


def ended(process: subprocess.Popen[bytes], number: int) -> None:
    process.send_signal(number)
    process.wait(20)


def nfcapd(directory: Path, deliver: Callable[[int], None]) -> Path:
    """The file of what it receives while `deliver` sends to a port."""
    port = free_port()
    directory.mkdir()
    command = ["nfcapd", "-b", "127.0.0.1", "-p", str(port), "-w", str(directory), "-t", "3600", "-B", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: queued_bytes(port) is not None, "nfcapd to listen")
        deliver(port)
        until(lambda: queued_bytes(port) == 0, "nfcapd to read all")
    finally:
        ended(process, signal.SIGTERM)
    (path,) = directory.glob("nfcapd.2*")
    return path


def nfdump(path: Path) -> list[dict[str, Any]]:
    command = ["nfdump", "-r", str(path), "-o", "json"]
    return list(json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout))
