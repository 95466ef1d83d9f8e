"""The tables in ClickHouse, as numbered steps: a database is brought from where it is to the newest. A step is never changed, only added.

Rows are told apart by node, run, lane and number: should one be there twice after all, ReplacingMergeTree removes it when it merges, and
``FINAL`` hides it until then.
"""

from __future__ import annotations

from broker.flows import columns
from broker.flows.columns import Column

PARTITION_NS = 86_400 * 1_000_000_000
"""A day (UTC) is a partition."""


def _columns(table: tuple[Column, ...]) -> str:
    return ", ".join(f"{c.name} {c.clickhouse}" for c in table)


def _table(name: str, table: tuple[Column, ...], time: str, order: str) -> str:
    day = f"toYYYYMMDD(toDateTime(intDiv({time}, 1000000000), 'UTC'))"
    return f"CREATE TABLE {name} ({_columns(table)}) ENGINE = ReplacingMergeTree PARTITION BY {day} ORDER BY ({order})"


MIGRATIONS: tuple[str, ...] = (
    _table("flows", columns.FLOWS, "last_ns", "last_ns, node, run, lane, number"),
    _table("meters", columns.METERS, "at_ns", "at_ns, node, kind, name"),
)
"""Step n is the n-th, from 1."""

APPLIED = "CREATE TABLE IF NOT EXISTS migrations (step UInt32, at DateTime) ENGINE = TinyLog"
