"""What has been metered, and what has become of the records, as tables. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from broker.cli.table import Column, count, reasons, render, size
from broker.supervisor.flow_ledger import FlowsLedger


def flows_table(flows: FlowsLedger) -> str:
    columns = [Column("flows", right=False), Column("packets"), Column("", right=False)]
    rows = [
        ["captured", count(flows.captured_packets), ""],
        ["metered", count(flows.metered_packets), f"{size(flows.metered_bytes)} of IP; {count(flows.live_flows)} flows go on"],
        ["left out", count(sum(flows.unmetered_packets.values())), reasons(flows.unmetered_packets)],
        ["in flight", count(flows.in_flight_packets), "captured, not yet metered"],
    ]
    if flows.dropped_records:
        rows.append(
            [
                "lost",
                count(flows.dropped_record_packets),
                f"in {count(flows.dropped_records)} records that the exporter did not take in time",
            ]
        )
    records = ", ".join(f"{word} {count(n)}" for word, n in flows.records.items() if n)
    return render(columns, rows) + f"\n  records: {records or 'none yet'}"


def exports_table(exports: Sequence[dict[str, int | str]]) -> str:
    columns = [
        Column("export", right=False),
        *(Column(t) for t in ("records", "messages", "size", "waiting")),
        Column("dropped", right=False),
    ]
    rows = []
    for one in exports:
        dropped = (
            f"{count(int(one['dropped_records']))} records, {count(int(one['dropped_packets']))} packets" if one["dropped_records"] else ""
        )
        figures = [count(int(one[name])) for name in ("records", "messages")]
        rows.append([str(one["name"]), *figures, size(int(one["bytes"])), count(int(one["waiting_records"])), dropped])
    return render(columns, rows)
