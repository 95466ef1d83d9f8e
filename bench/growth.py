"""What a packet costs as the work grows: each axis over its decades, one row a point, and no cliff.

A point costs `times` what the point a decade before it costs (the first point, where none is so far before); more than CLIFF times is
a cliff and is marked. What a packet of many copies costs grows with the copies, so there it is the cost of a frame.

| axis | from | to | limit | measured |
|---|---|---|---|---|
| copies of a packet | 1 | 64 | 64 tools, one verdict bit each | encapsulate and send to /dev/null, a frame |
| maps | 1 | 256 | 256 | filter, one rule in each map |
| rules | 1 | 10,000 | | filter, over 8 maps |
| flows, filter | 100 | 1,000,000 | | filter, 100 rules, flows met at random |
| flows, metered | 100 | 1,000,000 | `max_flows` | flows stage, flows met at random |
| senders | 1 | 1,000 | 512 are told apart; packets of others are taken, and counted as untracked | capture at a UDP socket on loopback |
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench import programs, workload
from bench.alone import run as run_alone
from bench.filesides import NULL
from bench.filter import N_MAPS, config_of, net_port_rules, run_judging
from bench.flows import BLOCK_PACKETS, Traffic, run_metering
from bench.judging import Judging, Policy, blocks, empty_block
from bench.pybroker import GRE
from bench.report import Row
from broker.cli.common import quiet_logs
from broker.core import log
from broker.core.batch import heap_batch
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS, index
from broker.core.model import Input, Lane
from broker.core.stage import Context
from stages.capture.endpoint import Endpoint

CLIFF = 3.0
_GRE_UDP_PORT = 47_540
_BURST = 256  # datagrams that any socket holds
_NET_10 = 10 << 24

Points = list[tuple[int, float]]


def measure(quick: bool) -> Iterator[Row]:
    quiet_logs()
    log.configure()
    with programs.scratch() as directory:
        capture = directory / "in.pcap"
        workload.write_capture(capture, "imix", 6_000 if quick else 200_000)
        yield from _table("copies of a packet", _copies((1, 64) if quick else (1, 2, 4, 8, 16, 32, 64), capture, directory), "ns/frame")
        workload.write_capture(capture, "imix", 1_024 if quick else 16_384)
        packets = list(workload.frames_of(capture))
    seconds = 0.01 if quick else 1.0
    yield from _table("maps", _maps((1, 256) if quick else (1, 4, 16, 64, 256), packets, seconds))
    yield from _table("rules", _rules((1, 100) if quick else (1, 10, 100, 1_000, 10_000), packets, seconds))
    flows = (100, 1_000) if quick else (100, 1_000, 10_000, 100_000, 1_000_000)
    yield from _table("flows, filter", _judged_flows(flows, seconds))
    yield from _table("flows, metered", [(n, statistics.median(run_metering(n, seconds, ipv6=False)[0])) for n in flows])
    yield from _table("senders", _senders((1, 10) if quick else (1, 10, 100, 1_000), seconds))


def grown(points: Points) -> list[float]:
    """For each point its cost over that of the last one that is a decade or more before it, else of the first."""
    return [cost / next((c for m, c in reversed(points[:i]) if 10 * m <= n), points[0][1]) for i, (n, cost) in enumerate(points)]


def _table(axis: str, points: Points, unit: str = "ns/packet") -> Iterator[Row]:
    for (n, cost), times in zip(points, grown(points), strict=True):
        yield Row("growth", f"{axis}: {n:,}", cost, unit, {}, {"times": round(times, 2), "cliff": times > CLIFF})


def _copies(counts: Sequence[int], capture: Path, directory: Path) -> Points:
    found = []
    for n in counts:
        tools = [f"  t{i}: {{tunnel: {{kind: gre, source: 192.0.2.1, remote: 192.0.2.{i + 2}}}}}" for i in range(n)]
        to = ", ".join(f"t{i}" for i in range(n))
        lines = [f"inputs: {{in: {{kind: pcap, files: ['{capture}']}}}}", "tools:", *tools, f"collector: [{to}]"]
        config = directory / "copies.yaml"
        config.write_text("\n".join(lines) + "\n")
        said = run_alone(capture, config, NULL, 1)
        found.append((n, (said["stages_ns"]["encapsulate"] + said["stages_ns"]["send"]) / said["frames"]))
    return found


def _maps(counts: Sequence[int], packets: Sequence[bytes], seconds: float) -> Points:
    return [(n, _judged(net_port_rules(n), n, packets, seconds)) for n in counts]


def _rules(counts: Sequence[int], packets: Sequence[bytes], seconds: float) -> Points:
    return [(n, _judged(net_port_rules(n), min(N_MAPS, n), packets, seconds)) for n in counts]


def _judged(texts: Sequence[str], n_maps: int, packets: Sequence[bytes], seconds: float) -> float:
    return statistics.median(run_judging(Policy(config_of(texts, n_maps)), blocks(packets), len(packets), seconds))


def _judged_flows(counts: Sequence[int], seconds: float) -> Points:
    policy = Policy(config_of(net_port_rules(100), N_MAPS))
    judging = Judging(policy, BLOCK_PACKETS)
    traffic = Traffic([empty_block(BLOCK_PACKETS)], ipv6=False)
    rng, (batch,) = np.random.default_rng(1), traffic.blocks
    found = []
    for n in counts:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 4 or time.perf_counter() < end:
            traffic.fill(batch, _NET_10 + rng.integers(0, n, BLOCK_PACKETS), 0)
            times.append(judging.ns(batch) / BLOCK_PACKETS)
        found.append((n, statistics.median(times)))
    return found


def _senders(counts: Sequence[int], seconds: float) -> Points:
    """Each sender has an address on loopback, and they send in turn."""
    return [(n, _received(n, seconds)) for n in counts]


def _received(n: int, seconds: float) -> float:
    there = Input("in", "tunnel", listen="gre-udp", senders=("127.0.0.0/8",), port=_GRE_UDP_PORT, address="127.0.0.1")
    counters, live = np.zeros(N_COUNTERS, np.int64), np.zeros(N_COUNTERS, np.int64)
    geometry = Geometry(max_frames=1, header_bytes=64)
    datagram = GRE + bytes(12) + b"\x08\x00" + bytes(46)
    senders: list[socket.socket] = []
    with tempfile.TemporaryDirectory() as directory:
        at = int(counters.ctypes.data), int(live.ctypes.data)
        source = Endpoint(Context(Path(directory), Lane(0, (there,)), 0, 1, geometry, 1, counters, at[0], live, at[1], 0, 0, 0))
        source.open()
        try:
            for i in range(n):
                senders.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                senders[-1].bind((f"127.1.{i // 250}.{i % 250 + 1}", 0))
            batch, turn, seq = heap_batch(geometry), 0, 0
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < 4 or turn < n or time.perf_counter() < end:
                for _ in range(_BURST):
                    senders[turn % n].sendto(datagram, ("127.0.0.1", _GRE_UDP_PORT))
                    turn += 1
                taken = spent = 0
                while taken < _BURST:
                    batch.seq, seq = seq, seq + 1
                    began = time.perf_counter_ns()
                    looked = source.step(batch)
                    spent += time.perf_counter_ns() - began
                    if not looked:
                        raise RuntimeError(f"{taken} of {_BURST} datagrams came over loopback")
                    taken += looked
                times.append(spent / _BURST)
            received = int(counters[index("capture", "captured_packets")])
            if received != turn:
                raise RuntimeError(f"{received} of {turn} packets were taken")
        finally:
            for sender in senders:
                sender.close()
            source.close()
    return statistics.median(times)
