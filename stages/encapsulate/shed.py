"""Which flows are shed while the ring of a live input stays full: a level that rises with each block that finds it full, and falls slowly.

At level 0 nothing is shed, at 1 all of priority 0, at 1.5 half of the flows of priority 1 besides, and so on; MAX_PRIORITY never is.
Where packets come from files nothing is lost by waiting, and nothing is shed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.core.model import MAX_PRIORITY

FULL, EASY = 0.75, 0.5  # of the ring
UP, DOWN = 1 / 16, 1 / 256  # of the level, a block
_ALL = 1 << 32


class Shedding:
    """`shares`, int64[MAX_PRIORITY + 1]: of each priority, how many of 2^32 flows."""

    def __init__(self) -> None:
        self.shares: NDArray[np.int64] = np.zeros(MAX_PRIORITY + 1, np.int64)
        self.level = 0.0

    def look(self, fill: float) -> None:
        """`fill`: of the ring, 0..1."""
        before = self.level
        if fill >= FULL:
            self.level = min(self.level + UP, float(MAX_PRIORITY))
        elif fill < EASY and self.level:
            self.level = max(self.level - DOWN, 0.0)
        if self.level != before:
            for priority in range(MAX_PRIORITY):
                self.shares[priority] = int(_ALL * min(max(self.level - priority, 0.0), 1.0))
