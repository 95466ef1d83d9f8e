"""Waiting for a condition with a deadline: the only way a test lets time pass."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

DEADLINE_S = 60.0


def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return when `condition()` is true; fail, saying `what` was waited for, when it is not within `deadline_s`."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s} s for: {what}"
        select.select([], [], [], 0.002)
