"""What exporting records costs: each encoder on its own, and IPFIX over UDP to a socket on loopback, sent by one core."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from bench import programs
from bench.report import Row
from broker.core import flow_layout as layout
from broker.core import log
from broker.core.flow_model import Export
from broker.core.flow_ring import Rows
from broker.flows.export.ipfix import Ipfix
from broker.flows.export.json_lines import JsonLines
from broker.flows.export.messages import Encoder, ExportContext
from broker.flows.export.netflow5 import NetFlow5
from broker.flows.export.netflow9 import NetFlow9
from broker.flows.export.sinks import make_sink

_NS = 1_000_000_000
_BATCH = 8192


def measure(quick: bool) -> Iterator[Row]:
    log.configure()
    seconds = 0.02 if quick else 1.5
    now_ns = time.time_ns()
    rows = flows(_BATCH, now_ns)
    context = ExportContext("bench", now_ns - 3600 * _NS, {0: "mirror"})
    encoders: dict[str, Encoder] = {
        "ipfix": Ipfix(context, 1), "netflow9": NetFlow9(context, 1), "netflow5": NetFlow5(context, 1), "json lines": JsonLines(context),
    }  # fmt: skip
    for name, encoder in encoders.items():
        for most_bytes in (1400, 65_535):

            def encode(encoder: Encoder = encoder, most_bytes: int = most_bytes) -> None:
                encoder.encode(rows, most_bytes, now_ns)

            yield _row(f"{name}, messages of up to {most_bytes} bytes", _times(encode, seconds), {})
    with programs.sink() as receiver:
        counts = np.zeros(1, layout.EXPORT)
        export = Export("bench", "ipfix", address="127.0.0.1", port=receiver.getsockname()[1])
        sink = make_sink(export, counts[0], context)
        sink.tick(now_ns)
        times = _times(lambda: sink.take(rows), seconds)
        sink.close(1)
    detail = {"messages": int(counts["messages"][0]), "dropped_records": int(counts["dropped_records"][0])}
    yield _row("ipfix over UDP to a socket on loopback", times, detail)


def _times(work: Callable[[], None], seconds: float) -> list[float]:
    """Records per second of each round after one that is not counted."""
    work()
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        rates.append(_BATCH / (time.perf_counter() - start))
    return rates


def _row(case: str, rates: list[float], detail: dict[str, int]) -> Row:
    return Row("export", case, statistics.median(rates), "records/s", {}, {"max": round(max(rates)), **detail})


def flows(n: int, now_ns: int) -> Rows:
    """FLOW[n]: TCP and UDP over IPv4 and, one of ten, IPv6; half of the addresses come again."""
    rng = np.random.default_rng(1)
    rows = np.zeros(n, layout.FLOW)
    rows["version"] = np.where(rng.random(n) < 0.1, 6, 4)
    rows["protocol"] = np.where(rng.random(n) < 0.7, 6, 17)
    for name in ("source", "destination"):
        rows[name] = rng.integers(0, 256, (n // 2, 16))[rng.integers(0, n // 2, n)]
        rows[name][rows["version"] == 4, :12] = 0
        rows[f"{name}_port"] = rng.integers(1, 65_536, n)
    rows["last_ns"] = now_ns - rng.integers(0, 15 * _NS, n)
    rows["first_ns"] = rows["last_ns"] - rng.integers(0, 60 * _NS, n)
    rows["packets"] = rng.integers(1, 1000, (n, 2))
    rows["bytes"] = rows["packets"] * rng.integers(40, 1500, (n, 2))
    rows["number"], rows["one_in"], rows["end"], rows["dns_code"] = np.arange(n), 1, layout.END_IDLE, 255
    rows["tcp_flags"][rows["protocol"] == 6] = 0x1B
    named = rng.random(n) < 0.3
    rows["named"][named], rows["name"][named], rows["name_len"][named] = layout.NAMED_TLS, b"www.example.com", 15
    return rows
