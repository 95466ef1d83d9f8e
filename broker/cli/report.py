"""What a run was, or is, as tables for people: stages, maps, tools, and the ledger with its sum. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker.cli.report_flows import exports_table, flows_table
from broker.cli.table import Column, count, reasons, render, share, size
from broker.core.layout import STAGES
from broker.core.metrics import WIDTH, index, of_stage
from broker.core.senders import Sender
from broker.supervisor.ledger import Ledger
from broker.supervisor.snapshot import Counts, Snapshot
from broker.supervisor.totals import total

_HANDLED = {
    "capture": "captured_packets",
    "filter": "judged_packets",
    "encapsulate": "framed_frames",
    "send": "delivered_frames",
    "flows": "metered_packets",
}


@dataclass(frozen=True)
class StageFigures:
    """One stage, all its workers added up."""

    stage: str
    workers: int
    restarts: int
    handled: int  # packets; of encapsulate and send frames
    busy_ns: int
    starved_ns: int
    blocked_ns: int

    @property
    def ns_each(self) -> float:
        return self.busy_ns / self.handled if self.handled else 0.0


def stage_figures(snapshot: Snapshot) -> list[StageFigures]:
    found = []
    for stage in STAGES:
        workers = snapshot.workers(stage)
        if not workers:
            continue
        row = total(snapshot.lanes, stage)
        times = (int(row[index("", name)]) for name in ("busy_ns", "starved_ns", "blocked_ns"))
        restarts = sum(max(0, w.epoch - 1) for w in workers)
        found.append(StageFigures(stage, len(workers), restarts, _handled(row, stage), *times))
    return found


def _handled(row: Counts, stage: str) -> int:
    counter = next(c for c in of_stage(stage) if c.name == _HANDLED[stage])
    at = index(stage, counter.name)
    return int(row[at : at + WIDTH[counter.per]].sum())


def stages_table(snapshot: Snapshot) -> str:
    columns = [
        Column("stage", right=False),
        *(Column(t) for t in ("workers", "handled", "ns each", "busy", "starved", "blocked", "restarts")),
    ]
    rows = []
    for f in stage_figures(snapshot):
        whole = f.busy_ns + f.starved_ns + f.blocked_ns
        times = [share(f.busy_ns, whole), share(f.starved_ns, whole), share(f.blocked_ns, whole)]
        unit = "packets" if f.stage in ("capture", "filter", "flows") else "frames"
        rows.append([f.stage, str(f.workers), f"{f.handled:,} {unit:7}", f"{f.ns_each:,.0f}", *times, str(f.restarts)])
    return render(columns, rows)


def maps_table(ledger: Ledger) -> str:
    columns = [Column("map", right=False), *(Column(t) for t in ("passed", "passed bytes", "dropped by rule", "undetermined"))]
    rows = [
        [m.map, count(m.passed_packets), size(m.passed_bytes), count(m.dropped_packets), count(m.undetermined_packets)] for m in ledger.maps
    ]
    return render(columns, rows)


def rules_table(ledger: Ledger, width: int = 0) -> str:
    """Every rule of every map, and its share of the packets that the map decided. Expressions are shortened so that no line has more than
    `width` characters, unless that is 0."""
    columns = [
        Column("map", right=False),
        Column("rule"),
        *(Column(t) for t in ("packets", "bytes", "share", "undetermined")),
        Column("action", right=False),
        Column("expression", right=False),
    ]
    rows = []
    for m in ledger.maps:
        whole = sum(rule.packets + rule.undetermined_packets for rule in m.rules)
        for number, rule in enumerate(m.rules, 1):
            packets = rule.packets + rule.undetermined_packets
            counts = [count(rule.packets), size(rule.bytes), share(packets, whole), count(rule.undetermined_packets)]
            rows.append([m.map, str(number), *counts, rule.action, rule.expression])
    return render(columns, rows, width=width)


def aliveness(alive: Mapping[str, bool], tool: str) -> list[str]:
    """Its cell in a column that is there only if some tool is asked."""
    words = {True: "alive", False: "dead", None: "not asked"}
    return [words[alive.get(tool)]] if alive else []


def tools_table(ledger: Ledger, alive: Mapping[str, bool]) -> str:
    columns = [
        Column("tool", right=False),
        *([Column("is", right=False)] if alive else []),
        *(Column(t) for t in ("wanted", "delivered", "bytes", "in flight")),
        Column("dropped", right=False),
    ]
    rows = []
    for t in ledger.tools:
        counts = [count(t.wanted_frames), count(t.delivered_frames), size(t.delivered_bytes), count(t.in_flight_frames)]
        rows.append([t.tool, *aliveness(alive, t.tool), *counts, _tool_drops(t.dropped, t.repeated_frames)])
    return render(columns, rows)


def _tool_drops(dropped: dict[str, int], repeated: int) -> str:
    return reasons(dropped) + (f" (and at most {repeated:,} delivered twice after a crash)" if repeated else "")


def senders_table(senders: Iterable[Sender]) -> str:
    """What each sender of tunnel inputs has sent, by its own numbers; `-` where its tunnel has none."""
    columns = [
        Column("sender", right=False),
        Column("tunnel", right=False),
        *(Column(t) for t in ("session", "received", "bytes", "sent", "lost", "reordered", "repeated", "restarts", "delay ms")),
    ]
    rows = []
    for s in sorted(senders, key=lambda s: (s.address, s.tunnel, s.session or 0)):
        numbers = (s.expected_packets, s.lost_packets, s.reordered_packets, s.repeated_packets, s.restarts)
        said = [count(n) for n in numbers] if s.numbered_packets else ["-"] * len(numbers)
        session = "-" if s.session is None else str(s.session)
        rows.append([s.address, s.tunnel, session, count(s.received_packets), size(s.received_bytes), *said, _delays(s)])
    return render(columns, rows)


def _delays(s: Sender) -> str:
    """Least, mean and greatest."""
    if s.delay_min_ns is None or s.delay_mean_ns is None or s.delay_max_ns is None:
        return "-"
    return " ".join(f"{ns / 1e6:.1f}" for ns in (s.delay_min_ns, s.delay_mean_ns, s.delay_max_ns))


def ledger_table(ledger: Ledger) -> str:
    """Fates of the packets received, and their sum, which must be what was received."""
    totals = ledger.totals
    inputs = ", ".join(f"{i.input} {i.received_packets:,}" for i in ledger.inputs)
    lines = [
        ("received", totals.received, inputs if len(ledger.inputs) > 1 else ""),
        ("forwarded", totals.forwarded, "to at least one tool"),
        ("filtered", totals.filtered, f"wanted by no map{_in_kernel(totals.filtered_in_kernel)}"),
        *((f"dropped: {reason}", n, "") for reason, n in totals.dropped.items() if n),
        ("in flight", totals.in_flight, "captured, not yet judged"),
        ("sum", totals.accounted, verdict(ledger)),
    ]
    columns = [Column("ledger", right=False), Column("packets"), Column("", right=False)]
    return render(columns, [[name, count(n), text] for name, n, text in lines])


def _in_kernel(n: int) -> str:
    return f"; {n:,} of them left out by the kernel" if n else ""


def verdict(ledger: Ledger) -> str:
    return "= received: balanced" if ledger.balanced else "NOT BALANCED"


def whole(snapshot: Snapshot, ledger: Ledger) -> str:
    """All tables, and each fault of the ledger in words."""
    parts = [stages_table(snapshot)]
    if ledger.maps:
        parts.append(maps_table(ledger))
    if ledger.tools:
        parts.append(tools_table(ledger, snapshot.alive))
    if snapshot.senders:
        parts.append(senders_table(snapshot.senders))
    if ledger.flows is not None:
        parts.append(flows_table(ledger.flows))
    if snapshot.exports:
        parts.append(exports_table(snapshot.exports))
    parts.append(ledger_table(ledger))
    parts += [f"  ledger: {fault}" for fault in ledger.faults()]
    return "\n\n".join(parts)
