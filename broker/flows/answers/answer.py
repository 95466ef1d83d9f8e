"""The one shape of every answer: columns that say what they hold, rows, and what has to be said with them. No SQL, no text for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["text", "count", "number", "bytes", "rate", "share", "time", "duration", "micros"]
"""`number`: of a port and the like, nothing to add up. `rate`: bits/s.
`share`: of 1. `time`: ns since 1970. `duration`: ns. `micros`: us. Of all but text None is not known."""

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Column:
    key: str  # in JSON and CSV, with its unit
    title: str
    kind: Kind = "count"


@dataclass(frozen=True, slots=True)
class Answer:
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)  # single figures: JSON, the head of a CSV
    picture: Callable[[Answer, Path], None] | None = None  # None: bars
    drawn: Any = None  # what the picture shows and the rows do not have

    def dicts(self) -> list[dict[str, Cell]]:
        return [dict(zip((c.key for c in self.columns), row, strict=True)) for row in self.rows]


def text(key: str, title: str = "") -> Column:
    return Column(key, title or key, "text")
