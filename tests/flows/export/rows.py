"""FLOW rows made at random, with extremes among them, and what goes with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from broker.core import flow_layout as layout
from broker.flows.export.messages import ExportContext

NOW_NS = 1_800_000_000_123_456_789
RUN_NS = NOW_NS - 3600 * 1_000_000_000
INPUTS = {0: "span0", 1: "remote", 5: 'odd "name"'}


def context(**changed: Any) -> ExportContext:
    return ExportContext(**{"node": "esx07", "inputs": INPUTS, "run_ns": RUN_NS, **changed})


def some_rows(n: int, seed: int = 1, *, most_bytes: int = 1 << 40, version: int = 0) -> Any:
    """FLOW[n]: what the flows stage could have made, of the last hour."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, layout.FLOW)
    rows["version"] = version or rng.choice([4, 6], n)
    four = rows["version"] == 4
    rows["protocol"] = np.where(four, rng.choice([1, 6, 17, 47, 132], n), rng.choice([6, 17, 58, 50], n))
    for name in ("source", "destination"):
        rows[name] = rng.integers(0, 256, (n, 16))
        rows[name][four, :12] = 0
    has_ports = np.isin(rows["protocol"], (6, 17, 132))
    for name in ("source_port", "destination_port"):
        rows[name] = np.where(has_ports, rng.choice([0, 1, 53, 443, 65535, 40_000], n), 0)
    icmp4, icmp6 = rows["protocol"] == 1, rows["protocol"] == 58
    kinds = np.array([(8, 0, 0), (0, 8, 0), (13, 14, 0), (3, 1, 1), (11, 0, 0)])[rng.integers(0, 5, n)]
    kinds6 = np.array([(128, 129, 0), (129, 128, 0), (135, 136, 0), (1, 4, 4), (3, 0, 0)])[rng.integers(0, 5, n)]
    for chosen, of in ((icmp4, kinds), (icmp6, kinds6)):
        rows["source_port"][chosen], rows["destination_port"][chosen] = of[chosen, 0], of[chosen, 1]
        rows["icmp"][chosen] = of[chosen, 0] << 8 | of[chosen, 2]
    rows["last_ns"] = NOW_NS - rng.integers(0, 50 * 60 * 1_000_000_000, n)
    rows["first_ns"] = rows["last_ns"] - rng.choice([0, 1, 999_999, 1_000_000, 59_999_999_999], n)
    rows["packets"] = rng.integers(1, 1 << 20, (n, 2))
    one_way = rng.integers(0, 3, n)
    rows["packets"][one_way == 0, 1] = 0  # nobody answered
    rows["packets"][one_way == 1, 0] *= rng.integers(0, 2, int((one_way == 1).sum()))  # goes on, and only the answer is in this part
    rows["packets"][:, 1] += rows["packets"].sum(axis=1) == 0
    rows["bytes"] = np.minimum(rows["packets"] * rng.integers(20, 65_536, (n, 2)), most_bytes)
    rows["bytes"] = np.maximum(rows["bytes"], rows["packets"])
    has = rows["packets"] > 0
    rows["min_bytes"], rows["max_bytes"] = rng.integers(20, 65_536, (n, 2)) * has, 65_535 * has
    rows["tos"], rows["tcp_flags"] = (
        rng.integers(0, 256, (n, 2)) * has,
        rng.integers(0, 256, (n, 2)) * (rows["protocol"] == 6)[:, None] * has,
    )
    rows["ttl"], rows["end"] = rng.integers(0, 256, n), rng.integers(1, 6, n)
    rows["vlan"], rows["input"] = rng.choice([0, 1, 4094], n), rng.choice([0, 1, 5], n)
    rows["tunnel"] = rng.integers(0, len(layout.TUNNEL_NAMES), n)
    rows["tunnel_id"] = rng.choice([0, 7, (1 << 24) - 1], n) * (rows["tunnel"] > 0)
    rows["one_in"], rows["lane"], rows["number"] = 1, 0, np.arange(n)
    rows["flags"] = rng.integers(0, 4, n)
    rows["rtt_us"] = rng.choice([0, 1, 1500], (n, 2)) * (rows["protocol"] == 6)[:, None]
    rows["dns_code"] = 255
    for at, (kind, text, code) in enumerate([(1, b"www.example.com", 0), (2, b'odd\\"name', 255), (1, b"x" * layout.NAME_BYTES, 3)]):
        if at < n:
            rows["named"][at], rows["name"][at], rows["name_len"][at] = kind, text, len(text)
            rows["dns_type"][at], rows["dns_code"][at] = (1, code) if kind == 1 else (0, 255)
    return rows
