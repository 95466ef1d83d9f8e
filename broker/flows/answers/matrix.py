"""Who talks to whom, by named set, site or subnet: `tapmesh flows matrix`."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from broker.flows.answers.answer import Answer, Column, Kind, text
from broker.flows.answers.areas import ELSEWHERE, Area, make_pairs
from broker.flows.answers.groups import MEASURES
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period

_SHOWN = 24  # rows and columns of the picture
_SUBNET6 = 64


def matrix(store: Store, period: Period, condition: str, areas: list[Area], of: str, what: str) -> Answer:
    """By areas; what is in none is `elsewhere`. `what`: sets or sites, for the title."""
    make_pairs(store, store.flows(period, condition), areas, [f"{MEASURES[of]}::BIGINT AS n"])
    rows = store.run("""
        SELECT source_area, destination_area, sum(n)::BIGINT AS n FROM pairs
        GROUP BY ALL HAVING sum(n) > 0 ORDER BY n DESC, source_area, destination_area""")
    return _answer(f"{of} from {what} to {what}, {period}", rows, of)


def matrix_of_subnets(store: Store, period: Period, condition: str, length: int, of: str, limit: int) -> Answer:
    """By nets of `length` bits (IPv4) and 64 (IPv6); the `limit` pairs that have most."""
    step = 1 << 32 - length
    rows = store.run(f"""
        SELECT version, source_net, destination_net, {MEASURES[of]}::BIGINT AS n FROM (
            SELECT *, CASE version WHEN 4 THEN source_low // {step} ELSE source_high END AS source_net,
                CASE version WHEN 4 THEN destination_low // {step} ELSE destination_high END AS destination_net
            FROM {store.flows(period, condition)})
        GROUP BY ALL ORDER BY n DESC, version, source_net, destination_net LIMIT {limit}""")
    named = [(_net(version, source, length), _net(version, destination, length), n) for version, source, destination, n in rows]
    return _answer(f"{of} from subnet to subnet, {period}", named, of)


def _net(version: int, number: int, length: int) -> str:
    return str(IPv4Network((number << 32 - length, length)) if version == 4 else IPv6Network((number << 64, _SUBNET6)))


def _answer(title: str, rows: list[tuple[str, str, int]], of: str) -> Answer:
    kind: Kind = "bytes" if of == "bytes" else "count"
    whole = sum(row[2] for row in rows)
    columns = (text("source", "from"), text("destination", "to"), Column(of, of, kind), Column("share", "share", "share"))
    return Answer(title, columns, [(*row, row[2] / whole if whole else None) for row in rows], picture=draw)


def ordered_names(rows: list[tuple[str, str, int]]) -> list[str]:
    """Who has most first; `elsewhere` last."""
    sums: dict[str, int] = {}
    for source, destination, n in rows:
        for name in {source, destination}:
            sums[name] = sums.get(name, 0) + n
    return sorted(sums, key=lambda name: (name == ELSEWHERE, -sums[name], name))


def draw(answer: Answer, path: Path) -> None:
    """A heat map, its colours on a logarithmic scale."""
    from broker.flows.answers import plots

    kind = answer.columns[2].kind
    names = ordered_names([row[:3] for row in answer.rows])[:_SHOWN]  # type: ignore[misc]
    at = {name: i for i, name in enumerate(names)}
    cells = {(at[row[0]], at[row[1]]): float(row[2] or 0) for row in answer.rows if row[0] in at and row[1] in at}
    plots.heat_map(path, answer.title, names, cells, kind)
