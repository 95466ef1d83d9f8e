"""Who talks to whom about what: `tapmesh flows conversations` and `services`.

A conversation is a source, a destination and a service: the flows of one client with one server, whatever its ports.
"""

from __future__ import annotations

from broker.flows.answers.answer import Answer, Column, text
from broker.flows.answers.groups import BYTES, FLOWS, by_address, names_of, shown
from broker.flows.answers.services import service
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period

SERVICE = ("destination_port", "protocol")
_RTT = "median(rtt_source_us::BIGINT + rtt_destination_us) FILTER (rtt_source_us > 0 AND rtt_destination_us > 0) AS rtt_us"


def conversations(store: Store, period: Period, condition: str, limit: int) -> Answer:
    ends = ("source", "destination")
    measures = (
        "sum(bytes)::BIGINT AS forward, sum(bytes_back)::BIGINT AS back, sum(packets + packets_back)::BIGINT AS n",
        f"{FLOWS} AS flows, min(first_ns) AS first_ns, max(last_ns) AS last_ns, {_RTT}",
    )
    groups = by_address(store.services(period, condition), ends, SERVICE, measures)
    keys = ", ".join((*names_of(ends), *SERVICE))
    rows = store.run(
        f"SELECT {keys}, forward, back, n, flows, first_ns, last_ns, rtt_us FROM ({groups}) "
        f"ORDER BY forward + back DESC, {keys} LIMIT {limit}"
    )
    columns = (
        *(text("source"), text("destination"), text("service")),
        *(Column("bytes", "bytes", "bytes"), Column("bytes_back", "back", "bytes"), Column("packets", "packets"), Column("flows", "flows")),
        *(Column("first_ns", "first", "time"), Column("last_ns", "last", "time"), Column("median_rtt_us", "median RTT", "micros")),
    )
    return Answer(
        f"conversations by bytes, {period}",
        columns,
        [(shown(*row[:3]), shown(row[0], *row[3:5]), service(row[5], row[6]), *row[7:]) for row in rows],
    )


def services(store: Store, period: Period, condition: str, limit: int) -> Answer:
    """Clients and servers are counted exactly; the round trip is that of handshakes, both halves seen."""
    rows = store.run(
        f"SELECT destination_port, protocol, count(DISTINCT (version, source_high, source_low)), "
        f"count(DISTINCT (version, destination_high, destination_low)), {FLOWS}, {BYTES}::BIGINT AS b, "
        f"count_if(packets_back = 0) / count(*), {_RTT} FROM {store.services(period, condition)} "
        f"GROUP BY ALL ORDER BY b DESC, destination_port, protocol LIMIT {limit}"
    )
    columns = (
        *(text("service"), Column("clients", "clients"), Column("servers", "servers"), Column("flows", "flows")),
        *(Column("bytes", "bytes", "bytes"), Column("unanswered_share", "unanswered", "share")),
        Column("median_rtt_us", "median RTT", "micros"),
    )
    return Answer(f"services by bytes, {period}", columns, [(service(row[0], row[1]), *row[2:]) for row in rows])
