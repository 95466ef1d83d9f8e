"""An answer as a table, as JSON, as CSV, as Parquet, as a picture."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from broker.cli import table
from broker.core.errors import TapmeshError
from broker.flows.answers.times import iso

if TYPE_CHECKING:
    from broker.flows.answers.answer import Answer, Cell, Kind
    from broker.flows.answers.store import Store

PICTURES = (".png", ".svg")


def write(answer: Answer, arguments: argparse.Namespace, store: Store) -> None:
    if arguments.csv:
        write_csv(answer, arguments.csv)
    if getattr(arguments, "parquet", None):
        from broker.flows.answers.parquet import write_parquet

        write_parquet(answer, arguments.parquet, store)
    if getattr(arguments, "plot", None):
        draw(answer, arguments.plot)
    if arguments.json:
        print(json.dumps(as_json(answer), indent=2))
    elif arguments.csv != "-":
        print(as_table(answer))


def as_json(answer: Answer) -> dict[str, object]:
    return {"title": answer.title, **answer.facts, "rows": answer.dicts(), "notes": list(answer.notes)}


def as_table(answer: Answer) -> str:
    columns = [table.Column(column.title, right=column.kind != "text") for column in answer.columns]
    rows = [[shown(cell, column.kind) for cell, column in zip(row, answer.columns, strict=True)] for row in answer.rows]
    body = table.render(columns, rows) if rows else "  nothing"
    return "\n".join([answer.title, "", body, *(["", *(f"  {note}" for note in answer.notes)] if answer.notes else [])])


def shown(cell: Cell, kind: Kind) -> str:
    """For people."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return "".join(c if c.isprintable() else "?" for c in cell)
    match kind:
        case "number":
            return str(cell)
        case "bytes":
            return table.size(round(cell))
        case "rate":
            return rate(cell)
        case "share":
            return f"{100 * cell:.1f} %"
        case "time":
            return iso(int(cell))
        case "duration":
            return duration(cell / 1e9)
        case "micros":
            return duration(cell / 1e6)
        case _:
            return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.2f}"


def rate(bits_per_s: float) -> str:
    value, units = float(bits_per_s), ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]
    at = 0
    while value >= 999.5 and at < len(units) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.3g} {units[at]}"


def duration(seconds: float) -> str:
    """Three digits: 1.25 ms, 43.0 s, 3.5 h."""
    for unit, scale, below in (("us", 1e-6, 1e-3), ("ms", 1e-3, 1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 48 * 3600)):
        if seconds < below:
            return f"{seconds / scale:.3g} {unit}" if seconds else "0 s"
    return f"{seconds / 86400:.3g} d"


def write_csv(answer: Answer, path: str) -> None:
    """Facts and notes first, as lines that begin with ``#``; then a header of keys, then the rows. Times are ISO 8601, UTC."""
    with _text(path) as out:
        for name, value in {"title": answer.title, **answer.facts}.items():
            out.write(f"# {name}: {value}\n")
        for note in answer.notes:
            out.write(f"# note: {note}\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.key.removesuffix("_ns") if column.kind == "time" else column.key for column in answer.columns])
        for row in answer.rows:
            writer.writerow([_csv(cell, column.kind) for cell, column in zip(row, answer.columns, strict=True)])


def _csv(cell: Cell, kind: Kind) -> Cell:
    """Names come from the traffic: what a spreadsheet would take for a formula is kept from it."""
    if kind == "time" and cell is not None:
        return iso(int(cell), 3)
    if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + cell
    return cell


@contextmanager
def _text(path: str) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdout
        return
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise TapmeshError(f"{path}: {error.strerror}") from None


def draw(answer: Answer, path: Path) -> None:
    if path.suffix.lower() not in PICTURES:
        raise TapmeshError(f"--plot: '{path}': expected a name that ends in {' or '.join(PICTURES)}")
    from broker.flows.answers.plots import draw as drawn

    try:
        drawn(answer, path)
    except OSError as error:
        raise TapmeshError(f"{path}: {error.strerror or error}") from None
