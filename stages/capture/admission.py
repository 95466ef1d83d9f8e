"""What an interface lets in while the broker cannot keep up. Pure: what the kernel has counted in, what its filter is to do out.

| seen | becomes |
|---|---|
| half of the kernel's ring waits to be taken, or it has overflowed | the prefilter is on, if there is one (`prefilter: auto`) |
| it has overflowed in a window, although that is on | fewer flows are kept: as many as would have fitted, less a twentieth |
| a window without either | a thirty-second more flows, until all are kept: the ring hides for a third of a second that it is too many |
| all flows kept and no pressure for CALM_NS | the prefilter is off |

A ring that overflows loses packets of every flow; flows that are shed are lost whole, and the others are whole.
"""

from __future__ import annotations

from typing import Any, Literal

from stages.capture.socket_filter import SHARES

WINDOW_NS = 100_000_000
CALM_NS = 60_000_000_000
FEWEST = SHARES // 64
_MORE = SHARES // 512

EVENTS = {
    "prefilter_on": "capture cannot keep up: the kernel leaves out what no rule can be about",
    "prefilter_off": "there has been no pressure for a minute: everything is captured again",
    "shedding_began": "the kernel's ring has overflowed: packets of some flows are left out, whole flows at a time",
    "shedding_ended": "packets of all flows are taken again",
}


class Admission:
    """Of one input and lane. `prefiltering`: whether the prefilter is to be used; `kept`: flows of SHARES."""

    def __init__(self, prefilter: Literal["auto", "on", "off"], shed: bool, log: Any, seen: int = 0, dropped: int = 0) -> None:
        """`seen` and `dropped`: the kernel's counts so far."""
        self._auto, self._may_shed, self._log = prefilter == "auto", shed, log
        self.has_prefilter = False  # set with each policy
        self.prefiltering, self.kept = prefilter == "on", SHARES
        self._since_ns = self._pressed_ns = 0
        self._seen, self._dropped = seen, dropped

    def look(self, now_ns: int, seen: int, dropped: int, crowded: bool) -> bool:
        """After each reading of the kernel's counts (ever). True: what it is to do has changed."""
        lost = dropped > self._dropped
        if (lost or crowded) and self._auto and self.has_prefilter and not self.prefiltering:
            self._log.warning("prefilter_on", dropped_packets=max(dropped - self._dropped, 0))
            self.prefiltering = True
            self._begin(now_ns, seen, dropped)
            self._pressed_ns = now_ns
            return True
        if now_ns - self._since_ns < WINDOW_NS:
            return False
        n_lost, n_seen = dropped - self._dropped, seen - self._seen
        self._begin(now_ns, seen, dropped)
        if n_lost > 0 or crowded:
            self._pressed_ns = now_ns
        if n_lost > 0 and self._may_shed:
            return self._keep(max(FEWEST, self.kept * (n_seen - n_lost) * 19 // (n_seen * 20)))
        if self.kept < SHARES and not crowded:
            return self._keep(min(SHARES, self.kept + self.kept // 32 + _MORE))
        if self._auto and self.prefiltering and self.kept == SHARES and now_ns - self._pressed_ns >= CALM_NS:
            self._log.info("prefilter_off")
            self.prefiltering = False
            return True
        return False

    def _begin(self, now_ns: int, seen: int, dropped: int) -> None:
        self._since_ns, self._seen, self._dropped = now_ns, seen, dropped

    def _keep(self, kept: int) -> bool:
        if kept == self.kept:
            return False
        if self.kept == SHARES:
            self._log.warning("shedding_began", kept_flows=round(kept / SHARES, 3))
        elif kept == SHARES:
            self._log.info("shedding_ended")
        self.kept = kept
        return True
