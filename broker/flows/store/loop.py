"""The store process: closed segments of the spool, the oldest first, into the store; removed there once it has acknowledged them.

| state of a segment | becomes | when |
|---|---|---|
| closed | stored | `put` has returned |
| closed | set aside | it is damaged, or of another version |
| closed | closed | the store is down: tried again, ever later, BACK_OFF_S at most; its disk is full: every FULL_S |
| stored | removed | at once; if the process dies before, it is closed still, and `put` once more |
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from broker.core import log
from broker.core.errors import TapmeshError
from broker.core.flow_model import Store
from broker.core.shm import Pipeline
from broker.flows import segments, spool
from broker.flows.pipeline import STORE_ROW, Beat, ExportRows, Following, spool_directory
from broker.flows.segments import Segment, SegmentError
from broker.flows.stopping import Stopping
from broker.flows.store.base import StoreBackend, StoreError, StoreFullError

EVENTS = {
    "store_started": "segments are stored from here on",
    "store_stopped": "the store process leaves; what is left waits in the spool",
    "store_refused": "the store does not take segments; once, until it takes one again",
    "store_resumed": "the store takes segments again",
    "store_untended": "old hours could not be removed, or small files not be merged; tried again",
    "segments_left": "the store was changed while segments waited for the one before; they stay in its spool",
}

LOOK_S = 0.25
BACK_OFF_S = (0.5, 30.0)
"""The first, and the longest."""
FULL_S = 0.5
"""How often room is looked for on a full disk, which costs nothing and is nobody's burden."""


def make_backend(store: Store, node: str) -> StoreBackend:
    """TapmeshError when it cannot be as it is told, or what it needs is not installed."""
    # What a store needs is loaded by who uses it.
    if store.kind == "parquet":
        from broker.flows.store.parquet import ParquetStore

        return ParquetStore(store, node)
    if store.kind == "clickhouse":
        from broker.flows.store.clickhouse import ClickHouseStore

        return ClickHouseStore(store)
    from broker.flows.store.kafka import KafkaStore

    return KafkaStore(store)


class Consumer:
    """Of one spool and its store. `row`: EXPORT, of which the exporter writes dropped_*, and waiting_records while it lives."""

    def __init__(self, directory: Path, backend: StoreBackend, row: Any) -> None:
        self._directory, self._backend, self._row = directory, backend, row
        self._lock = spool.occupy(directory, "store")
        self._log = log.get(spool=str(directory))
        self._back_off_s = 0.0
        self._not_before = 0.0
        self._untended = ""
        self._expired_before = int(row["sequence"])

    def step(self) -> bool:
        """Store the oldest segment, if there is one and the store is not left in peace now. It was stored, or set aside."""
        if time.monotonic() < self._not_before:
            return False
        waiting = segments.closed(self._directory)
        if not waiting:
            self._tend()
            return False
        try:
            self._store(waiting[0])
        except StoreError as error:
            self._refused(str(error), is_full=isinstance(error, StoreFullError))
            self._tend()  # what housekeeping removes may be the room that is missing
            return False
        if self._back_off_s:
            self._log.info("store_resumed", waiting_segments=len(waiting))
            self._back_off_s = 0.0
        self._tell()
        return True

    def drain(self) -> None:
        """All that is there now, if the store takes it."""
        for _ in segments.closed(self._directory):
            if not self.step():
                return

    def close(self) -> int:
        """How many segments are left."""
        self._backend.close()
        left = segments.closed(self._directory)
        if self._directory.is_dir():  # where an exporter has it, that one says what waits
            with contextlib.suppress(TapmeshError, OSError):
                lock = spool.occupy(self._directory, "exporter")
                self._row["waiting_records"] = sum(segment.n_rows for segment in left if segment.kind == "flows")
                spool.release(lock)
        spool.release(self._lock)
        return len(left)

    def _store(self, segment: Segment) -> None:
        try:
            header, rows = segments.load(segment)
        except SegmentError as error:
            segments.set_aside(segment.path, str(error))
            self._row["errors"] += 1
            self._log.error("segment_set_aside", segment=segment.path.name, rows=segment.n_rows, reason=str(error))
            return
        n_bytes = self._backend.put(segment, header, rows)
        segment.path.unlink()
        row = self._row
        row["records"] += len(rows) if header.kind == "flows" else 0
        row["messages"] += 1
        row["bytes"] += n_bytes
        row["connected"], row["since_ns"] = 1, time.time_ns()

    def _tend(self) -> None:
        untended = ""
        try:
            self._backend.tend()
        except StoreError as error:
            untended = str(error)
        if untended and untended != self._untended:
            self._log.error("store_untended", reason=untended)
        self._untended = untended
        self._tell()

    def _tell(self) -> None:
        self._row["sequence"] = self._expired_before + self._backend.expired_records
        self._row["sequence_b"] = self._backend.held_bytes

    def _refused(self, reason: str, *, is_full: bool) -> None:
        self._row["errors"] += 1
        self._row["connected"] = 0
        if not self._back_off_s:
            self._log.error("store_refused", reason=reason)
        first, most = BACK_OFF_S
        self._back_off_s = FULL_S if is_full else min(most, self._back_off_s * 2 or first)
        self._not_before = time.monotonic() + self._back_off_s


def run(pipeline: Pipeline, stopping: Stopping) -> None:
    """Until told to stop; what is closed by then is stored, if the store takes it. TapmeshError when it cannot be as it is told."""
    following, rows, beat = Following(pipeline), ExportRows(pipeline), Beat(pipeline, "store")
    logger = log.get(pipeline=pipeline.name)
    store: Store | None = None
    consumer: Consumer | None = None
    while not stopping.asked:
        beat()
        wanted = following.config.flows.store if following.config.flows else None
        if wanted != store:
            if consumer is not None:
                consumer.drain()
                if left := consumer.close():
                    logger.warning("segments_left", segments=left, spool=str(spool_directory(store)) if store else "")
            consumer = (
                Consumer(spool_directory(wanted), make_backend(wanted, following.config.node), rows.of(STORE_ROW)) if wanted else None
            )
            store = wanted
            logger.info("store_started", kind=store.kind if store else "")
        if consumer is None or not consumer.step():
            stopping.sleep(LOOK_S)
        following.changed()
    left = 0
    if consumer is not None:
        consumer.drain()
        left = consumer.close()
    logger.info("store_stopped", waiting_segments=left)
