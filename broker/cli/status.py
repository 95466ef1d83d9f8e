"""``tapmesh status``: the present state of a running pipeline, read from its shared memory; works without its supervisor."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from typing import Any

from broker.cli import report
from broker.cli.common import attach, chosen_name, generation_of, in_force
from broker.cli.table import Column, render
from broker.core import layout
from broker.supervisor.ledger import Ledger, balance
from broker.supervisor.plan import HEARTBEAT_NS, UP
from broker.supervisor.snapshot import Reader, Snapshot, WorkerSnapshot
from broker.supervisor.troubles import troubles as troubles_beside


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("status", help="the state of a running pipeline: workers, tools, ledger")
    sub.add_argument("--name", help="of the pipeline; not needed when only one is running")
    sub.add_argument("--rules", action="store_true", help="what each rule has counted, instead of workers, tools and ledger")
    sub.add_argument("--json", action="store_true", help="for programs: everything")
    sub.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0 when every worker is up, nothing else is wrong and the ledger balances."""
    pipeline, names = attach(chosen_name(arguments.name))
    snapshot = Reader(pipeline).take(names, rules=arguments.rules or arguments.json)
    ledger = balance(snapshot)
    config = in_force(pipeline)
    troubles = worker_troubles(snapshot) + (troubles_beside(config, pipeline) if config else [])
    if arguments.json:
        print(json.dumps(as_json(snapshot, ledger, troubles), indent=2))
    else:
        print(f"pipeline {snapshot.name}, generation {generation_of(pipeline)}\n")
        if arguments.rules:
            print(report.rules_table(ledger, shutil.get_terminal_size().columns if sys.stdout.isatty() else 0))
        else:
            print(workers_table(snapshot) + "\n\n" + report.whole(snapshot, ledger))
        for trouble in troubles:
            print(f"  {trouble}")
    return 0 if ledger.balanced and not troubles else 1


def beat_ms(worker: WorkerSnapshot) -> int | None:
    """Milliseconds since its last heartbeat; None before the first. Clocks of two readers: never negative."""
    return max(0, time.monotonic_ns() - worker.heartbeat_ns) // 1_000_000 if worker.heartbeat_ns else None


def worker_troubles(snapshot: Snapshot) -> list[str]:
    words = []
    for lane in snapshot.lanes:
        for w in lane.workers:
            if w.state not in UP:
                words.append(f"{w.id} is {_state(w)}" + (f" (exit status {w.error})" if w.error else ""))
            elif snapshot.taken_ns - w.heartbeat_ns > HEARTBEAT_NS:
                words.append(f"{w.id} has had no heartbeat for {(snapshot.taken_ns - w.heartbeat_ns) / 1e9:.1f} s")
    return words


def _state(w: WorkerSnapshot) -> str:
    return layout.STATE_NAMES[w.state] if 0 <= w.state < len(layout.STATE_NAMES) else f"in state {w.state}"


def workers_table(snapshot: Snapshot) -> str:
    columns = [
        Column("worker", right=False),
        Column("state", right=False),
        *(Column(t) for t in ("pid", "starts", "generation", "block", "beat ms")),
    ]
    rows = [
        [
            str(w.id),
            _state(w),
            str(w.pid),
            str(w.epoch),
            str(w.generation),
            str(w.cursor),
            str(beat_ms(w) if beat_ms(w) is not None else "-"),
        ]
        for lane in snapshot.lanes
        for w in lane.workers
    ]
    return render(columns, rows)


def as_json(snapshot: Snapshot, ledger: Ledger, troubles: list[str]) -> dict[str, Any]:
    return {
        "pipeline": snapshot.name,
        "generation": snapshot.generation,
        "healthy": not troubles,
        "troubles": troubles,
        "alive": snapshot.alive,
        "workers": [
            {
                "lane": w.id.lane,
                "stage": w.id.kind,
                "worker": w.id.worker,
                "state": _state(w),
                "pid": w.pid,
                "starts": w.epoch,
                "generation": w.generation,
                "block": w.cursor,
                "beat_ms": beat_ms(w),
            }
            for lane in snapshot.lanes
            for w in lane.workers
        ],
        "stages": [
            {
                "stage": f.stage,
                "handled": f.handled,
                "busy_ns": f.busy_ns,
                "starved_ns": f.starved_ns,
                "blocked_ns": f.blocked_ns,
                "restarts": f.restarts,
            }
            for f in report.stage_figures(snapshot)
        ],
        "senders": [{**asdict(sender), "expected_packets": sender.expected_packets} for sender in snapshot.senders],
        "exports": list(snapshot.exports),
        "ledger": ledger.as_json(),
    }
