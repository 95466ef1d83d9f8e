"""Records that never came to the store: `tapmesh flows gaps`. Each run and lane of a broker numbers its records from 0.

Records are stored about in the order of their numbers, but not of their times. So the numbers of the neighbouring hours are looked at too,
and a gap belongs to a time if one of the records beside it does.
"""

from __future__ import annotations

from broker.flows.answers.answer import Answer, Column, text
from broker.flows.answers.store import Store
from broker.flows.answers.times import HOUR_NS, Period

_COLUMNS = (
    *(text("node"), Column("run_ns", "run since", "time"), Column("lane", "lane"), Column("records", "records")),
    *(Column("gaps", "gaps"), Column("missing", "missing"), Column("repeated", "repeated")),
    *(Column("first_gap_ns", "first gap", "time"), Column("last_gap_ns", "last gap", "time")),
)


def gaps(store: Store, period: Period) -> Answer:
    wide = Period(max(0, period.from_ns - HOUR_NS), period.to_ns + HOUR_NS)
    inside = f"{{}} >= {period.from_ns} AND {{}} < {period.to_ns}"
    here, there = inside.format("last_ns", "last_ns"), inside.format("before_ns", "before_ns")
    rows = store.run(f"""
        WITH rows AS (
            SELECT node, run, lane, number, last_ns,
                lag(number) OVER numbered AS before, lag(last_ns) OVER numbered AS before_ns
            FROM {store.flows(wide, whole_files=True)} WINDOW numbered AS (PARTITION BY node, run, lane ORDER BY number, last_ns)),
        steps AS (
            SELECT *, coalesce(number - before - 1, CASE WHEN run >= {period.from_ns} THEN number ELSE 0 END) AS missing,
                {here} AS here, coalesce({there}, false) AS there
            FROM rows)
        SELECT node, run, lane, count(*) FILTER (here), count(*) FILTER (missing > 0 AND (here OR there)),
            coalesce(sum(missing) FILTER (missing > 0 AND (here OR there)), 0)::BIGINT, count(*) FILTER (number = before AND here),
            min(last_ns) FILTER (missing > 0 AND (here OR there)), max(last_ns) FILTER (missing > 0 AND (here OR there))
        FROM steps GROUP BY ALL HAVING count(*) FILTER (here) > 0 ORDER BY node, run, lane""")
    missing, records = sum(row[5] for row in rows), sum(row[3] for row in rows)
    repeated = sum(row[6] for row in rows)
    note = "no record is missing" if not missing else f"{missing:,} records are missing of {records + missing:,}"
    return Answer(f"gaps in the numbers of records, {period}", _COLUMNS, rows, (note,), {"missing": missing, "repeated": repeated})
