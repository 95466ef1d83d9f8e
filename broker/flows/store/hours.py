"""Which files hold the records of an hour. What lies where, and who may remove it; the readers' side of `compaction`.

| file in ``TABLE/date=YYYY-MM-DD/hour=HH/`` | what |
|---|---|
| ``NODE-RUN-ID.parquet`` | what segment RUN-ID of the spool has of that hour |
| ``NODE-ID.merged.parquet`` | what several files had |
| ``NODE-ID.merged.parquet.replaces`` | their names, and what they had replaced themselves; there before the merged file is |
| ``.*`` | being written |

A merged file counts from the moment that it has its name, and what it replaces does not count from the same moment; it is removed
GRACE_S later, so that who has asked for files before can still read them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker.flows.segments import sync_directory

HOUR_NS = 3_600 * 1_000_000_000
GRACE_S = 600.0
MERGED = ".merged.parquet"


def files(directory: Path, from_ns: int, to_ns: int, table: str = "flows") -> list[Path]:
    """The files to read for the rows of a table whose time (`last_ns`; of meters `at_ns`) lies in from_ns <= t < to_ns. They hold all rows
    of the hours that these touch, each row once, and stay for GRACE_S at least unless the hour expires."""
    found: list[Path] = []
    for begins_ns, hour in hours(directory / table):
        if begins_ns < to_ns and begins_ns + HOUR_NS > from_ns:
            found += current(hour)
    return found


def hours(table: Path) -> Iterator[tuple[int, Path]]:
    """The directories of all hours, the oldest first, with the time at which each begins, ns since 1970. PermissionError: an hour that may
    not be looked at is not one without records."""
    for hour in (hour for date in _below(table, "date=") for hour in _below(date, "hour=")):
        with contextlib.suppress(ValueError):  # not ours
            begins = datetime.strptime(f"{hour.parent.name} {hour.name} +0000", "date=%Y-%m-%d hour=%H %z")
            yield int(begins.timestamp()) * 1_000_000_000, hour


def _below(directory: Path, begins: str) -> list[Path]:
    return [directory / name for name in _names(directory) if name.startswith(begins)]


def _names(directory: Path) -> list[str]:
    """In order; none if it has gone meanwhile. `Path.glob` would find nothing where it may not look either."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def hour_directory(table: Path, hour: int) -> Path:
    """`hour`: since 1970."""
    begins = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hour)
    return table / f"date={begins:%Y-%m-%d}" / f"hour={begins:%H}"


def make_directories(root: Path, place: Path) -> None:
    """`place` below `root`, and what is between; all there after a power cut."""
    missing = []
    while not place.is_dir():
        missing.append(place)
        if place == root:
            break
        place = place.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        sync_directory(directory.parent)


def current(hour: Path) -> list[Path]:
    """The files that count, in the order of their names."""
    for attempt in range(10):
        names = [name for name in _names(hour) if name.endswith(".parquet") and not name.startswith(".")]
        # A list that is made while files come may show a merged file and not the list beside it, so that is not looked for there.
        lists = {name: replaced_by(hour, name) for name in names if name.endswith(MERGED)}
        gone = set().union(*(found for found in lists.values() if found is not None))
        # A list that is not there: its file has gone meanwhile, replaced itself; or somebody has removed the list.
        if all(found is not None or name in gone for name, found in lists.items()) or attempt == 9:
            break
    return [hour / name for name in names if name not in gone]


def replaced(hour: Path) -> set[str]:
    """Names of files, there or not, that merged files of this hour stand for."""
    lists = (replaced_by(hour, path.name) for path in hour.glob(f"*{MERGED}"))
    return set().union(*(found for found in lists if found))


def note_replaced(hour: Path, merged: str, names: set[str]) -> Path:
    """What `merged` will replace once it is there. Durable."""
    path = hour / f"{merged}.replaces"
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("w") as file:
            json.dump(sorted(names), file)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(hour)
    return path


def replaced_by(hour: Path, merged: str) -> set[str] | None:
    """None: the list is not there (any more)."""
    try:
        return set(json.loads((hour / f"{merged}.replaces").read_text()))
    except FileNotFoundError:
        return None
