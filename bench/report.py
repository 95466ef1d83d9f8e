"""One line of output."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """`ratio_to` is our value divided by that of a peer, by the peer's name, where more is better for both."""

    bench: str
    case: str
    value: float
    unit: str
    ratio_to: dict[str, float] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


@functools.cache
def machine() -> dict[str, Any]:
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    return {
        "cpu": cpu or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numba": importlib.metadata.version("numba"),
    }


def line(row: Row) -> str:
    fields = {"bench": row.bench, "case": row.case, "value": short(row.value), "unit": row.unit}
    fields["ratio_to"] = {peer: short(ratio) for peer, ratio in row.ratio_to.items()}
    return json.dumps({**fields, **row.detail, "machine": machine()})


def short(value: float) -> float:
    """Four significant digits: no measurement here has more."""
    return float(f"{value:.4g}")
