"""The counters of many workers added up."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from broker.core.metrics import COUNTERS, N_COUNTERS, WIDTH, index, of_stage
from broker.supervisor.snapshot import Counts, LaneSnapshot


def total(lanes: Iterable[LaneSnapshot], stage: str) -> Counts:
    """int64[N_COUNTERS]: the rows of all workers of a stage added up, live and committed (a counter lies in one of the two)."""
    found = np.zeros(N_COUNTERS, np.int64)
    for lane in lanes:
        for w in lane.workers:
            if w.id.kind == stage:
                found += _row(w.counters, w.live, stage)
    return found


def _row(committed: Counts, live: Counts, stage: str) -> Counts:
    row = committed.copy()
    for c in of_stage(stage):
        if c.live:
            at = index(stage, c.name)
            row[at : at + WIDTH[c.per]] = live[at : at + WIDTH[c.per]]
    return row


def scalar(row: Counts, stage: str, name: str, slot: int = 0) -> int:
    return int(row[index(stage, name) + slot])


def drops(row: Counts, stage: str, per: str, slot: int) -> dict[str, int]:
    """Reason -> count, of the drop counters that `stage` keeps per `per`, in the order of the table."""
    return {
        c.name.removeprefix("dropped_"): scalar(row, stage, c.name, slot)
        for c in COUNTERS
        if c.stage == stage and c.per == per and c.name.startswith("dropped_")
    }
