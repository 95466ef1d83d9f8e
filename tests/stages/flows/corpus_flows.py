"""What the flows stage makes of a capture file, beside what the slow meter of tests/flows/reference.py does."""

from __future__ import annotations

import ipaddress
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from broker.core import flow_layout as layout
from broker.core.flow_model import Flows as Options
from broker.core.metrics import index
from tests import libpcap
from tests.flows import reference
from tests.stages.delivery import fill, small
from tests.stages.flows.metering import Meter

_SAME = (
    "first_ns", "last_ns", "version", "protocol", "source", "destination", "source_port", "destination_port", "vlan", "tunnel", "tunnel_id",
    "packets", "bytes", "min_bytes", "max_bytes", "tcp_flags", "tos", "ttl", "rtt_us", "retransmitted", "began", "continued", "fragments",
    "named", "name", "dns_type", "dns_code",
)  # fmt: skip


def records_of(path: Path, **options: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Records of the stage, in words, and what it counted."""
    with tempfile.TemporaryDirectory() as directory:
        metering = Meter(Path(directory), Options(**options), sizes=(8192, 2048, 65_536), geometry=small(n_flows=1))
        found, used = [], 0
        waiting: list[libpcap.Record] = []

        def block() -> None:
            times, wirelens = [min(r.ts_ns, 2**63 - 1) for r in waiting], [r.wirelen for r in waiting]
            fill(metering.batch, [r.data for r in waiting], times=times, wirelens=wirelens)
            metering.batch.seq = metering.seq
            metering.stage.step(metering.batch)
            metering.seq += 1
            waiting.clear()

        for record in libpcap.read(path).records:
            if len(waiting) == metering.geometry.max_packets or used + len(record.data) > metering.geometry.data_bytes:
                block()
                used = 0
                found.append(metering.take())
            waiting.append(record)
            used += len(record.data)
        block()
        found.append(metering.end())
        names = ("metered_packets", "metered_bytes", "unmetered_not_ip", "unmetered_cut", "dropped_records", "records_resources")
        counts = Counter({name: metering.count(name) for name in names})
        for name in ("fragments_overlapping_packets", "fragments_tiny_packets", "ip6_chain_long_packets"):
            counts[name] = int(metering.stage._ignored[index("filter", name)])
        return [told(row) for row in np.concatenate(found)], counts


def told(row: np.void) -> dict[str, Any]:
    def text(address: np.ndarray) -> str:
        raw = address.tobytes()
        return str(ipaddress.ip_address(raw if row["version"] == 6 else raw[12:]))

    flags = int(row["flags"])
    plain = {name: tuple(value) if isinstance(value := row[name].tolist(), list) else value for name in layout.FLOW.names or ()}
    return plain | {
        "source": text(row["source"]),
        "destination": text(row["destination"]),
        "tunnel": layout.TUNNEL_NAMES[row["tunnel"]],
        "named": layout.NAMED_NAMES[row["named"]],
        "name": row["name"].decode(),
        "began": bool(flags & layout.FLOW_BEGAN),
        "continued": bool(flags & layout.FLOW_CONTINUED),
        "fragments": bool(flags & layout.FLOW_FRAGMENTS),
    }


def reason_to_differ(counts: Counter[str]) -> str:
    """Why ports and protocols of this capture need not be the same; the number of packets has to be."""
    if counts["fragments_overlapping_packets"] or counts["fragments_tiny_packets"]:
        return "fragments that contradict each other, or are too short for ports, have none here (RFC 5722, 3128)"
    if counts["ip6_chain_long_packets"]:
        return "an IPv6 chain of more than 8 headers or 256 bytes is not walked to its end"
    return ""


def differences(path: Path, **options: Any) -> list[str]:
    """In words; empty: they agree on every record."""
    ours, counts = records_of(path, **options)
    theirs = reference.meter(path, **{key: value for key, value in options.items() if key in ("layer", "idle_s", "active_s")})
    ours.sort(key=reference.sort_key)
    if counts["dropped_records"] or counts["records_resources"]:
        return [f"too many flows at once: {counts}"]
    said = []
    if reason_to_differ(counts):
        theirs_packets = sum(sum(r["packets"]) for r in theirs)
        return [] if theirs_packets == counts["metered_packets"] else [f"{theirs_packets} packets, {counts}"]
    if len(ours) != len(theirs):
        said.append(f"{len(ours)} records, the slow meter has {len(theirs)}")
    for mine, other in zip(ours, theirs, strict=False):
        wrong = {key: (mine[key], other[key]) for key in _SAME if mine[key] != other[key]}
        if mine["end"] not in other["ends"]:
            wrong["end"] = (mine["end"], sorted(other["ends"]))
        if wrong:
            said.append(f"{mine['source']}:{mine['source_port']} > {mine['destination']}:{mine['destination_port']}: {wrong}")
    metered = sum(sum(record["packets"]) for record in ours)
    if metered != counts["metered_packets"]:
        said.append(f"{counts['metered_packets']} packets metered, {metered} in records")
    return said
