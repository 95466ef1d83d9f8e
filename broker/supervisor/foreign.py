"""A pipeline of another version of tapmesh, found running by `tapmesh run`: after an upgrade, or the way back, whose supervisor had died.

Its memory cannot be read, but its processes know it, and what they are told is the same in every version: SIGTERM ends a worker once it has
done what was ready then. So each stage is asked in turn, upstream first, and the flow records are handed over; then everything is removed.
Which worker a process is says its name, ``tm-KIND-LANE.WORKER``.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from broker.core.layout import STAGES
from broker.supervisor import companions, prepare
from broker.supervisor.processes import attach, find

KILLED_S = 5.0


def drain(name: str, reason: str, within_s: float, log: Any) -> None:
    """Have the pipeline `name` end by itself, and what is late by kill -9. Nobody can tell its last ledger and its sequence numbers then.
    The lock must be held."""
    log.warning("foreign_found", reason=reason)
    deadline = time.monotonic() + within_s
    late: list[int] = []
    for kind in STAGES:
        late += _end([pid for pid in find(name) if _kind(pid) == kind[:7]], name, "stages", deadline)
    for kind in companions.ORDER:
        late += _end([pid for pid, what in find(name, companions.MODULE).items() if what == kind], name, companions.MODULE, deadline)
    prepare.clear(name)
    (log.error if late else log.info)("foreign_drained", killed=late)


def _kind(pid: int) -> str:
    """Of a worker; empty for the host and for what has ended."""
    try:
        words = Path(f"/proc/{pid}/comm").read_text().split("-")
    except OSError:
        return ""
    return words[1] if len(words) > 2 and words[0] == "tm" else ""


def _end(pids: list[int], name: str, module: str, deadline: float) -> list[int]:
    """Those that had to be killed."""
    held = [process for pid in pids if (process := attach(pid, name, module))]
    for process in held:
        process.send(signal.SIGTERM)
    late = []
    for process in held:
        if not process.wait(max(0.0, deadline - time.monotonic())):
            process.send(signal.SIGKILL)
            process.wait(KILLED_S)
            late.append(process.pid)
        process.close()
    return late
