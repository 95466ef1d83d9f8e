"""Records that never came to the store: `tapmesh flows gaps`. Each run and lane of a broker numbers its records from 0.

Records are stored about in the order of their numbers, but not of their times. So the numbers of the neighbouring hours are looked at too,
and a gap belongs to a time if one of the records beside it does. Where there is one, what all other hours have of its numbers is no part
of it: a replay has packets of any year. What is numbered before the first record of a run that began before the oldest stored hour may
have expired.
"""

from __future__ import annotations

from broker.flows.answers.answer import Answer, Column, text
from broker.flows.answers.store import FLOWS_TABLE, Store
from broker.flows.answers.times import HOUR_NS, Period
from broker.flows.store.hours import hours

_COLUMNS = (
    *(text("node"), Column("run_ns", "run since", "time"), Column("lane", "lane"), Column("records", "records")),
    *(Column("gaps", "gaps"), Column("missing", "missing"), Column("repeated", "repeated")),
    *(Column("first_gap_ns", "first gap", "time"), Column("last_gap_ns", "last gap", "time")),
)


def gaps(store: Store, period: Period) -> Answer:
    wide = Period(max(0, period.from_ns - HOUR_NS), period.to_ns + HOUR_NS)
    inside = f"{{}} >= {period.from_ns} AND {{}} < {period.to_ns}"
    here, there = inside.format("last_ns", "last_ns"), inside.format("before_ns", "before_ns")
    oldest_ns = next((begins_ns for begins_ns, _ in hours(store.directory / FLOWS_TABLE)), 0)
    store.run(f"""
        CREATE OR REPLACE TEMP TABLE steps AS
        WITH rows AS (
            SELECT node, run, lane, number, last_ns,
                lag(number) OVER numbered AS before, lag(last_ns) OVER numbered AS before_ns
            FROM {store.flows(wide, whole_files=True)} WINDOW numbered AS (PARTITION BY node, run, lane ORDER BY number, last_ns)),
        marked AS (
            SELECT *, before IS NULL AND run >= {period.from_ns} AS leads, {here} AS here, coalesce({there}, false) AS there FROM rows)
        SELECT node, run, lane, number, last_ns, before, here, coalesce(before, -1) AS after, leads AND run < {oldest_ns} AS expired,
            CASE WHEN (here OR there) AND (before IS NOT NULL OR leads) THEN greatest(number - coalesce(before, -1) - 1, 0) ELSE 0 END
                AS missing
        FROM marked""")
    store.run("CREATE OR REPLACE TEMP TABLE holes AS SELECT * FROM steps WHERE missing > 0")
    elsewhere = "(SELECT NULL AS node, NULL AS run, NULL AS lane, NULL AS number, 0 AS n WHERE false)"
    if store.run("SELECT count(*) FROM holes")[0][0]:
        elsewhere = f"""(
            SELECT h.node, h.run, h.lane, h.number, count(DISTINCT r.number) AS n
            FROM {store.others(wide)} r ASOF JOIN holes h
                ON r.node = h.node AND r.run = h.run AND r.lane = h.lane AND r.number > h.after
            WHERE r.number < h.number GROUP BY ALL)"""
    rows = store.run(f"""
        WITH found AS (
            SELECT s.* REPLACE (s.missing - coalesce(e.n, 0) AS missing)
            FROM steps s LEFT JOIN {elsewhere} e ON (s.node, s.run, s.lane, s.number) = (e.node, e.run, e.lane, e.number))
        SELECT node, run, lane, count(*) FILTER (here), count(*) FILTER (missing > 0 AND NOT expired),
            coalesce(sum(missing) FILTER (NOT expired), 0)::BIGINT, count(*) FILTER (number = before AND here),
            min(last_ns) FILTER (missing > 0 AND NOT expired), max(last_ns) FILTER (missing > 0 AND NOT expired),
            coalesce(sum(missing) FILTER (expired), 0)::BIGINT
        FROM found GROUP BY ALL HAVING count(*) FILTER (here) > 0 ORDER BY node, run, lane""")
    missing, records = sum(row[5] for row in rows), sum(row[3] for row in rows)
    repeated, expired = sum(row[6] for row in rows), sum(row[9] for row in rows)
    notes = ["no record is missing" if not missing else f"{missing:,} records are missing of {records + missing:,}"]
    if expired:
        notes.append(f"{expired:,} records are numbered before the oldest that is stored: expired, or lost")
    if not rows:
        notes = ["there are no records of this time at all: nothing can be said of what is missing"]
    facts = {"missing": missing, "repeated": repeated, "expired_or_lost": expired}
    return Answer(f"gaps in the numbers of records, {period}", _COLUMNS, [row[:9] for row in rows], tuple(notes), facts)
