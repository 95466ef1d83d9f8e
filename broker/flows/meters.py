"""How much inputs and tools are used: what they counted in each `flows.meter_s`, and how full the store is."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from broker.supervisor.ledger import balance
from broker.supervisor.snapshot import Names, Reader

METER_INPUT, METER_TOOL, METER_STORE = range(1, 4)
METER_KINDS = ("", "input", "tool", "store")

METER = np.dtype(
    [
        ("at_ns", "<i8"),  # see `broker.flows.columns.METERS`
        ("for_ns", "<i8"),
        ("packets", "<i8"),
        ("bytes", "<i8"),
        ("dropped_packets", "<i8"),
        ("capacity_bytes", "<i8"),
        ("kind", "<i8"),  # METER_*
        ("name", "S72"),  # UTF-8
    ]
)

_Use = tuple[int, int, int]  # packets, bytes, dropped


class Meter:
    """Of one pipeline. What was counted before this process was started belongs to no time that it knows."""

    def __init__(self, reader: Reader, names: Names) -> None:
        self._reader = reader
        self._taken_ns = time.monotonic_ns()
        self._before = self._used(names)

    def take(self, names: Names) -> NDArray[np.void]:
        """METER[n]: what each input and tool has counted since the last call."""
        now_ns = time.monotonic_ns()
        used = self._used(names)
        rows = np.zeros(len(used), METER)
        for row, ((kind, name), counts) in zip(rows, used.items(), strict=True):
            before = self._before.get((kind, name), (0, 0, 0))
            row["kind"], row["name"] = kind, name.encode()
            row["packets"], row["bytes"], row["dropped_packets"] = (a - b for a, b in zip(counts, before, strict=True))
        rows["at_ns"], rows["for_ns"] = time.time_ns(), now_ns - self._taken_ns
        self._before, self._taken_ns = used, now_ns
        return rows

    def _used(self, names: Names) -> dict[tuple[int, str], _Use]:
        # The rings are left alone: what is in flight is counted in the next time, and measuring it may take longer than records can wait.
        ledger = balance(self._reader.take(names, rings=False))
        used: dict[tuple[int, str], _Use] = {}
        for i in ledger.inputs:
            used[METER_INPUT, i.input] = (i.captured_packets, i.captured_bytes, sum(i.dropped.values()))
        for t in ledger.tools:
            used[METER_TOOL, t.tool] = (t.delivered_frames, t.delivered_bytes, sum(t.dropped.values()))
        return used


def store_meter(for_ns: int, stored_records: int, held_bytes: int, dropped_packets: int, capacity_bytes: int) -> NDArray[np.void]:
    """METER[1]."""
    row = np.zeros(1, METER)
    row["at_ns"], row["for_ns"], row["kind"], row["name"] = time.time_ns(), for_ns, METER_STORE, b"store"
    row["packets"], row["bytes"], row["dropped_packets"], row["capacity_bytes"] = (
        stored_records, held_bytes, dropped_packets, capacity_bytes,
    )  # fmt: skip
    return row
