"""What a frame costs in encapsulate, per packet and tool: every tunnel, and every shape on top of GRE; hot blocks, every packet wanted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench import programs, workload
from bench.judging import BLOCK_PACKETS, touch
from bench.report import Row
from broker.config import parse_config
from broker.core import layout
from broker.core.batch import Batch, heap_batch
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS
from broker.core.model import Lane
from broker.core.stage import Context, Generation
from stages.encapsulate.stage import Encapsulate

_V4, _V6 = "remote: 192.0.2.9, source: 192.0.2.1", 'remote: "2001:db8::9", source: "2001:db8::1"'
TUNNELS = {
    "gre": f"kind: gre, {_V4}",
    "gre, key, sequence": f"kind: gre, {_V4}, key: 7, sequence: true",
    "gre, checksum": f"kind: gre, {_V4}, checksum: true",
    "gre over IPv6": f"kind: gre, {_V6}",
    "nvgre": f"kind: nvgre, {_V4}, vsid: 7",
    "gre-ip": f"kind: gre-ip, {_V4}",
    "erspan1": f"kind: erspan1, {_V4}",
    "erspan2": f"kind: erspan2, {_V4}, session: 7",
    "erspan3": f"kind: erspan3, {_V4}, session: 7, subheader: true",
    "vxlan": f"kind: vxlan, {_V4}, vni: 7",
    "geneve": f"kind: geneve, {_V4}, vni: 7, generation: true",
    "gre-udp": f"kind: gre-udp, {_V4}, key: 7",
}
SHAPES = {
    "slice": "slice_bytes: 128",
    "slice behind l4": "slice_after: l4",
    "strip and push a tag": "strip: vlan, push_vlan: 5",
    "sample": "sample: {one_in: 1}",
    "limit": "limit: {packets_per_s: 1000000000}",
    "dedup": "dedup: {packets: 16384, ignore: [ttl, vlan]}",
    "mask the payload": "mask: payload",
    "mask cards": "mask: cards",
}
GEOMETRY = Geometry(
    n_blocks=2, max_packets=BLOCK_PACKETS, max_frames=2 * BLOCK_PACKETS, header_bytes=2 * BLOCK_PACKETS * 80,
    data_bytes=BLOCK_PACKETS * 1600, shaped_bytes=BLOCK_PACKETS * 1600,
)  # fmt: skip


def measure(quick: bool) -> Iterator[Row]:
    n_packets, seconds = (1024, 0.01) if quick else (16_384, 1.0)
    with programs.scratch() as directory:
        workload.write_capture(directory / "in.pcap", "imix", n_packets)
        batches = _blocks(directory / "in.pcap")
    for name, text in TUNNELS.items():
        yield _row(f"{name}, imix", f"tunnel: {{{text}}}", batches, seconds)
    for name, text in SHAPES.items():
        yield _row(f"gre, {name}, imix", f"tunnel: {{{TUNNELS['gre']}}}, {text}", batches, seconds)


def _blocks(capture: Path) -> list[Batch]:
    packets = list(workload.frames_of(capture))
    found = []
    for at in range(0, len(packets), BLOCK_PACKETS):
        batch, used = heap_batch(GEOMETRY), 0
        for i, data in enumerate(packets[at : at + BLOCK_PACKETS]):
            batch.data[used : used + len(data)] = np.frombuffer(data, np.uint8)
            batch.packets[i] = (workload.START_S * 10**9 + 1000 * (at + i), used, len(data), len(data), 0, 0)
            batch.verdicts[i] = (1, 0x9E3779B1 * i & 0xFFFF_FFFF, 0, 0)
            used += len(data) + 15 & -16
        batch.block["n_packets"], batch.block["data_used"] = len(packets[at : at + BLOCK_PACKETS]), used
        found.append(batch)
    return found


def _row(case: str, tool: str, batches: list[Batch], seconds: float) -> Row:
    config = parse_config(f"inputs: {{span: {{kind: pcap, file: x}}}}\ntools: {{ids: {{{tool}}}}}\ncollector: ids\n")
    counters, shared, tickets = np.zeros(N_COUNTERS, np.int64), np.zeros(layout.TOOLS + 1, np.int64), np.zeros(4, layout.TICKET)
    at, shared_at = int(counters.ctypes.data), int(shared.ctypes.data)
    stage = Encapsulate()
    stage.open(
        Context(
            Path(), Lane(0, ()), 0, 1, GEOMETRY, 1, counters, at, counters, at,
            tool_sequence_at=shared_at, tickets_at=int(tickets.ctypes.data), progress_at=shared_at + 8 * layout.TOOLS,
        )
    )  # fmt: skip
    stage.load(Generation(1, config, np.zeros(1, np.uint8), 0))
    times: list[float] = []
    seq = 0
    end = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < end:
        spent = frames = 0
        for batch in batches:
            touch(batch)
            batch.seq, seq = seq, seq + 1
            start = time.perf_counter_ns()
            stage.step(batch)
            spent += time.perf_counter_ns() - start
            frames += int(batch.block["n_packets"][0])
        times.append(spent / frames)
    times = times[1:]
    return Row("encapsulate", case, statistics.median(times), "ns/packet", {}, {"min": round(min(times), 2), "max": round(max(times), 2)})
