"""From when to when: what operators write for times and lengths of time. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from broker.core.errors import TapmeshError

SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
_UNITS = {"s": SECOND_NS, "m": 60 * SECOND_NS, "h": HOUR_NS, "d": DAY_NS, "w": 7 * DAY_NS}
_LENGTH = re.compile(r"([0-9]{1,9})([smhdw])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Period:
    """[from, to), ns since 1970."""

    from_ns: int
    to_ns: int

    def __str__(self) -> str:
        return f"{iso(self.from_ns)} to {iso(self.to_ns)}"


def length_ns(text: str, option: str) -> int:
    """`90s`, `15m`, `1h`, `7d`, `2w`."""
    match = _LENGTH.fullmatch(text)
    if match is None or not int(match[1]):
        raise TapmeshError(f"{option}: '{text}' is not a length of time, expected a number and one of s, m, h, d, w: 15m, 7d")
    return int(match[1]) * _UNITS[match[2]]


def time_ns(text: str, option: str, now_ns: int) -> int:
    """`now`, `today`, `yesterday` (their first moment, UTC), or an ISO 8601 time, UTC unless it says otherwise."""
    if text == "now":
        return now_ns
    if text in ("today", "yesterday"):
        return now_ns // DAY_NS * DAY_NS - (DAY_NS if text == "yesterday" else 0)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        expected = "expected now, today, yesterday, 2026-05-01 or 2026-05-01T13:30"
        raise TapmeshError(f"{option}: '{text}' is not a time, {expected}") from None
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return since // timedelta(microseconds=1) * 1000


def period(last: str | None, from_: str | None, to: str | None, now_ns: int, default: str) -> Period:
    """TapmeshError in words: not a time, or an end before its beginning."""
    to_ns = time_ns(to, "--to", now_ns) if to else now_ns
    if last and from_:
        raise TapmeshError("--last and --from both say where to begin: give one of them")
    from_ns = time_ns(from_, "--from", now_ns) if from_ else to_ns - length_ns(last or default, "--last")
    if from_ns >= to_ns:
        raise TapmeshError(f"the time asked for ends before it begins: {iso(from_ns)} to {iso(to_ns)}")
    return Period(max(0, from_ns), to_ns)


def iso(ns: int, digits: int = 0) -> str:
    """UTC, ISO 8601."""
    time = _EPOCH + timedelta(microseconds=ns // 1000)
    return time.isoformat(sep="T", timespec=("milliseconds" if digits else "seconds")).replace("+00:00", "Z")
