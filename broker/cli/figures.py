"""run.json: what a replay has cost. Everything that differs from run to run is here, and nothing of it in ledger.json. Pure."""

from __future__ import annotations

from typing import Any

from broker.cli.report import stage_figures
from broker.supervisor.session import Outcome


def run_figures(outcome: Outcome) -> dict[str, Any]:
    """`cpu_s`: user and system time of a stage's workers from their coming up to the end of the traffic."""
    times = outcome.times
    captured = sum(lane.captured_packets for lane in outcome.ledger.lanes)
    cpu_ns = sum(outcome.cpu_ns.values())
    traffic_ns = max(0, times.finished_ns - times.up_ns) if times.up_ns else 0
    return {
        "wall_s": _seconds(times.ended_ns - times.begun_ns),
        "start_up_s": _seconds(times.up_ns - times.begun_ns) if times.up_ns else None,
        "first_delivery_s": _seconds(times.delivered_ns - times.begun_ns) if times.delivered_ns else None,
        "process_age_at_begin_s": round(times.age_at_begin_s, 6),
        "traffic_s": _seconds(traffic_ns),
        "packets": captured,
        "packets_per_s": round(captured * 1e9 / traffic_ns) if traffic_ns else None,
        "cpu_s": _seconds(cpu_ns),
        "packets_per_cpu_s": round(captured * 1e9 / cpu_ns) if cpu_ns else None,
        "restarts": outcome.restarts,
        "stages": {
            f.stage: {
                "cpu_s": _seconds(outcome.cpu_ns.get(f.stage, 0)),
                "busy_s": _seconds(f.busy_ns),
                "starved_s": _seconds(f.starved_ns),
                "blocked_s": _seconds(f.blocked_ns),
                "handled": f.handled,
            }
            for f in stage_figures(outcome.snapshot)
        },
    }


def _seconds(ns: int) -> float:
    return round(ns / 1e9, 6)
