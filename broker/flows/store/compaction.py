"""Many small files of an hour -> one, beside readers, whenever the process dies. What readers do about it says `hours`.

| step | died after it |
|---|---|
| 1 the list of what will be replaced | there is no such merged file: the list means nothing and is removed |
| 2 the merged file, under another name | as above |
| 3 it gets its name | it counts, and what it replaces does not |
| 4 GRACE_S later: what is replaced is removed | goes on when it is looked again |

The list stays as long as the merged file. A segment that is stored once more after its file was merged is known by it, and is not
written a second time.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from broker.core import log
from broker.flows.answers import rollup
from broker.flows.store import duck, hours

EVENTS = {
    "hour_merged": "small files of an hour have become one",
    "hour_not_merged": "one of its files cannot be read; all stay as they are",
    "hour_not_rolled_up": "there is not enough memory for all its addresses; a question that needs that does it",
}

SETTLED_S = 300.0
"""An hour that no file has come for so long is over, as far as that can be known."""
MOST_BYTES = 256 * 1024 * 1024
"""Of a merged file, about. One of half that is left as it is."""


class Compaction:
    def __init__(self, directory: Path, connection: Any, node: str) -> None:
        self._directory, self._connection, self._node = directory, connection, node
        self._log = log.get()
        self._left_alone: set[Path] = set()

    def tend(self) -> None:
        """Merge the files of one hour or roll it up, if there is one to be; remove what was replaced long ago. OSError, duckdb.Error."""
        now = time.time()
        merged = False
        for table in ("flows", "meters"):
            for _, hour in hours.hours(self._directory / table):
                _clear(hour, now)
                if not merged:
                    merged = self._merge(hour, now) or (table == "flows" and self._roll_up(hour))

    def _merge(self, hour: Path, now: float) -> bool:
        if hour in self._left_alone:
            return False
        found = hours.current(hour)
        sizes = {path: path.stat() for path in found}
        if any(now - stat.st_mtime < SETTLED_S for stat in sizes.values()):
            return False
        chosen: list[Path] = []
        n_bytes = 0
        for path, stat in sizes.items():
            if stat.st_size < MOST_BYTES // 2 and n_bytes + stat.st_size <= MOST_BYTES:
                chosen.append(path)
                n_bytes += stat.st_size
        if len(chosen) < 2:
            return False
        name = f"{self._node}-{time.time_ns()}{hours.MERGED}"
        names = {path.name for path in chosen}
        import duckdb

        hours.note_replaced(hour, name, names | _stood_for(hour, names))
        all_of_them = f"SELECT * FROM read_parquet([{duck.quoted(*chosen)}], hive_partitioning = false)"  # noqa: S608 - names of ours
        try:
            duck.copy(self._connection, all_of_them, hour / name)
        except duckdb.Error as error:  # one hour that cannot be read must not keep all others from being merged
            self._left_alone.add(hour)
            self._log.error("hour_not_merged", hour=str(hour), reason=str(error))
            return False
        self._log.info("hour_merged", hour=str(hour), files=len(chosen), bytes_before=n_bytes, bytes=(hour / name).stat().st_size)
        return True

    def _roll_up(self, hour: Path) -> bool:
        """What each address had in it, so that no question has to wait for that."""
        found = hours.current(hour)
        if not found or hour in self._left_alone or rollup.path_of(hour, found).exists():
            return False
        if sum(path.stat().st_size for path in found) > MOST_BYTES:  # it would hold up what comes; who asks can wait
            return False
        import duckdb

        try:
            return rollup.made(self._connection.execute, duckdb.IOException, hour, found) is not None
        except duckdb.Error as error:  # more addresses than we may have memory for: a question has more
            self._left_alone.add(hour)
            self._log.warning("hour_not_rolled_up", hour=str(hour), reason=str(error))
            return False


def _stood_for(hour: Path, names: set[str]) -> set[str]:
    return set().union(*(hours.replaced_by(hour, name) or () for name in names if name.endswith(hours.MERGED)))


def _clear(hour: Path, now: float) -> None:
    for note in hour.glob(f"*{hours.MERGED}.replaces"):
        merged = note.with_suffix("")
        if not merged.exists():  # died before step 3
            note.unlink(missing_ok=True)  # or another has replaced it just now
        elif now - merged.stat().st_mtime >= hours.GRACE_S:
            for name in hours.replaced_by(hour, merged.name) or ():
                (hour / name).unlink(missing_ok=True)
                (hour / f"{name}.replaces").unlink(missing_ok=True)
    for scratch in hour.glob(".*.tmp"):
        scratch.unlink()
    for scratch in hour.glob(f"{rollup.PREFIX}*.part"):
        with contextlib.suppress(FileNotFoundError):  # who asks may be done with it, or have died
            if now - scratch.stat().st_mtime >= hours.GRACE_S:
                scratch.unlink()
