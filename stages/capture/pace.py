"""When the packets of a file are due: at once, as they were recorded (or N times faster), or at so many a second."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from stages.capture.walk import MAX_NS, NS

_UNSET = -1


@dataclass
class Pace:
    """Times are CLOCK_MONOTONIC (`now_ns`) or of the packets (`ts_ns`). A packet is never early."""

    speed: Fraction | None = None  # of the recorded time
    per_s: Fraction | None = None  # packets
    _start_ns: int = _UNSET
    _first_ts_ns: int | None = None
    _given: int = 0

    @classmethod
    def parse(cls, text: str) -> Pace:
        """`max`, `recorded`, `2.5x`, `10000` (packets a second); ValueError in words for anything else."""
        if text == "max":
            return cls()
        if text == "recorded":
            return cls(speed=Fraction(1))
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(x?)", text)
        if match and Fraction(match[1]) > 0:
            return cls(speed=Fraction(match[1])) if match[2] else cls(per_s=Fraction(match[1]))
        raise ValueError(f"pace {text!r}: expected max, recorded, a factor such as 2x, or packets per second")

    def begin(self) -> None:
        """A file begins (or is taken up again): its first packet is due at once, the others by their distance from it."""
        self._first_ts_ns = None

    @property
    def awaits_first(self) -> bool:
        """The next packet is the one that the times of the others are counted from: tell it to `anchor`."""
        return self.speed is not None and self._first_ts_ns is None

    def anchor(self, ts_ns: int, now_ns: int) -> None:
        self._first_ts_ns, self._start_ns = ts_ns, now_ns

    def ts_limit(self, now_ns: int) -> int:
        """The latest time that a packet may have to be due."""
        if self.speed is None:
            return MAX_NS
        if self._first_ts_ns is None:
            return -MAX_NS - 1
        return min(self._first_ts_ns + int((now_ns - self._start_ns) * self.speed), MAX_NS)

    def allowed(self, now_ns: int) -> int:
        """So many more packets are due."""
        if self.per_s is None:
            return MAX_NS
        if self._start_ns == _UNSET:
            self._start_ns = now_ns
        return 1 + int((now_ns - self._start_ns) * self.per_s / NS) - self._given

    def give(self, n_packets: int) -> None:
        self._given += n_packets

    def due_ns(self, ts_next: int) -> int:
        """When the next packet is due."""
        if self.speed is not None and self._first_ts_ns is not None:
            return self._start_ns + -int(-(ts_next - self._first_ts_ns) // self.speed)
        assert self.per_s is not None
        return self._start_ns + -int(-self._given * NS // self.per_s)
