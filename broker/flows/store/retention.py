"""Hours that are too old, or for which there is no room, go: whole, the oldest first, told and counted."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from broker.core import log
from broker.flows.store import duck, hours

EVENTS = {"hour_expired": "the records of an hour were removed, because of their age or for want of room"}

DAY_S = 86_400.0


class Retention:
    def __init__(self, directory: Path, keep_days: int, keep_bytes: int, connection: Any) -> None:
        self._directory, self._keep_days, self._keep_bytes, self._connection = directory, keep_days, keep_bytes, connection
        self._log = log.get()
        self.held_bytes = sum(_weigh(hour)[0] for _, hour in self._hours())
        self.expired_records = 0

    def _hours(self) -> list[tuple[int, Path]]:
        return sorted(found for table in ("flows", "meters") for found in hours.hours(self._directory / table))

    def tend(self) -> None:
        """OSError, duckdb.Error."""
        now = time.time()
        for table in ("flows", "meters"):
            for half_gone in (self._directory / table).glob("date=*/.hour=*"):  # died between the two steps of `_expire`
                shutil.rmtree(half_gone)
        weighed = [(begins_ns, hour, *_weigh(hour)) for begins_ns, hour in self._hours()]
        self.held_bytes = sum(n_bytes for _, _, n_bytes, _ in weighed)
        newest_ns = max((begins_ns for begins_ns, *_ in weighed), default=0)
        for begins_ns, hour, n_bytes, written in weighed:
            if not written:  # a segment that found no room has left it
                with contextlib.suppress(OSError):  # or one has come just now
                    hour.rmdir()
                continue
            # What was captured long ago and is played today is kept as long as what is captured today.
            age_s = now - max((begins_ns + hours.HOUR_NS) / 1e9, written)
            if self._keep_days and age_s > self._keep_days * DAY_S:
                self._expire(hour, n_bytes, f"older than {self._keep_days} days")
            elif self._keep_bytes and self.held_bytes > self._keep_bytes and begins_ns != newest_ns:
                self._expire(hour, n_bytes, f"more than {self._keep_bytes:,} bytes")

    def _expire(self, hour: Path, n_bytes: int, reason: str) -> None:
        table, found = hour.parent.parent.name, hours.current(hour)
        n_rows = 0
        if found:
            query = f"SELECT sum(num_rows) FROM parquet_file_metadata([{duck.quoted(*found)}])"  # noqa: S608 - names of ours
            # All of the result: while there is more of it to fetch the connection does nothing else.
            ((n_rows,),) = self._connection.execute(query).fetchall()
        # Under another name first: whoever asks for files meanwhile gets all of the hour or nothing.
        gone = hour.rename(hour.with_name(f".{hour.name}-{time.time_ns()}"))
        shutil.rmtree(gone)
        if not any(hour.parent.iterdir()):
            hour.parent.rmdir()
        self.held_bytes -= n_bytes
        self.expired_records += int(n_rows) if table == "flows" else 0
        self._log.info("hour_expired", table=table, hour=f"{hour.parent.name}/{hour.name}", rows=int(n_rows), bytes=n_bytes, reason=reason)


def _weigh(hour: Path) -> tuple[int, float]:
    """Bytes of all files, and when the youngest was written."""
    stats = []
    for path in hour.iterdir():
        with contextlib.suppress(FileNotFoundError):  # who asks keeps files of their own here, and may remove one right now
            stats.append(path.stat())
    return sum(stat.st_size for stat in stats), max((stat.st_mtime for stat in stats), default=0.0)
