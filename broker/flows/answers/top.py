"""Who or what has most: `tapmesh flows top`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from broker.flows.answers import rollup
from broker.flows.answers.answer import Answer, Cell, Column, text
from broker.flows.answers.groups import MEASURES, by_address, names_of, shown
from broker.flows.answers.services import protocol_name, service
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period


@dataclass(frozen=True, slots=True)
class _By:
    ends: tuple[str, ...]  # addresses that it is known by
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Callable[[tuple[Any, ...]], tuple[Cell, ...]]
    only: str = "true"


def _one(row: tuple[Any, ...]) -> tuple[Cell, ...]:
    return (shown(*row[:3]),)


_PORTS = "(protocol = 6 OR protocol = 17 OR protocol = 132)"
_BY = {
    "source": _By(("source",), (), (text("source"),), _one),
    "destination": _By(("destination",), (), (text("destination"),), _one),
    "address": _By(("address",), (), (text("address"),), _one),
    "conversation": _By(
        ("source", "destination"), (), (text("source"), text("destination")), lambda r: (shown(*r[:3]), shown(r[0], *r[3:5]))
    ),
    "service": _By((), ("destination_port", "protocol"), (text("service"),), lambda r: (service(r[0], r[1]),)),
    "protocol": _By((), ("protocol",), (text("protocol"),), lambda r: (protocol_name(r[0]),)),
    "port": _By((), ("destination_port",), (Column("port", "port", "number"),), lambda r: (r[0],), _PORTS),
    "name": _By((), ("name",), (text("name"),), lambda r: (r[0],), "name <> ''"),
    "vlan": _By((), ("vlan",), (Column("vlan", "VLAN", "number"),), lambda r: (r[0],)),
    "input": _By((), ("node", "input"), (text("node"), text("input")), lambda r: (r[0], r[1])),
    "tunnel": _By((), ("tunnel", "tunnel_id"), (text("tunnel"), Column("tunnel_id", "id", "number")), lambda r: (r[0] or "none", r[1])),
}
BY = tuple(_BY)
OF = tuple(MEASURES)


def top(store: Store, period: Period, condition: str, by: str, of: Sequence[str], limit: int) -> Answer:
    """`by`: of BY. `of`: of OF, the first is what it is ordered by. An address has what it sent and what it got; the share is of
    all traffic of the time that the expression matches."""
    chosen = _BY[by]
    of_records = store.services if by == "service" else store.flows
    records = of_records(period, condition if chosen.only == "true" else f"{condition} AND {chosen.only}")
    measures = [f"{MEASURES[name]}::BIGINT AS {name}" for name in of]
    rolled = rollup.groups(store, period, by, of) if condition == "true" and by in rollup.NEEDED else None
    if rolled is not None:
        groups = f"groups AS MATERIALIZED ({rolled})"
        total = f"SELECT sum({of[0]}) FROM ({rollup.groups(store, period, 'source', of)})"
    elif by == "address":
        groups, total = _either_end(records, measures, of)
    else:
        made = by_address(records, chosen.ends, chosen.keys, measures) if chosen.ends else _plain(records, chosen.keys, measures)
        groups = f"groups AS MATERIALIZED ({made})"
        total = f"SELECT sum({of[0]}) FROM groups"
    keys = [*(names_of(chosen.ends) if chosen.ends else ()), *chosen.keys]
    rows = store.run(
        f"WITH {groups} SELECT {', '.join([*keys, *of])}, ({total}) FROM groups ORDER BY {of[0]} DESC, {', '.join(keys)} LIMIT {limit}"
    )
    n = len(keys)
    return Answer(
        f"top {by} by {of[0]}, {period}",
        (*chosen.columns, *(Column(name, name, "bytes" if name == "bytes" else "count") for name in of), Column("share", "share", "share")),
        [(*chosen.cells(row[:n]), *row[n:-1], row[n] / row[-1] if row[-1] else None) for row in rows],
    )


def _plain(records: str, keys: Sequence[str], measures: Sequence[str]) -> str:
    return f"SELECT {', '.join([*keys, *measures])} FROM {records} GROUP BY {', '.join(keys)}"


def _either_end(records: str, measures: Sequence[str], of: Sequence[str]) -> tuple[str, str]:
    """An address that talks to itself is counted once. Grouped at each end first: few rows are left to be put together."""
    other = "NOT (source_low = destination_low AND source_high = destination_high)"
    sources = by_address(records, ("source",), (), measures)
    destinations = by_address(f"(SELECT * FROM {records} WHERE {other})", ("destination",), (), measures)
    sums = ", ".join(f"sum({name})::BIGINT AS {name}" for name in of)
    groups = (
        f"sources AS MATERIALIZED ({sources}), "
        f"groups AS MATERIALIZED (SELECT version, source_high AS address_high, source_low AS address_low, {sums} "
        f"FROM (SELECT * FROM sources UNION ALL {destinations}) GROUP BY ALL)"
    )
    return groups, f"SELECT sum({of[0]}) FROM sources"
