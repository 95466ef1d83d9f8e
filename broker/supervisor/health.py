"""What /healthz and /readyz say: everything that is wrong, in words."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.core.layout import TOOL_DEAD
from broker.core.model import Config
from broker.supervisor import plan
from broker.supervisor.plan import Phase
from broker.supervisor.session import Session

STUCK_NS = 10 * plan.SECOND_NS
_IFF_UP = 0x1  # linux/if.h
_NET = Path("/sys/class/net")


def health(session: Session, net: Path = _NET) -> list[str]:
    """Is the data path alive: every worker up, the supervisor looking after them, the interfaces able to receive, a member of each group
    there."""
    now = time.monotonic_ns()
    words = []
    if now - session.ticked_ns > STUCK_NS:
        words.append(f"the supervisor has not looked for {(now - session.ticked_ns) / plan.SECOND_NS:.0f} s")
    if trouble := session.opener.trouble():
        words.append(trouble)
    seen, books = session.last
    words += plan.unhealthy(seen, books, now, session.watching_since_ns)
    if session.force.config is not None:
        words += session.companions.troubles(session.force.config.flows)
        words += interface_troubles(session.force.config, net)
        words += group_troubles(session.force.config, session.pipeline.tool_state)
    return words


def ready(session: Session) -> list[str]:
    """May traffic be sent our way: healthy, everything has come up, and nobody is stopping us."""
    words = []
    if session.host.progress:
        words.append(session.host.progress)
    if not session.times.up_ns:
        words.append("starting")
    if session.phase is Phase.DRAIN:
        words.append("stopping")
    return words + health(session)


def interface_troubles(config: Config, net: Path = _NET) -> list[str]:
    """Interfaces of live inputs that are missing, down or without a link. Reads `net` (/sys/class/net)."""
    words = []
    for one in config.inputs:
        if one.kind != "afpacket":
            continue
        try:
            flags = int((net / one.interface / "flags").read_text(), 16)
        except (OSError, ValueError):
            words.append(f"input {one.name}: there is no interface {one.interface}")
            continue
        if not flags & _IFF_UP:
            words.append(f"input {one.name}: interface {one.interface} is down")
        elif not _has_link(net / one.interface / "carrier"):
            words.append(f"input {one.name}: interface {one.interface} has no link")
    return words


def group_troubles(config: Config, tool_state: NDArray[np.int64]) -> list[str]:
    """Groups of which no member answers. `tool_state`: int64[TOOLS], TOOL_*."""
    dead = {tool.name for tool in config.tools if tool_state[tool.slot] == TOOL_DEAD}
    return [f"group {g.name}: all members are dead: {', '.join(g.members)}" for g in config.groups if dead.issuperset(g.members)]


def _has_link(carrier: Path) -> bool:
    try:
        return carrier.read_text().strip() != "0"
    except OSError:
        return True  # drivers that do not know answer EINVAL
