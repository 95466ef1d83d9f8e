"""A line on stderr that says how far it is, rewritten in place; where stderr is not a terminal, a line now and then of what takes long."""

from __future__ import annotations

import sys
import time

from broker.core.metrics import WIDTH, index
from broker.supervisor.session import Session

_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


class Progress:
    """Given to the supervisor as `on_tick`."""

    def __init__(self, *, shown: bool | None = None) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown
        self._lines = shown is None and not self.shown
        self._next = self._next_line = 0.0
        self._before = (time.monotonic(), 0)
        self._dirty = False

    def __call__(self, session: Session) -> None:
        now = time.monotonic()
        if session.host.progress and (self._lines or now >= self._next):
            self._next = now + _EVERY_S
            self.say(session.host.progress)
            return
        if not self.shown or now < self._next:
            return
        self._next = now + _EVERY_S
        captured = captured_so_far(session)
        then, before = self._before
        rate = (captured - before) / (now - then) if now > then else 0.0
        self._before = now, captured
        self.say(f"{captured:,} packets, {max(0.0, rate):,.0f}/s" if session.times.up_ns else "starting")

    def say(self, text: str) -> None:
        """This and nothing else until the next."""
        if self._lines and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_S
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        if not self.shown:
            return
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
        self._dirty = True

    def end(self) -> None:
        """Leave an empty line for what follows."""
        if self._dirty:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._dirty = False


def captured_so_far(session: Session) -> int:
    """Packets in the newest committed counters of capture: good enough for a progress line, not for a ledger."""
    at = index("capture", "captured_packets")
    total = 0
    for lane in session.pipeline.lanes:
        half = int(lane.workers["cursor"][0]) & 1
        total += int(lane.committed[0, half, at : at + WIDTH["input"]].sum())
    return total
