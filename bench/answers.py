"""What answers from stored records cost: top talkers of a day, and a few others, over records made up.

``python -m bench answers`` takes a million; ``python -m bench.answers --records 100000000 --directory DIR`` as many as told (33 bytes each,
4 minutes for 100 million), in a directory of its own below DIR that is removed in the end. An answer is taken three times, in the same
process; its value is the median. Rollups are made when they are first asked for (`first`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.report import Row, line
from broker.config.records.expression import where
from broker.flows.answers.new import new
from broker.flows.answers.store import Store, import_duckdb
from broker.flows.answers.talks import services
from broker.flows.answers.times import DAY_NS, HOUR_NS, Period
from broker.flows.answers.top import top
from broker.flows.columns import FLOWS
from broker.flows.store.duck import ROW_GROUP
from broker.flows.store.hours import hour_directory

_DAY = Period(20_000 * DAY_NS, 20_001 * DAY_NS)
_ROUNDS = 3
_MADE = {
    # column: SQL of row i of n in an hour that begins at {begins}; numbers below 1 are random, apart for each row
    "node": "'esx07'",
    "input": "CASE WHEN random() < 0.7 THEN 'span0' ELSE 'span1' END",
    "run": f"{_DAY.from_ns}",
    "lane": "i % 2",
    "number": "{hour} * {n} + i",
    "first_ns": "{begins} + i * {step} - (random() * 5e9)::BIGINT",
    "last_ns": "{begins} + i * {step}",
    "version": "CASE WHEN i % 20 = 0 THEN 6 ELSE 4 END",
    "protocol": "CASE WHEN random() < 0.6 THEN 6 ELSE 17 END",
    "source_high": "CASE WHEN i % 20 = 0 THEN 2306139568115548160 ELSE 0 END",
    "source_low": "167772160 + (pow(random(), 3) * 20000)::BIGINT",
    "destination_high": "CASE WHEN i % 20 = 0 THEN 2306139568115548161 ELSE 0 END",
    "destination_low": "168427520 + (pow(random(), 4) * 5000)::BIGINT",
    "source_port": "32768 + (random() * 28000)::BIGINT",
    "destination_port": "[443, 443, 80, 53, 5432, 22, 8080, 445][1 + floor(random() * 8)::BIGINT]",
    "packets": "1 + exp(random() * 6)::BIGINT",
    "packets_back": "exp(random() * 6)::BIGINT",
    "bytes": "40 + exp(random() * 14)::BIGINT",
    "bytes_back": "40 + exp(random() * 15)::BIGINT",
    "min_bytes": "40", "min_bytes_back": "40", "max_bytes": "1500", "max_bytes_back": "1500",
    "tcp_flags": "27", "tcp_flags_back": "27", "ttl": "64",
    "rtt_source_us": "(random() * 300)::BIGINT",
    "rtt_destination_us": "(random() * 9000)::BIGINT",
    "one_in": "1",
    "end_reason": "3",
    "flags": "CASE WHEN random() < 0.1 THEN 1 ELSE 2 END",
    "name": "CASE WHEN random() < 0.2 THEN 'host' || (random() * 3000)::BIGINT || '.example.com' ELSE '' END",
}  # fmt: skip


def measure(quick: bool) -> Iterator[Row]:
    yield from measured(20_000 if quick else 1_000_000, None)


def measured(n_records: int, below: Path | None) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="tapmesh-bench-", dir=below) as scratch:
        directory = Path(scratch)
        seconds = make(directory, n_records)
        n_bytes = sum(path.stat().st_size for path in directory.rglob("*.parquet"))
        detail = {"bytes_per_record": round(n_bytes / n_records, 1)}
        yield Row("answers", "records made for it", n_records / seconds, "records/s", {}, detail)
        store = Store(directory)
        web, net = where("tcp dst port 443", {}), where("src net 10.0.3.0/24", {})
        last_hour = Period(_DAY.to_ns - HOUR_NS, _DAY.to_ns)
        questions: dict[str, Callable[[], object]] = {
            **{
                f"top {by} by {of}, a day": lambda by=by, of=of: top(store, _DAY, "true", by, [of], 20)  # type: ignore[misc]
                for by, of in (
                    ("source", "bytes"),
                    ("destination", "bytes"),
                    ("address", "bytes"),
                    ("source", "flows"),
                    ("service", "bytes"),
                )
            },
            "top source by bytes, a day, tcp dst port 443": lambda: top(store, _DAY, web, "source", ["bytes"], 20),
            "top destination by bytes, a day, src net": lambda: top(store, _DAY, net, "destination", ["bytes"], 20),
            "top conversation by bytes, an hour": lambda: top(store, last_hour, "true", "conversation", ["bytes"], 20),
            "services, an hour": lambda: services(store, last_hour, "true", 20),
            "new, an hour against the day": lambda: new(store, last_hour, net, 1, 20),
        }
        yield from _asked(questions, n_records)
        for path in directory.rglob("*.parquet"):
            os.utime(path, (0, 0))  # settled, so that rollups are made
        rolled = {
            f"{case}, rollups": question
            for case, question in questions.items()
            if case.startswith(("top source by bytes, a day", "top ad"))
        }
        yield from _asked({case: question for case, question in rolled.items() if "tcp" not in case}, n_records)


def _asked(questions: dict[str, Callable[[], object]], n_records: int) -> Iterator[Row]:
    for case, question in questions.items():
        times = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            question()
            times.append(time.perf_counter() - start)
        detail = {"records": n_records, "first": round(times[0], 3), "min": round(min(times), 3)}
        yield Row("answers", case, statistics.median(times), "s", {}, detail)


def make(directory: Path, n_records: int) -> float:
    """A day of records, as the store lays them out; seconds that it took."""
    connection = import_duckdb().connect()
    connection.execute("SET preserve_insertion_order = false")
    start = time.perf_counter()
    n = n_records // 24
    for hour in range(24):
        begins = _DAY.from_ns + hour * HOUR_NS
        made = {name: sql.format(hour=hour, n=n, begins=begins, step=HOUR_NS // n) for name, sql in _MADE.items()}
        columns = ", ".join(f"({made.get(c.name, repr('') if c.duckdb == 'VARCHAR' else '0')})::{c.duckdb} AS {c.name}" for c in FLOWS)
        path = hour_directory(directory / "flows", begins // HOUR_NS)
        path.mkdir(parents=True)
        connection.execute(
            f"COPY (SELECT {columns} FROM range({n}) t(i)) TO '{path}/esx07-0.parquet' "
            f"(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3, ROW_GROUP_SIZE {ROW_GROUP})"
        )
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.answers", description="What answers from stored records cost, as JSON lines")
    parser.add_argument("--records", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where there is room")
    arguments = parser.parse_args()
    for row in measured(arguments.records, arguments.directory):
        print(line(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
