"""Records that go one way, for formats that know no others: of each FLOW row up to two, in `ONE_WAY` rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.core.flow_ring import Rows
from broker.flows.export.community_id import has_answer
from broker.flows.export.messages import Counts

_ICMP, _ICMP6 = 1, 58

ONE_WAY = np.dtype(
    [
        ("first_ns", "<i8"),  # of the flow, both ways: records do not say when each way began and ended
        ("last_ns", "<i8"),
        ("packets", "<i8"),
        ("bytes", "<i8"),
        ("source", "u1", (16,)),
        ("destination", "u1", (16,)),
        ("interface", "<u4"),  # slot + 1
        ("source_port", "<u2"),  # ICMP: 0, and type << 8 | code, as routers have it
        ("destination_port", "<u2"),
        ("icmp", "<u2"),
        ("vlan", "<u2"),
        ("min_bytes", "<u2"),
        ("max_bytes", "<u2"),
        ("version", "u1"),
        ("protocol", "u1"),
        ("tcp_flags", "u1"),
        ("tos", "u1"),
        ("begins", "u1"),  # 1: of its FLOW row the first part
    ]
)


def one_way(rows: Rows) -> Rows:
    """FLOW[n] -> ONE_WAY[n..2n], the two of one row one after the other. A way without packets is left out, unless both are."""
    has = rows["packets"] > 0
    has[:, 0] |= ~has[:, 1]
    made = np.empty((len(rows), 2), ONE_WAY)
    is_icmp = (rows["protocol"] == _ICMP) | (rows["protocol"] == _ICMP6)
    for way in (0, 1):
        of = made[:, way]
        for name in ("first_ns", "last_ns", "version", "protocol", "vlan"):
            of[name] = rows[name]
        for name in ("packets", "bytes", "min_bytes", "max_bytes", "tcp_flags", "tos"):
            of[name] = rows[name][:, way]
        of["interface"] = rows["input"].astype(np.uint32) + 1
        ends = ("source", "destination") if way == 0 else ("destination", "source")
        for name, end in zip(("source", "destination"), ends, strict=True):
            of[name] = rows[end]
            of[f"{name}_port"] = np.where(is_icmp, 0, rows[f"{end}_port"])
        icmp = np.where(is_icmp, rows["icmp"] if way == 0 else _answer(rows), 0)
        of["icmp"] = icmp
        of["destination_port"][is_icmp] = icmp[is_icmp]
    made["begins"][:, 0], made["begins"][:, 1] = 1, ~has[:, 0]
    return made[has]


def _answer(rows: Rows) -> NDArray[np.uint16]:
    """Type << 8 | code of what goes back: the type that `destination_port` holds; of a type without an answer, the same."""
    return np.where(has_answer(rows), rows["destination_port"] << 8, rows["icmp"]).astype(np.uint16)


def counts_of(records: Rows) -> Counts:
    return records["begins"].astype(np.int64), records["packets"], records["bytes"]


def contiguous_address(records: Rows, column: str, n_bytes: int) -> NDArray[np.void]:
    return np.ascontiguousarray(records[column][:, 16 - n_bytes :]).view(f"V{n_bytes}")[:, 0]


MILLISECONDS = 1_000_000
_FAR_NS = 24 * 86_400 * 1_000_000_000  # well within 2**32 ms
_BACK_MS = 1 << 31
_BEFORE_MS = 1000  # an uptime of 0 is none to some collectors


def clock(rows: Rows, run_ns: int, now_ns: int) -> tuple[int, int]:
    """(seconds, boot in ms): what a message says the time is, and from when the uptimes in its records count. NetFlow counts in 32 bits of
    milliseconds since the device was started, so packets of long ago (a capture that is replayed) need another now and another start."""
    newest, oldest = int(rows["last_ns"].max()), int(rows["first_ns"].min())
    seconds = (newest if abs(newest - now_ns) > _FAR_NS else now_ns) // 1_000_000_000
    now_s = max(seconds, -(-newest // 1_000_000_000))  # collectors take an uptime beyond that of the header for one of the last round
    boot_ms = min(max(run_ns // MILLISECONDS, now_s * 1000 - _BACK_MS), oldest // MILLISECONDS - _BEFORE_MS, now_s * 1000)
    return now_s, max(boot_ms, now_s * 1000 - 0xFFFF_FFFF)


def uptime(ns: NDArray[np.int64], boot_ms: int) -> NDArray[np.int64]:
    """Milliseconds since the start; what 32 bits cannot hold is the nearest that they can."""
    return np.clip(ns // MILLISECONDS - boot_ms, 0, 0xFFFF_FFFF)
