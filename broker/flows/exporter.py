"""The exporter: takes records out of the lanes and gives them to every export and to the spool of the store.

    flows-L, records  ->  prepared (anonymised, minimised)  ->  each sink; the spool  ->  released in flows-L

Killed anywhere, each record is in the spool once: what was appended and not released is known there by its number. A collector may get
a record again that was handed to it and not yet released: exports over the network promise no more than that.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from broker.core import log
from broker.core.errors import TapmeshError
from broker.core.flow_model import Export, Flows, Store
from broker.core.flow_ring import FlowMemory, RecordReader
from broker.core.shm import Pipeline
from broker.flows.export.messages import ExportContext, Lost
from broker.flows.meters import Meter, store_meter
from broker.flows.pipeline import STORE_ROW, Beat, ExportRows, Following, spool_directory
from broker.flows.segments import Header, Rows
from broker.flows.spool import Spool
from broker.flows.stopping import Stopping
from broker.supervisor.flow_ledger import flows_ledger
from broker.supervisor.snapshot import Reader, names_of

EVENTS = {
    "exporter_started": "records are taken from here on",
    "exporter_stopped": "all that was there is handed over",
    "records_missing": "numbers of a lane are not there: the flows stage had no room for those records and has counted them",
    "spool_unchanged": "the store was changed to a directory that cannot be used; records go to the spool of the one before",
    "export_refused": "what an export was changed to does not work; it goes on as it was, or not at all if it is new",
}

MOST = 8192
"""Records that are taken out of a lane at once."""
EVERY_S, SOON_S = 0.05, 0.001
"""How long it sleeps; after much has come, for a while, hardly: a stage that ends its flows waits for the room."""
IGNORED = ("cut", "skipped")
"""Why IP packets are in no flow although they were meant to be. The other reasons are no loss."""
SINKS_S = 3.0
"""What exports have, all together, to send what waits when the exporter stops."""


class Sink(Protocol):
    """One export. Nothing here blocks; what becomes of the records it counts in its row of `exports`."""

    name: str

    def take(self, rows: Rows) -> None: ...
    def tick(self, now_ns: int) -> None: ...
    def fds(self) -> Iterable[tuple[int, int]]: ...
    def close(self, within_s: float) -> None: ...


MakeSink = Callable[[Export, Any, ExportContext], Sink]
Prepare = Callable[[Rows], Rows]


def _make_sink(export: Export, row: Any, context: ExportContext) -> Sink:
    # Only who exports needs what it takes (TLS, encoders).
    sink: Sink = importlib.import_module("broker.flows.export.sinks").make_sink(export, row, context)
    return sink


def _make_prepare(flows: Flows) -> Prepare:
    if not flows.anonymise_key_file and not flows.drop:
        return lambda rows: rows
    prepare: Prepare = importlib.import_module("broker.flows.export.prepare").make_prepare(flows)
    return prepare


class _Lane:
    def __init__(self, pipeline: Pipeline, number: int) -> None:
        memory = FlowMemory(pipeline.directory, number, pipeline.lanes[number].geometry.max_packets)
        self.number, self.reader = number, RecordReader(memory)
        self.much = min(MOST, memory.sizes.n_records) // 2  # taken at once: there is no time to sleep
        self.expected = 0 if int(memory.header[0]["taken"]) == 0 else -1  # number of the next record; -1: not known
        self.known_below = 0  # records below it are in the spool

    def missing(self, rows: Rows) -> int:
        """Numbers that `rows` leave out, and how many those before them did since the last call."""
        first, last = int(rows["number"][0]), int(rows["number"][-1])
        n = last + 1 - (self.expected if self.expected >= 0 else first) - len(rows)
        self.expected = last + 1
        return n


class Exporter:
    """Of one pipeline. TapmeshError in words when it cannot work as it is told."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        make_sink: MakeSink = _make_sink,
        make_prepare: Callable[[Flows], Prepare] = _make_prepare,
    ) -> None:
        self._following, self._beat = Following(pipeline), Beat(pipeline, "export")
        self._exports = ExportRows(pipeline)
        self._make_sink, self._make_prepare = make_sink, make_prepare
        config = self._following.config
        self._flows = self._flows_of()
        self._names = names_of(config)
        self._run = int(pipeline.header[0]["created_ns"])
        self._reader = Reader(pipeline)
        self._context = ExportContext(config.node, self._run, dict(self._names.inputs), self._flows.sample, self._flows.drop, self._lost)
        self._log = log.get(pipeline=pipeline.name)
        self._lanes = [_Lane(pipeline, n) for n in range(len(pipeline.lanes))]
        self._prepare = make_prepare(self._flows)
        self._sinks = {e.name: make_sink(e, self._exports.of(e.name), self._context) for e in self._flows.exports}
        self._store_row = self._exports.of(STORE_ROW)
        self._spool = self._open_spool(self._flows.store)
        self._meter = Meter(self._reader, self._names)
        self._metered_ns = time.monotonic_ns()
        self._stored_before, self._dropped_before = self._stored()
        self.missing = 0

    def _flows_of(self) -> Flows:
        if self._following.config.flows is None:
            raise TapmeshError("the configuration has no part `flows`: there is nothing to export")
        return self._following.config.flows

    def run(self, stopping: Stopping) -> None:
        """Until told to stop; what is there then is handed over."""
        self._log.info("exporter_started", exports=sorted(self._sinks), store=self._flows.store.kind if self._flows.store else "")
        awake_until = 0.0
        while not stopping.asked:
            self._beat()
            if self.step():
                awake_until = time.monotonic() + EVERY_S
            stopping.sleep(
                SOON_S if time.monotonic() < awake_until else EVERY_S,
                [interest for sink in self._sinks.values() for interest in sink.fds()],
            )
        self.close()

    def step(self) -> bool:
        """Hand over what waits, up to MOST records a lane. There is more, or will be soon."""
        if self._following.changed():
            self._reload()
        much = [lane for lane in self._lanes if self._pass_on(lane) >= lane.much]
        now_ns = time.time_ns()
        for sink in self._sinks.values():
            sink.tick(now_ns)
        if self._spool is not None:
            if time.monotonic_ns() - self._metered_ns >= self._flows.meter_s * 1_000_000_000:
                self._take_meters(self._spool)
            self._spool.tick(dict(self._context.inputs))
        return bool(much)

    def close(self) -> None:
        """All that is in the lanes now, and then the end of all sinks and of the spool."""
        left = {lane.number: lane.reader.waiting for lane in self._lanes}
        for lane in self._lanes:
            while left[lane.number] > 0 and (n := self._pass_on(lane)):
                left[lane.number] -= n
        end = time.monotonic() + SINKS_S
        for sink in self._sinks.values():
            sink.close(max(0.0, end - time.monotonic()))
        if self._spool is not None:
            self._take_meters(self._spool)
            self._spool.close()
        self._log.info("exporter_stopped", missing_records=self.missing)

    def _pass_on(self, lane: _Lane) -> int:
        rows = lane.reader.read(MOST)
        n = len(rows)
        if not n:
            return 0
        missing = lane.missing(rows)
        if missing > 0:
            self.missing += missing
            self._log.warning("records_missing", lane=lane.number, records=missing, before=lane.expected, records_in_all=self.missing)
        if int(rows["number"][0]) < lane.known_below:  # handed over by an exporter that was killed before it released them
            rows = rows[rows["number"] >= lane.known_below]
        if len(rows):
            rows = self._prepare(rows)
            for sink in self._sinks.values():
                sink.take(rows)
            if self._spool is not None:
                self._spool.append("flows", rows)
        lane.reader.release(n)
        return n

    def _lost(self) -> Lost:
        ledger = flows_ledger(self._reader.take(self._names, rings=False).lanes)
        if ledger is None:
            return Lost()
        ignored = sum(ledger.unmetered_packets[reason] for reason in IGNORED)
        return Lost(ignored, ledger.dropped_records, ledger.dropped_record_packets, ledger.dropped_record_bytes)

    def _open_spool(self, store: Store | None) -> Spool | None:
        if store is None:
            return None
        header = Header("flows", self._context.node, self._run, dict(self._context.inputs))
        spool = Spool(
            spool_directory(store),
            header,
            self._store_row,
            flush_s=store.flush_s,
            max_bytes=store.spool_bytes,
            keeps_room=store.kind == "parquet",  # the other stores have disks of their own
        )
        for lane in self._lanes:
            lane.known_below = spool.next_number(lane.number)
        return spool

    def _take_meters(self, spool: Spool) -> None:
        now_ns = time.monotonic_ns()
        if any(i.kind != "pcap" for i in self._following.config.inputs):  # how fast files are read says nothing of any link
            spool.append("meters", self._meter.take(self._names))
        stored, dropped = self._stored()
        store = self._flows.store
        capacity = store.keep_bytes if store else 0
        held = int(self._store_row["sequence_b"])
        row = store_meter(now_ns - self._metered_ns, stored - self._stored_before, held, dropped - self._dropped_before, capacity)
        spool.append("meters", row)
        self._stored_before, self._dropped_before, self._metered_ns = stored, dropped, now_ns

    def _stored(self) -> tuple[int, int]:
        return int(self._store_row["records"]), int(self._store_row["dropped_packets"])

    def _reload(self) -> None:
        """Nothing is read and not released now."""
        config = self._following.config
        self._names = names_of(config, self._names)
        self._context.inputs.update(self._names.inputs)
        before, self._flows = self._flows, config.flows or self._flows
        self._context.sample, self._context.drop = self._flows.sample, self._flows.drop
        self._prepare = self._make_prepare(self._flows)
        old = {e.name: e for e in before.exports}
        new = {e.name: e for e in self._flows.exports}
        for name in [name for name in self._sinks if name not in new]:
            self._sinks.pop(name).close(SINKS_S)
        for name, export in new.items():
            if old.get(name) != export or name not in self._sinks:
                self._change_sink(export)
        if before.store != self._flows.store:
            self._change_spool(self._flows.store)

    def _change_spool(self, store: Store | None) -> None:
        self._store_row = self._exports.of(STORE_ROW)  # there has been none, perhaps
        self._stored_before, self._dropped_before = self._stored()
        try:
            spool = self._open_spool(store)
        except (TapmeshError, OSError) as error:
            self._log.error("spool_unchanged", reason=str(error))
            return
        if self._spool is not None:
            self._spool.close()
        self._spool = spool

    def _change_sink(self, export: Export) -> None:
        try:
            sink = self._make_sink(export, self._exports.of(export.name), self._context)
        except TapmeshError as error:
            self._log.error("export_refused", export=export.name, reason=str(error))
            return
        if export.name in self._sinks:
            self._sinks[export.name].close(SINKS_S)
        self._sinks[export.name] = sink
