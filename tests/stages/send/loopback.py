"""Both ends of a tunnel on one host."""

from __future__ import annotations

import os
import socket

import pytest

from broker.core.batch import Batch
from broker.core.model import Tool
from tests.stages.delivery import encapsulate, fill, new_batch

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root")


def block(tools: list[Tool], packets: list[bytes], verdicts: list[int] | int = 1, seq: int = 0, flows: list[int] | None = None) -> Batch:
    batch = new_batch()
    batch.seq = seq
    fill(batch, packets, verdicts, flows=flows)
    encapsulate(batch, *tools)
    return batch


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind((address, 0))
        return int(free.getsockname()[1])


def received(opened: socket.socket, n: int) -> list[bytes]:
    return [opened.recv(70_000) for _ in range(n)]
