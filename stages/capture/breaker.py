"""The loop breaker: for frames of our own that come back as something else, so that the table of our tunnels does not know them.

Somebody on the way rewrites their addresses, or puts them into a tunnel with other ones. They still look like ours (ALIKE), and in a loop
they soon are most of what is captured, because each comes round again and again. That others send the like is possible, too; what tells the
two apart is what happens when we pass none of them on: what is ours ends.

| state | every WINDOW_NS | becomes |
|---|---|---|
| closed | at least half of what was taken (without what the kernel has shed, of which nobody knows), and FEW packets, was alike; \
twice what was once found not to be ours | open |
| open: alike packets are dropped | and SETTLE windows later they still come, half as many or more | closed: so many are not ours |
| | else, when the time to hold is over: HOLD_NS, doubled each time up to LONGEST_HOLD_NS | closed, to try again |

So a loop is found within two windows and costs no more than these in each try. Other packets than those that look like ours are never
dropped. What does not show that it is like ours, since it is encrypted or cut off, is not recognised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WINDOW_NS = 250_000_000
SETTLE = 2
FEW = 50
HOLD_NS, LONGEST_HOLD_NS = 1_000_000_000, 64_000_000_000
_FORGET_NS = 60_000_000_000  # closed for so long, the next time to hold is the first again

EVENTS = {
    "loop_found": "what is captured looks like our own tunnels; such packets are dropped until it ends",
    "loop_tried": "the breaker lets packets that look like our own through again, to see whether the loop is gone",
    "loop_not_ours": "packets that look like our own come although we send none of them on: they are captured again",
}


class Breaker:
    """Of one input and lane. `row`: RING, `alike` and `taken` are read, `drop_alike` is written; `trips`: the live counter; `n_shed`: how
    many of those taken came as marks of what was shed, ever."""

    def __init__(self, row: Any, trips: Any, log: Any, n_shed: Callable[[], int] = lambda: 0) -> None:
        self._row, self._trips, self._log, self._n_shed = row, trips, log, n_shed
        self._since_ns = 0  # of the window
        self._alike = self._taken = 0  # at its begin
        self._shed = n_shed()
        self._is_open = False
        self._windows = 0  # since it has opened
        self._until_ns = 0  # to hold
        self._hold_ns = HOLD_NS
        self._before = 0  # alike packets in the window that opened it
        self._not_ours = 0  # alike packets in a window that were found not to be ours

    def look(self, now_ns: int) -> None:
        """After each step; does something once a window."""
        if now_ns - self._since_ns < WINDOW_NS:
            return
        row = self._row
        alike, taken = int(row["alike"]) - self._alike, int(row["taken"]) - self._taken
        shed = self._n_shed() - self._shed
        self._alike, self._taken, self._shed, self._since_ns = int(row["alike"]), int(row["taken"]), self._shed + shed, now_ns
        self._windows += 1
        if taken < 0:
            return  # the interface has been opened again
        taken -= shed  # a loop is what brings on shedding, and would hide behind it
        if not self._is_open:
            if alike >= max(FEW, 2 * self._not_ours) and 2 * alike >= taken:
                self._open(now_ns, alike, taken)
        elif self._windows > SETTLE and 2 * alike >= self._before:
            self._not_ours = max(alike, self._before)
            self._log.warning("loop_not_ours", packets=alike)
            self._close()
        elif now_ns >= self._until_ns:
            self._log.info("loop_tried", after_s=self._hold_ns / 1e9)
            self._hold_ns = min(2 * self._hold_ns, LONGEST_HOLD_NS)
            self._close()

    def _open(self, now_ns: int, alike: int, taken: int) -> None:
        if now_ns - self._until_ns > _FORGET_NS:
            self._hold_ns = HOLD_NS
        self._row["drop_alike"] = 1
        self._before, self._windows, self._until_ns, self._is_open = alike, 0, now_ns + self._hold_ns, True
        self._trips[0] += 1
        self._log.error("loop_found", alike_packets=alike, captured_packets=taken, hold_s=self._hold_ns / 1e9)

    def _close(self) -> None:
        self._row["drop_alike"] = 0
        self._is_open = False
