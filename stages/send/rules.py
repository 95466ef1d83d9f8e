"""The rules that a packet socket would go past, looked for now and then: they may come later than the tool."""

from __future__ import annotations

import contextlib
import time

from broker.privileges.asking import rules_passed_by

LOOK_EVERY_NS = 250_000_000
WAIT_S = 0.2
AGAIN_NS = 5_000_000_000
"""Whoever sends waits meanwhile: an opener that hangs is waited for so long, and asked again after that; what was found last holds."""


class Rules:
    """The same for all tools of a worker, for as long as it runs: IPsec has its policies when the other end answers, a firewall may be
    started after us."""

    def __init__(self) -> None:
        self._due_ns = 0
        self._found = ""

    def now(self) -> str:
        if time.monotonic_ns() >= self._due_ns:
            every_ns = AGAIN_NS
            with contextlib.suppress(TimeoutError):
                self._found = rules_passed_by(WAIT_S)
                every_ns = LOOK_EVERY_NS
            self._due_ns = time.monotonic_ns() + every_ns
        return self._found
