"""What each address sent and got in an hour, kept beside the records of that hour, so that a day need not be read again for who has most.

A rollup is exact for as long as it counts: its name is a digest of the names of the files that it was made of, and what a stored file holds
never changes. When a file comes, or files are merged, it is made anew: by the store, an hour after the other when it has nothing else to
do, or by the next question. It is only made of an hour that no file has come to for a while, and where we may write; without it the records
are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.config.records.conditions import quoted
from broker.flows.answers.groups import MEASURES, by_address
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period

SETTLED_S = 300.0
PREFIX = ".rollup-"
_SELF = "source_low = destination_low AND source_high = destination_high"
_ROLES = ("source", "destination", "itself")
"""As what an address is counted; `itself`: flows of which it is both ends."""
NEEDED = {"source": ("source",), "destination": ("destination",), "address": ("source", "destination", "itself")}


def groups(store: Store, period: Period, by: str, of: Sequence[str]) -> str | None:
    """SELECT version, BY_high, BY_low and the sums `of`, of all records of that time; None: there is no rollup of any of its hours."""
    rollups, records = _found(store, period)
    if not rollups:
        return None
    roles = NEEDED[by]
    listed = ", ".join(quoted(str(path)) for path in rollups)
    sums = ", ".join(f"{_sum(roles, name)} AS {name}" for name in of)
    there = " OR ".join(f"{role}_records > 0" for role in roles)
    parts = [f"SELECT version, high, low, {sums} FROM read_parquet([{listed}], hive_partitioning = false) WHERE {there}"]
    if records is not None:
        measures = ", ".join(f"{_sum(roles, name)} AS {name}" for name in of)
        parts.append(f"SELECT version, high, low, {measures} FROM ({_rolled(records)}) WHERE {there}")
    total = ", ".join(f"sum({name})::BIGINT AS {name}" for name in of)
    return f"SELECT version, high AS {by}_high, low AS {by}_low, {total} FROM ({' UNION ALL '.join(parts)}) GROUP BY version, high, low"


def _sum(roles: Sequence[str], measure: str) -> str:
    return " + ".join(f"{role}_{measure}" for role in roles[:2]) + (f" - itself_{measure}" if len(roles) > 2 else "")


def _found(store: Store, period: Period) -> tuple[list[Path], str | None]:
    """Rollups of the whole hours, made where need be, and the records of all else (None: there is nothing else)."""
    whole, edges = store.files(period)
    rollups, read = [], list[Path]()
    for hour in sorted({path.parent for path in whole}):
        files = [path for path in whole if path.parent == hour]
        rollup = made(store.run, store.io_error, hour, files)
        if rollup is None:
            read += files
        else:
            rollups.append(rollup)
    return rollups, store.records(read, edges, period) if read or edges else None


def path_of(hour: Path, files: Sequence[Path]) -> Path:
    digest = hashlib.sha256("\n".join(sorted(path.name for path in files)).encode()).hexdigest()[:32]
    return hour / f"{PREFIX}{digest}.parquet"


def made(run: Callable[[str], object], io_error: type[Exception], hour: Path, files: Sequence[Path]) -> Path | None:
    """The rollup of these files, all of an hour. `run`: SQL, with DuckDB, which raises `io_error` for a file that has gone."""
    path = path_of(hour, files)
    if path.exists():
        return path
    scratch = hour / f"{PREFIX}{os.getpid()}.part"
    try:
        newest = max(file.stat().st_mtime for file in files)
        if time.time() - newest < SETTLED_S or not os.access(hour, os.W_OK):
            return None
        records = f"(SELECT * FROM read_parquet([{', '.join(quoted(str(file)) for file in files)}], hive_partitioning = false))"
        run(f"COPY ({_rolled(records)}) TO {quoted(str(scratch))} (FORMAT parquet, COMPRESSION snappy)")
        with scratch.open("rb") as file:  # it must not have its name and no content after a power cut
            os.fsync(file.fileno())
        os.utime(scratch, (newest, newest))  # by its youngest file the hour is known to be old
        scratch.rename(path)
    except (OSError, io_error):
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)  # on a full disk it would keep others from finding room
        return None
    for other in hour.glob(f"{PREFIX}*.parquet"):
        if other != path:
            with contextlib.suppress(FileNotFoundError):
                other.unlink()
    return path


def _rolled(records: str) -> str:
    """version, high, low, and of each role its records and the sums of all measures."""
    parts = []
    for role in _ROLES:
        of_role = records if role != "itself" else f"(SELECT * FROM {records} WHERE {_SELF})"
        end = role if role != "itself" else "source"
        sums = ["count(*) AS records", *(f"{sql}::BIGINT AS {name}" for name, sql in MEASURES.items())]
        columns = ", ".join(f"{name if other == role else 0} AS {other}_{name}" for other in _ROLES for name in ("records", *MEASURES))
        parts.append(f"SELECT version, {end}_high AS high, {end}_low AS low, {columns} FROM ({by_address(of_role, (end,), (), sums)})")
    names = [f"{role}_{name}" for role in _ROLES for name in ("records", *MEASURES)]
    sums = [f"sum({name})::BIGINT AS {name}" for name in names]
    return f"SELECT version, high, low, {', '.join(sums)} FROM ({' UNION ALL '.join(parts)}) GROUP BY version, high, low"
