"""Waiting for a source without a ring: for who runs capture by itself."""

from __future__ import annotations

import select
import time

from broker.core.doorbell import PARK_LIMIT_MS
from broker.core.stage import Source


def await_source(source: Source) -> None:
    """Until packets become due, or the pipe has some; at most PARK_LIMIT_MS."""
    due_ms = -((time.monotonic_ns() - source.due_ns) // 1_000_000)
    poller = select.poll()
    if source.wait_fd >= 0:
        poller.register(source.wait_fd, select.POLLIN)
    poller.poll(min(max(0, due_ms), PARK_LIMIT_MS) if source.due_ns else PARK_LIMIT_MS)
