"""The store of files: what is in a segment goes to a file for each hour that it touches. Where they lie says `hours`.

The name of a file is the same for each attempt to store a segment, so one that is done again replaces what it had written before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from broker.core.flow_model import Store
from broker.flows.segments import Header, Rows, Segment
from broker.flows.store import duck
from broker.flows.store.base import StoreError
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

    @property
    def held_bytes(self) -> int:
        return self._retention.held_bytes

    @property
    def expired_records(self) -> int:
        return self._retention.expired_records

    def put(self, segment: Segment, header: Header, rows: Rows) -> int:
        name = f"{header.node}-{segment.name}.parquet"
        of_hour = rows[TIMES[header.kind]] // HOUR_NS
        written = 0
        with self._told():
            table = to_table(header, rows)
            for hour in np.unique(of_hour).tolist():
                place = hour_directory(self.directory / header.kind, hour)
                make_directories(self.directory, place)
                if name not in replaced(place):
                    written += duck.write(self._connection, part(table, of_hour == hour), place / name)
        self._retention.held_bytes += written
        return written

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
