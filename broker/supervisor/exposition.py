"""/metrics: the Prometheus text format (version 0.0.4), made from the metrics table and a Snapshot. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/ - a counter ends in _total, label values escape backslash, quote and newline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from broker.core.metrics import COUNTERS, WIDTH, Counter, index
from broker.supervisor.ledger import Ledger
from broker.supervisor.plan import HEARTBEAT_NS, UP
from broker.supervisor.snapshot import Snapshot, WorkerSnapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_POSITIONS = ("source_", "file_", "lost_", "live_")
"""Rows that tell where something is, how many there are, or what is missing; they may go back, so they are gauges."""

MAX_RULES = 1000
"""With more, every scrape would be megabytes, and every rule three series to keep."""
_RULE_COUNTS = {
    "packets": "passed or dropped by the rule that has this number in its map now; starts anew when that becomes another rule (packets)",
    "bytes": "their bytes on the wire (bytes)",
    "undetermined_packets": "packets that the rule could not be told for, so that the map decided (packets)",
}


_EXPORT_COUNTS = {
    "records": "records of flows handed over: sent, written, stored (records)",
    "messages": "messages, lines or files that they were handed over in (messages)",
    "bytes": "of those (bytes)",
    "dropped_records": "never handed over (records)",
    "dropped_packets": "in records that were never handed over (packets)",
    "dropped_bytes": "in records that were never handed over (bytes)",
    "errors": "the collector or store refused, or could not be reached (times)",
    "waiting_records": "in a buffer or on disk (records)",
    "connected": "1: the last attempt went well",
}
"""Of exports and, under the name `store`, of the store of flow records."""
_EXPORT_GAUGES = ("waiting_records", "connected")


def exposition(snapshot: Snapshot, ledger: Ledger) -> str:
    """The whole page. Slots without a name are left out as long as they have counted nothing."""
    lines: list[str] = []
    for counter in COUNTERS:
        lines += _family(counter, snapshot)
    lines += _rules(ledger)
    lines += _workers(snapshot)
    lines += _ledger(ledger)
    lines += _exports(snapshot)
    if snapshot.alive:
        alive = [({"tool": tool}, int(there)) for tool, there in snapshot.alive.items()]
        lines += _gauge("tapmesh_tool_alive", "1: the tool answers when it is asked; those that are not asked are not here", alive)
    lines += _gauge("tapmesh_generation", "number of the configuration that new packets are handled by", [({}, snapshot.generation)])
    return "\n".join(lines) + "\n"


def metric_name(counter: Counter) -> str:
    base = f"tapmesh_{counter.stage}_{counter.name}" if counter.stage else f"tapmesh_{counter.name}"
    return base if counter.name.startswith(_POSITIONS) else f"{base}_total"


def _family(counter: Counter, snapshot: Snapshot) -> Iterator[str]:
    kind = "gauge" if counter.name.startswith(_POSITIONS) else "counter"
    name = metric_name(counter)
    yield f"# HELP {name} {_escape_help(counter.help)} ({counter.unit})"
    yield f"# TYPE {name} {kind}"
    for lane in snapshot.lanes:
        for worker in lane.workers:
            if counter.stage in ("", worker.id.kind):
                yield from _samples(name, counter, worker, snapshot)


def _samples(name: str, counter: Counter, worker: WorkerSnapshot, snapshot: Snapshot) -> Iterator[str]:
    row = worker.live if counter.live else worker.counters
    at = index(worker.id.kind, counter.name)
    labels = _labels_of(worker)
    if not counter.per:
        yield _sample(name, labels, int(row[at]))
        return
    known = snapshot.names.known(counter.per)
    for slot, value in enumerate(row[at : at + WIDTH[counter.per]].tolist()):
        if value or slot in known:
            yield _sample(name, {**labels, counter.per: snapshot.names.of(counter.per, slot)}, value)


def _labels_of(worker: WorkerSnapshot) -> dict[str, str]:
    return {"stage": worker.id.kind, "lane": str(worker.id.lane), "worker": str(worker.id.worker)}


def _workers(snapshot: Snapshot) -> Iterator[str]:
    workers = [w for lane in snapshot.lanes for w in lane.workers]
    up = [(_labels_of(w), int(w.state in UP and snapshot.taken_ns - w.heartbeat_ns < HEARTBEAT_NS)) for w in workers]
    yield from _gauge("tapmesh_worker_up", "1: the worker works, by what it has said lately", up)
    yield from _gauge("tapmesh_worker_starts", "times the worker has been started", [(_labels_of(w), w.epoch) for w in workers])
    yield from _gauge("tapmesh_worker_generation", "configuration that the worker holds", [(_labels_of(w), w.generation) for w in workers])
    silent = [(_labels_of(w), max(0, snapshot.taken_ns - w.heartbeat_ns) if w.heartbeat_ns else 0) for w in workers]
    yield from _gauge("tapmesh_worker_silent_ns", "time since the worker's last heartbeat (ns)", silent)


def _ledger(ledger: Ledger) -> Iterator[str]:
    yield from _gauge("tapmesh_ledger_balanced", "1: every packet is accounted for", [({}, int(ledger.balanced))])
    lanes = [({"lane": str(lane.lane)}, lane) for lane in ledger.lanes]
    tools = [({"tool": t.tool}, t) for t in ledger.tools]
    yield from _gauge("tapmesh_ledger_lane_off_by", "packets that nobody accounts for", [(labels, x.off_by) for labels, x in lanes])
    yield from _gauge("tapmesh_ledger_tool_off_by", "frames that nobody accounts for", [(k, t.off_by or t.framed_off_by) for k, t in tools])
    yield from _gauge("tapmesh_in_flight_packets", "captured, not yet judged", [(labels, x.in_flight_packets) for labels, x in lanes])
    yield from _gauge("tapmesh_in_flight_frames", "wanted, not yet delivered or dropped", [(k, t.in_flight_frames) for k, t in tools])


def _rules(ledger: Ledger) -> Iterator[str]:
    n_rules = sum(len(m.rules) for m in ledger.maps)
    if n_rules > MAX_RULES:
        yield f"# {n_rules} rules are too many to be listed here (at most {MAX_RULES}): tapmesh status --rules"
        return
    for field, text in _RULE_COUNTS.items():
        name = f"tapmesh_rule_{field}_total"
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} counter"
        for m in ledger.maps:
            for number, rule in enumerate(m.rules, 1):
                yield _sample(name, {"map": m.map, "rule": str(number), "action": rule.action}, getattr(rule, field))


def _exports(snapshot: Snapshot) -> Iterator[str]:
    for field, text in _EXPORT_COUNTS.items():
        kind = "gauge" if field in _EXPORT_GAUGES else "counter"
        name = f"tapmesh_export_{field}" + ("" if kind == "gauge" else "_total")
        if snapshot.exports:
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} {kind}"
        for one in snapshot.exports:
            yield _sample(name, {"export": str(one["name"])}, int(one[field]))


def _gauge(name: str, text: str, samples: Iterable[tuple[dict[str, str], int]]) -> Iterator[str]:
    yield f"# HELP {name} {_escape_help(text)}"
    yield f"# TYPE {name} gauge"
    for labels, value in samples:
        yield _sample(name, labels, value)


def _sample(name: str, labels: dict[str, str], value: int) -> str:
    if not labels:
        return f"{name} {value}"
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
