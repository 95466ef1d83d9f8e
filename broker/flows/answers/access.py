"""Who reached a server, for an auditor: `tapmesh flows access`."""

from __future__ import annotations

from broker.flows.answers.answer import Answer, Column, text
from broker.flows.answers.gaps import gaps
from broker.flows.answers.groups import FLOWS, by_address, names_of, shown
from broker.flows.answers.services import service
from broker.flows.answers.store import Store
from broker.flows.answers.talks import SERVICE
from broker.flows.answers.times import Period, iso

_COLUMNS = (
    *(text("client"), text("server"), text("service"), Column("flows", "flows")),
    *(Column("first_ns", "first", "time"), Column("last_ns", "last", "time")),
    *(Column("bytes", "sent", "bytes"), Column("bytes_back", "got", "bytes"), Column("answered", "answered"), text("name")),
)


def access(store: Store, period: Period, condition: str, server: str, now_ns: int, turned: str = "false") -> Answer:
    """`condition`: of the server. The facts say what an auditor has to know: the time asked for, what is missing in it, what was sampled.
    `answered`: records in which the server sent anything. `turned`: of records that may be of a client of it, the wrong way
    round because their beginning was not seen."""
    ends = ("source", "destination")
    records = store.services(period, condition)
    measures = (
        f"{FLOWS} AS flows, min(first_ns) AS first_ns, max(last_ns) AS last_ns",
        "sum(bytes)::BIGINT AS forward, sum(bytes_back)::BIGINT AS back, count_if(packets_back > 0) AS answered, max(name) AS name",
    )
    keys = ", ".join((*names_of(ends), *SERVICE))
    rows = store.run(
        f"SELECT {keys}, flows, first_ns, last_ns, forward, back, answered, name "
        f"FROM ({by_address(records, ends, SERVICE, measures)}) ORDER BY first_ns, {keys}"
    )
    lost = gaps(store, period)
    sampled = store.run(f"SELECT count(*), max(one_in) FROM {store.flows(period, f'one_in > 1 AND {condition}')}")[0]
    unsure = store.run(f"SELECT count(*) FROM {store.flows(period, turned)}")[0][0]
    facts = {
        "server": server,
        "from": iso(period.from_ns),
        "to": iso(period.to_ns),
        "reported": iso(now_ns),
        "records_in_period": sum(int(row[3] or 0) for row in lost.rows),
        "records_missing": lost.facts["missing"],
        "gaps": sum(int(row[4] or 0) for row in lost.rows),
        "brokers": ", ".join(sorted({str(row[0]) for row in lost.rows})) or "none",
        "sampled_records": sampled[0],
        "unsure_records": unsure,
    }
    notes = [*lost.notes]
    if not lost.rows:
        notes = ["there are no records of this time at all: nothing can be said of who was there"]
    if sampled[0]:
        notes.append(f"{sampled[0]:,} records are of sampled traffic (up to one in {sampled[1]:,}): who is not listed may have been there")
    if unsure:
        beginning = "their beginning was not seen: the other ends may be clients"
        notes.append(f"{unsure:,} records more have the server as their source, and {beginning} (`list` shows them)")
    return Answer(
        f"who reached {server}, {period}",
        _COLUMNS,
        [(shown(*row[:3]), shown(row[0], *row[3:5]), service(row[5], row[6]), *row[7:]) for row in rows],
        tuple(notes),
        facts,
    )
