"""The store of files: what is in a segment goes to a file for each hour that it touches. Where they lie says `hours`.

The name of a file is the same for each attempt to store a segment, so one that is done again replaces what it had written before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from broker.core.flow_model import Store
from broker.flows.segments import Header, Rows, Segment
from broker.flows.store import duck
from broker.flows.store.base import StoreError, StoreFullError
from broker.flows.store.compaction import Compaction
from broker.flows.store.hours import HOUR_NS, files, hour_directory, make_directories, replaced
from broker.flows.store.retention import Retention
from broker.flows.table import TIMES, part, to_table

__all__ = ("ParquetStore", "files")

TEND_S = 30.0


class ParquetStore:
    """See `base.StoreBackend`."""

    def __init__(self, store: Store, node: str, *, tend_s: float = TEND_S) -> None:
        self.directory, self._tend_s = Path(store.directory), tend_s
        self._connection = duck.connect()
        with self._told():
            self._compaction = Compaction(self.directory, self._connection, node)
            self._retention = Retention(self.directory, store.keep_days, store.keep_bytes, self._connection)
        self._tended = float("-inf")
        self._too_little = -1  # bytes that were free when a segment found no room; -1: none has since one was stored

    @property
    def held_bytes(self) -> int:
        return self._retention.held_bytes

    @property
    def expired_records(self) -> int:
        return self._retention.expired_records

    def put(self, segment: Segment, header: Header, rows: Rows) -> int:
        with self._told():
            free = self._free()
            if free <= self._too_little:
                raise self._full()
            try:
                written = self._write(segment, header, rows)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._retention.tend()  # hours that are to go anyhow make room
                self._too_little = min(free, self._free())  # the spool, or anybody, takes and frees meanwhile
                raise self._full() from None
        self._too_little = -1
        self._retention.held_bytes += written
        return written

    def _write(self, segment: Segment, header: Header, rows: Rows) -> int:
        name = f"{header.node}-{segment.name}.parquet"
        of_hour = rows[TIMES[header.kind]] // HOUR_NS
        written = 0
        table = to_table(header, rows)
        for hour in np.unique(of_hour).tolist():
            place = hour_directory(self.directory / header.kind, hour)
            make_directories(self.directory, place)
            if name not in replaced(place):
                written += duck.write(self._connection, part(table, of_hour == hour), place / name)
        return written

    def _free(self) -> int:
        self.directory.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(self.directory)
        return disk.f_bavail * disk.f_frsize

    def _full(self) -> StoreFullError:
        return StoreFullError(f"{self.directory}: {os.strerror(errno.ENOSPC)}")

    def tend(self) -> None:
        if time.monotonic() - self._tended < self._tend_s:
            return
        self._tended = time.monotonic()
        with self._told():
            self._retention.tend()
            self._compaction.tend()

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        import duckdb

        try:
            yield
        except OSError as error:
            raise StoreError(f"{error.filename or self.directory}: {error.strerror}") from None
        except duckdb.Error as error:
            raise StoreError(f"{self.directory}: {error}") from None
