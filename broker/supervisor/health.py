"""What /healthz and /readyz say: everything that is wrong, in words."""

from __future__ import annotations

import time

from broker.supervisor import plan
from broker.supervisor.plan import Phase
from broker.supervisor.session import Session
from broker.supervisor.troubles import troubles

STUCK_NS = 10 * plan.SECOND_NS


def health(session: Session) -> list[str]:
    """Is the data path alive: every worker up, the supervisor looking after them, the inputs able to receive, a member of each group
    there, records taken."""
    now = time.monotonic_ns()
    words = []
    if now - session.ticked_ns > STUCK_NS:
        words.append(f"the supervisor has not looked for {(now - session.ticked_ns) / plan.SECOND_NS:.0f} s")
    if trouble := session.opener.trouble():
        words.append(trouble)
    seen, books = session.last
    words += plan.unhealthy(seen, books, now, session.watching_since_ns)
    if session.force.config is not None:
        words += session.companions.troubles(session.force.config.flows, now, session.watching_since_ns)
        words += troubles(session.force.config, session.pipeline)
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
