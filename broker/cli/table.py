"""Tables for people: aligned columns of plain text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    title: str
    right: bool = True  # numbers


def render(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, indent: str = "  ", width: int = 0) -> str:
    """Header, a rule, the rows. The last column is not padded, so that long words in it wrap nothing; with `width` it is cut so that no
    line is longer, but not below the length of its title."""
    widths = [max(len(c.title), *(len(row[i]) for row in rows)) if rows else len(c.title) for i, c in enumerate(columns)]
    if width:
        widths[-1] = max(len(columns[-1].title), min(widths[-1], width - len(indent) - sum(w + 2 for w in widths[:-1])))
        rows = [[*row[:-1], shortened(row[-1], widths[-1])] for row in rows]
    lines = [_line(columns, widths, [c.title for c in columns], indent), indent + "  ".join("-" * w for w in widths)]
    lines += [_line(columns, widths, row, indent) for row in rows]
    return "\n".join(lines)


def _line(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[str], indent: str) -> str:
    padded = (cell.rjust(w) if c.right else cell.ljust(w) for c, w, cell in zip(columns, widths, cells, strict=True))
    return (indent + "  ".join(padded)).rstrip()


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def count(n: int) -> str:
    return f"{n:,}"


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def reasons(dropped: dict[str, int]) -> str:
    """`34: full 30, no_listener 4`, or `0`."""
    some = {reason: n for reason, n in dropped.items() if n}
    if not some:
        return "0"
    return f"{sum(some.values()):,}: " + ", ".join(f"{reason} {n:,}" for reason, n in some.items())


_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(n: int) -> str:
    """Decimal units, three digits: `1.23 MB`."""
    value, unit = float(n), 0
    while value >= 999.5 and unit < len(_BYTE_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{n} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {_BYTE_UNITS[unit]}"
