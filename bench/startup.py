"""From starting the agent to the first packet at its receiver, with compiled kernels in their cache."""

from __future__ import annotations

import select
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from bench import programs, workload
from bench.report import Row

FIRST_S, PATIENCE_S = 300.0, 30.0
"""The first start may have to compile."""


def measure(quick: bool) -> Iterator[Row]:
    n_runs = 1 if quick else 5
    with programs.scratch() as directory, programs.sink() as receiver:
        capture, config = directory / "in.pcap", directory / "bench.yaml"
        workload.write_capture(capture, "imix", 2_000)
        tool = f"{{tunnel: {{kind: gre-udp, remote: 127.0.0.1, port: {receiver.getsockname()[1]}, key: 7}}}}"
        config.write_text(programs.config_text(capture, tool, ["ip or ip6"], pace="1000"))
        _first_packet(config, receiver, FIRST_S)
        taken = [_first_packet(config, receiver, PATIENCE_S) for _ in range(n_runs)]
    case = "start of the agent to the first packet delivered, warm kernel cache"
    yield Row("startup", case, statistics.median(taken), "s", {}, {"runs": n_runs, "slowest_s": round(max(taken), 3)})


def _first_packet(config: Path, receiver: socket.socket, patience_s: float) -> float:
    began = time.monotonic()
    with programs.agent(config):
        if not select.select([receiver], [], [], patience_s)[0]:
            raise RuntimeError(f"no packet within {patience_s} s")
        taken = time.monotonic() - began
    programs.drain(receiver, 0)
    return taken
