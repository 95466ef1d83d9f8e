"""Who talks that never did: `tapmesh flows new`, for lateral movement.

The conversations of the time asked for are few, so the history is read once past them: what it has of them is kept, and they are what is
left over. A source is only known to be one where the flow was seen from its beginning (TCP) or is of another protocol.
"""

from __future__ import annotations

from broker.core.flow_layout import FLOW_BEGAN
from broker.flows.answers.answer import Answer, Column, text
from broker.flows.answers.groups import FLOWS, shown
from broker.flows.answers.services import service
from broker.flows.answers.store import Store
from broker.flows.answers.talks import SERVICE
from broker.flows.answers.times import DAY_NS, Period

_KEYS = ", ".join(
    ("version", "source_high", "source_low", "destination_high", "destination_low", *SERVICE),
)
_COLUMNS = (
    *(text("source"), text("destination"), text("service"), Column("first_ns", "first", "time"), Column("flows", "flows")),
    *(Column("bytes", "bytes", "bytes"), Column("bytes_back", "back", "bytes"), Column("answered", "answered"), text("name")),
)


def new(store: Store, period: Period, condition: str, days: int, limit: int, *, unsure: bool = False) -> Answer:
    """`unsure`: also TCP flows of which the beginning was not seen, so that who began is a guess."""
    before = Period(max(0, period.from_ns - days * DAY_NS), period.from_ns)
    began = f"(protocol <> 6 OR flags & {FLOW_BEGAN} <> 0)"
    store.run(f"""
        CREATE OR REPLACE TEMP TABLE fresh AS
        WITH now AS MATERIALIZED (
            SELECT {_KEYS}, bool_or({began}) AS began, min(first_ns) AS first_ns, {FLOWS} AS flows, sum(bytes)::BIGINT AS forward,
                sum(bytes_back)::BIGINT AS back, count_if(packets_back > 0) AS answered, max(name) AS name
            FROM {store.services(period, condition)} GROUP BY {_KEYS}),
        seen AS (SELECT DISTINCT {_KEYS} FROM {store.services(before)} SEMI JOIN now USING ({_KEYS}))
        SELECT * FROM now ANTI JOIN seen USING ({_KEYS})""")
    rows = store.run(f"""
        SELECT {_KEYS}, first_ns, flows, forward, back, answered, name
        FROM fresh WHERE began OR {unsure} ORDER BY first_ns, {_KEYS} LIMIT {limit}""")
    n_sure, n_all = store.run("SELECT count(*) FILTER (began), count(*) FROM fresh")[0]
    notes = []
    n_wanted = n_all if unsure else n_sure
    if len(rows) < n_wanted:
        notes.append(f"{n_wanted:,} in all; --limit shows more")
    if n_sure < n_all and not unsure:
        notes.append(f"{n_all - n_sure:,} more whose beginning was not seen, so that who began is a guess: --unsure shows them")
    (oldest_ns,) = store.run(f"SELECT min(last_ns) FROM {store.flows(before)}")[0]
    if oldest_ns is None:
        notes.append(f"there are no records of the {days} days before: everything is new")
    elif oldest_ns > before.from_ns + DAY_NS:
        have = (period.from_ns - oldest_ns) / DAY_NS
        notes.append(f"records go back {have:.1f} days only, not {days}: what is older may be taken for new")
    columns = [(shown(*r[:3]), shown(r[0], *r[3:5]), service(r[5], r[6]), *r[7:]) for r in rows]
    return Answer(f"conversations not seen in the {days} days before, {period}", _COLUMNS, columns, tuple(notes))
