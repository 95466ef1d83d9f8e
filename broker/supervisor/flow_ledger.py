"""The flows stage's part of the ledger: every packet that was captured is in a flow, or was left out for a counted reason. Pure. ::

captured = metered + unmetered, by reason + in flight behind capture
records that were written = records of flows that ended + records dropped because the exporter did not take those before
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker.core.metrics import COUNTERS, WIDTH, index
from broker.supervisor.snapshot import LaneSnapshot
from broker.supervisor.totals import scalar, total


@dataclass(frozen=True)
class FlowsLedger:
    captured_packets: int
    metered_packets: int
    metered_bytes: int
    unmetered_packets: dict[str, int]  # by reason
    in_flight_packets: int
    off_by: int
    live_flows: int
    records: dict[str, int]  # by why they were written; those that were dropped too
    dropped_records: int
    dropped_record_packets: int
    dropped_record_bytes: int
    dropped_names: int


def flows_ledger(lanes: Iterable[LaneSnapshot]) -> FlowsLedger | None:
    """All lanes together; None if none has a flows stage."""
    metered = [lane for lane in lanes if any(w.id.kind == "flows" for w in lane.workers)]
    if not metered:
        return None
    capture, row = total(metered, "capture"), total(metered, "flows")
    at = index("capture", "captured_packets")
    captured = int(capture[at : at + WIDTH["input"]].sum())
    in_flight = sum(lane.unmetered_packets for lane in metered)

    def of(name: str) -> int:
        return scalar(row, "flows", name)

    def starting(prefix: str) -> dict[str, int]:
        names = (c.name for c in COUNTERS if c.stage == "flows" and c.name.startswith(prefix))
        return {name.removeprefix(prefix): of(name) for name in names}

    unmetered = starting("unmetered_")
    return FlowsLedger(
        captured,
        of("metered_packets"),
        of("metered_bytes"),
        unmetered,
        in_flight,
        captured - of("metered_packets") - sum(unmetered.values()) - in_flight,
        of("live_flows"),
        starting("records_"),
        of("dropped_records"),
        of("dropped_record_packets"),
        of("dropped_record_bytes"),
        of("dropped_names"),
    )
