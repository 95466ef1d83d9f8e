"""What it costs to store flow records: appended to the spool, as a Parquet file, for ClickHouse, for Kafka; a segment at a time."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import programs
from bench.report import Row
from broker.core.errors import TapmeshError
from broker.core.flow_layout import EXPORT, FLOW, NAMED_TLS
from broker.core.flow_model import Store
from broker.flows.segments import Header, Segment
from broker.flows.spool import SEGMENT_BYTES, Spool
from broker.flows.store.kafka import messages
from broker.flows.store.parquet import ParquetStore
from broker.flows.store.rowbinary import encode
from broker.flows.table import to_table

_HEADER = Header("flows", "bench", 1, {0: "span0", 1: "span1"})


def measure(quick: bool) -> Iterator[Row]:
    n, rounds = (1024, 2) if quick else (SEGMENT_BYTES // FLOW.itemsize, 7)
    rows = records(n)
    with programs.scratch() as directory:
        spool = Spool(directory / "spool", _HEADER, np.zeros(1, EXPORT)[0], flush_s=3600, max_bytes=1 << 30)
        yield _row("append to the spool", n, [_timed(lambda: spool.append("flows", rows)) for _ in range(rounds)])
        spool.close()
        try:
            yield from _parquet(directory, rows, rounds)
        except TapmeshError as error:
            print(f"bench store: {error}", file=sys.stderr)
    content = encode(to_table(_HEADER, rows))
    times = [_timed(lambda: encode(to_table(_HEADER, rows))) for _ in range(rounds)]
    yield _row("RowBinary for ClickHouse", n, times, bytes_per_record=len(content) / n)
    times = [_timed(lambda: sum(1 for _ in messages(_HEADER, rows))) for _ in range(2)]
    yield _row("JSON for Kafka", n, times)


def _parquet(directory: Path, rows: Any, rounds: int) -> Iterator[Row]:
    store = ParquetStore(Store(directory=str(directory)), "bench")
    sizes: list[int] = []

    def put() -> None:
        sizes.append(store.put(Segment(Path(), "flows", 1, len(sizes), len(rows)), _HEADER, rows))

    put()
    times = [_timed(put) for _ in range(rounds)]
    yield _row("Parquet files, fsync and all", len(rows), times, bytes_per_record=sizes[0] / len(rows))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield Row("store", "memory of this process after that, at most", memory / 1e6, "MB")
    store.close()


def _row(case: str, n: int, times: list[float], **detail: Any) -> Row:
    return Row("store", case, n / statistics.median(times), "records/s", {}, {name: round(value, 1) for name, value in detail.items()})


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def records(n: int) -> Any:
    """FLOW[n], as they may come from a data centre: 2,000 hosts, few services, a name for every tenth."""
    rng = np.random.default_rng(1)
    rows = np.zeros(n, FLOW)
    rows["first_ns"] = 1_760_000_400 * 10**9 + np.sort(rng.integers(0, 10 * 10**9, n))
    rows["last_ns"] = rows["first_ns"] + rng.exponential(2e9, n).astype(np.int64)
    for end in ("source", "destination"):
        hosts = rng.zipf(1.3, n) % 2_000
        rows[end][:, 12], rows[end][:, 14], rows[end][:, 15] = 10, hosts >> 8, hosts & 255
    rows["source_port"] = rng.integers(32_768, 61_000, n)
    rows["destination_port"] = rng.choice([443, 80, 53, 5432, 3306, 8080], n)
    rows["protocol"] = np.where(rows["destination_port"] == 53, 17, 6)
    rows["packets"] = 1 + rng.zipf(1.5, (n, 2)) % 100_000
    rows["bytes"] = rows["packets"] * rng.integers(60, 1500, (n, 2))
    rows["min_bytes"], rows["max_bytes"] = 52, rng.integers(52, 1500, (n, 2))
    rows["rtt_us"] = rng.integers(50, 5_000, (n, 2))
    rows["tcp_flags"], rows["version"], rows["ttl"], rows["end"], rows["flags"] = 0x1B, 4, 64, 3, 2
    rows["one_in"], rows["number"], rows["input"] = 1, np.arange(n), rng.integers(0, 2, n)
    named = np.flatnonzero(rng.integers(0, 10, n) == 0)
    rows["named"][named] = NAMED_TLS
    rows["name"][named] = np.array([f"service-{i}.example.org".encode() for i in range(500)])[rng.integers(0, 500, len(named))]
    return rows
