"""Stored records made up for the tests: plain rows, and the files that hold them, as the store lays them out."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from ipaddress import ip_address
from itertools import groupby
from pathlib import Path

import duckdb

from broker.flows.columns import FLOWS, METERS, Column

DAY = 20_000 * 86_400  # s since 1970: 2024-10-04
S = 1_000_000_000
HOUR = 3600 * S


@dataclass
class Record:
    """A record in the words of people; `row` has it in those of the store."""

    source: str
    destination: str
    protocol: int = 6
    source_port: int = 40_000
    destination_port: int = 443
    first_ns: int = DAY * S
    last_ns: int = DAY * S
    bytes: int = 1000
    bytes_back: int = 2000
    packets: int = 3
    packets_back: int = 4
    tcp_flags: int = 0x1B
    tcp_flags_back: int = 0x1B
    rtt_source_us: int = 0
    rtt_destination_us: int = 0
    vlan: int = 0
    tunnel: str = ""
    tunnel_id: int = 0
    input: str = "span0"
    node: str = "n1"
    run: int = DAY * S
    lane: int = 0
    number: int = 0
    flags: int = 2
    name: str = ""
    tos: int = 0
    ttl: int = 64
    retransmitted: int = 0
    one_in: int = 1
    end_reason: int = 3

    def row(self) -> dict[str, int | str]:
        found = {column.name: 0 if "VARCHAR" not in column.duckdb else "" for column in FLOWS}
        found |= {key: value for key, value in asdict(self).items() if key in found}
        for end in ("source", "destination"):
            address = ip_address(getattr(self, end))
            found |= {"version": address.version, f"{end}_high": int(address) >> 64, f"{end}_low": int(address) & (1 << 64) - 1}
        return found


assert {f.name for f in fields(Record)} - {"source", "destination"} <= {column.name for column in FLOWS}


def write(directory: Path, records: list[Record], table: str = "flows") -> None:
    write_rows(directory, [r.row() for r in records], "flows", FLOWS, "last_ns")


def write_meters(directory: Path, rows: list[dict[str, int | str]]) -> None:
    write_rows(
        directory, [{"node": "n1", "dropped_packets": 0, "packets": 0, "capacity_bytes": 0, **r} for r in rows], "meters", METERS, "at_ns"
    )


def write_rows(directory: Path, rows: list[dict[str, int | str]], table: str, columns: tuple[Column, ...], time: str) -> None:
    connection = duckdb.connect()
    for hour, group in groupby(sorted(rows, key=lambda r: r[time]), key=lambda r: int(r[time]) // HOUR):
        when = datetime.fromtimestamp(hour * 3600, UTC)
        path = directory / table / f"date={when:%Y-%m-%d}" / f"hour={when:%H}"
        path.mkdir(parents=True, exist_ok=True)
        connection.execute(f"CREATE OR REPLACE TABLE t ({', '.join(f'{c.name} {c.duckdb}' for c in columns)})")
        values = [
            "("
            + ", ".join("'" + str(r[c.name]).replace("'", "''") + "'" if c.duckdb == "VARCHAR" else str(r[c.name]) for c in columns)
            + ")"
            for r in group
        ]
        connection.execute(f"INSERT INTO t VALUES {', '.join(values)}")
        connection.execute(f"COPY t TO '{path}/{len(list(path.iterdir()))}.parquet' (FORMAT parquet)")


HOSTS4 = [f"10.{net}.0.{host}" for net in (1, 2, 3) for host in (1, 2, 3, 4)]
HOSTS6 = [f"2001:db8:{net}::{host:x}" for net in (1, 2) for host in (1, 0xFFFF)] + ["2001:db8:1:0:8000::5"]
NAMES = ["", "", "www.example.com", "example.com", "a_b.example.org", "xn--50%.test", "it's.test"]


def some(n: int, seed: int, *, from_ns: int = DAY * S, to_ns: int = DAY * S + 3 * HOUR) -> list[Record]:
    """Of all kinds, few values of each, so that they meet."""
    rng = random.Random(seed)
    made = []
    numbers: dict[tuple[str, int], int] = {}
    for last in sorted(rng.randrange(from_ns, to_ns) for _ in range(n)):
        source, destination = rng.choices(HOSTS4 if rng.random() < 0.7 else HOSTS6, k=2)
        protocol = rng.choice([6, 6, 6, 17, 17, 132, 47, 58 if ":" in source else 1])
        ported = protocol in (6, 17, 132)
        tunnel = rng.choice(["", "", "", "gre", "vxlan", "erspan"])
        node, lane = rng.choice(["n1", "n2"]), rng.randrange(2)
        number = numbers[node, lane] = numbers.get((node, lane), -1) + 1
        answered = rng.random() < 0.8
        made.append(
            Record(
                source, destination, protocol,
                rng.choice([40_000, 40_001, 53, 80]) if ported else 8 if protocol == 1 else 0,
                rng.choice([53, 80, 443, 444, 8080]) if ported else 0,
                last - rng.choice([0, 1, 10 * S, 60 * S, 61 * S]), last,
                bytes=rng.choice([40, 999, 10**4, 10**7]), bytes_back=rng.choice([40, 10**6]) if answered else 0,
                packets=rng.randrange(1, 100), packets_back=rng.randrange(1, 100) if answered else 0,
                tcp_flags=rng.choice([2, 0x12, 0x1B, 0x1F]) if protocol == 6 else 0,
                tcp_flags_back=rng.choice([0x12, 0x1B, 0x14]) if protocol == 6 and answered else 0,
                rtt_source_us=rng.choice([0, 100, 20_000]) if protocol == 6 else 0,
                rtt_destination_us=rng.choice([0, 900, 30_000]) if protocol == 6 else 0,
                vlan=rng.choice([0, 0, 10, 20]), tunnel=tunnel, tunnel_id=rng.choice([0, 7, 5001]) if tunnel else 0,
                input=rng.choice(["span0", "span1", "it's"]), node=node, lane=lane, number=number,
                flags=rng.choice([0, 1, 2, 3]), name=rng.choice(NAMES), tos=rng.choice([0, 0xB8, 1]), ttl=rng.choice([1, 64, 128]),
                retransmitted=rng.choice([0, 0, 5]),
            )
        )  # fmt: skip
    return made
