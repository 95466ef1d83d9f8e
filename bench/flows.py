"""What metering costs: the flows stage's kernels on blocks of 64-byte TCP packets, with few and with a million live flows, one core."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.report import Row
from broker.core.batch import Batch, heap_batch
from broker.core.flow_layout import FlowSizes, flow_offsets
from broker.core.flow_model import Flows as Options
from broker.core.flow_ring import FlowMemory, create_flows
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS
from broker.core.model import Config, Input, Lane
from broker.core.stage import Context, Generation
from stages.flows.stage import Flows

BLOCK_PACKETS, _FRAME_BYTES = 1024, 64
_NOON_NS = 1_700_000_000_000_000_000
_GAP_NS = 100


def measure(quick: bool) -> Iterator[Row]:
    for n_flows in (1_000, 2_000) if quick else (1_000, 100_000, 1_000_000):
        for ends in (True, False):
            times, n_bytes, flows = run_metering(n_flows, 0.02 if quick else 2.0, ipv6=not ends)
            detail = {"min": round(min(times), 1), "flows": flows, "bytes_per_flow": round(n_bytes / n_flows, 1)}
            case = f"{n_flows:,} live flows, uniform, IPv{4 if ends else 6}"
            yield Row("flows", case, statistics.median(times), "ns/packet", {}, detail)


def _frame(ipv6: bool) -> np.ndarray:
    frame = np.zeros(_FRAME_BYTES + 20 * ipv6, np.uint8)
    if ipv6:
        frame[12:14] = 0x86, 0xDD
        frame[14], frame[19], frame[20], frame[21] = 0x60, 30, 6, 64
        frame[66], frame[67] = 0x50, 0x10
    else:
        frame[12:14] = 0x08, 0x00
        frame[14], frame[17], frame[22], frame[23] = 0x45, 50, 64, 6
        frame[46], frame[47] = 0x50, 0x10
    return frame


class Traffic:
    """Blocks whose packets belong to given flows."""

    def __init__(self, blocks: list[Batch], *, ipv6: bool) -> None:
        self.blocks = blocks
        frame = _frame(ipv6)
        self._stride, self._client, self._port = (128, 14 + 8 + 12, 14 + 40) if ipv6 else (64, 14 + 12, 14 + 20)
        for batch in self.blocks:
            rows = batch.packets[:BLOCK_PACKETS]
            rows["data_at"] = np.arange(BLOCK_PACKETS) * self._stride
            rows["caplen"] = rows["wirelen"] = len(frame)
            batch.data[: BLOCK_PACKETS * self._stride].reshape(-1, self._stride)[:, : len(frame)] = frame
            batch.block["n_packets"] = BLOCK_PACKETS

    def fill(self, batch: Batch, flows: np.ndarray, now_ns: int) -> None:
        table = batch.data[: BLOCK_PACKETS * self._stride].reshape(-1, self._stride)
        numbers = flows.astype(">u4").view(np.uint8).reshape(-1, 4)
        table[:, self._client : self._client + 4] = numbers
        table[:, self._port : self._port + 2] = numbers[:, 2:]
        batch.packets["ts_ns"][:BLOCK_PACKETS] = now_ns + np.arange(BLOCK_PACKETS) * _GAP_NS


def run_metering(n_flows: int, seconds: float, *, ipv6: bool) -> tuple[list[float], int, int]:
    """ns per packet of each round over all blocks, bytes of table and index, flows that were live."""
    geometry = Geometry(max_packets=BLOCK_PACKETS, max_frames=1, header_bytes=64, n_flows=1)
    sizes = FlowSizes(n_flows, 0, 64, BLOCK_PACKETS)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        create_flows(Path(directory), 0, sizes)
        counters, live = np.zeros(N_COUNTERS, np.int64), np.zeros(N_COUNTERS, np.int64)
        stage = Flows()
        stage.open(
            Context(
                Path(directory), Lane(0, (Input("in", "pcap"),)), 0, 1, geometry, 1, counters, int(counters.ctypes.data), live,
                int(live.ctypes.data), 0, 0, 0,
            )
        )  # fmt: skip
        stage.load(Generation(1, Config("bench", (), (), (), flows=Options(active_s=3600, idle_s=3600)), np.zeros(1, np.uint8), 0))
        traffic = Traffic([heap_batch(geometry) for _ in range(64)], ipv6=ipv6)
        now, seq = _NOON_NS, 0
        for first in range(0, n_flows, BLOCK_PACKETS):  # each flow once
            batch = traffic.blocks[0]
            traffic.fill(batch, np.arange(first, first + BLOCK_PACKETS) % n_flows, now)
            batch.seq = seq
            stage.step(batch)
            seq += 1
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 4 or time.perf_counter() < end:
            spent = 0
            for batch in traffic.blocks:
                now += BLOCK_PACKETS * _GAP_NS
                traffic.fill(batch, rng.integers(0, n_flows, BLOCK_PACKETS), now)
            for batch in traffic.blocks:
                batch.seq = seq
                start = time.perf_counter_ns()
                stage.step(batch)
                spent += time.perf_counter_ns() - start
                seq += 1
            times.append(spent / len(traffic.blocks) / BLOCK_PACKETS)
        flows = FlowMemory(Path(directory), 0, BLOCK_PACKETS)
        o = flow_offsets(sizes)
        return times[1:], o.undo - o.index, int(flows.header[0]["state"]["n_flows"])
