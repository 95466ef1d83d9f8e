"""Flows: who talks to whom. Reads beside the path; what it writes are the flows of its lane and their records (`flows-L`).

reads   PACKET rows and data; VERDICT rows where only flows of what is forwarded are asked for
writes  nothing in the block
options `Flows` of the generation's configuration (broker/core/flow_model.py); the sizes of its file are those of the first generation
counts  metered packets, bytes and new flows; unmetered packets by reason; live: flows, names, records by why they were written,
        records that the exporter did not take in time, with their packets and bytes

Every captured packet is metered, or unmetered for a reason: not IP, IP header cut, sampled, unwanted, skipped. The packets of a flow's
records add up to what was metered of it.

What a flow is, and when it ends: seen.py, meter.py, tcp.py. Time is that of the packets; with live inputs silence is measured by the clock.
It skips blocks when those that wait for it fill more than half of the ring (`overload: skip`), so that capture never waits long for it.
"""

from __future__ import annotations

import os
import time
from typing import ClassVar

import numpy as np

from broker.core.batch import Batch
from broker.core.errors import PipelineError
from broker.core.flow_layout import SWEEP_MOST
from broker.core.flow_ring import FlowMemory
from broker.core.metrics import N_COUNTERS
from broker.core.stage import Context, Generation
from stages.flows.lifecycle import room_for_records
from stages.flows.meter import CHUNK, skip_block
from stages.flows.recover import recover
from stages.flows.seen import SEEN
from stages.flows.sweep import do_block, do_some, do_tick, publish_records, show
from stages.flows.table import Table
from stages.wire.fragment_table import FragmentTable
from stages.wire.key import KEY

SECOND_NS = 1_000_000_000
LATE_NS = SECOND_NS
"""Packets come so late from the kernel and the ring, at most: silence is measured up to then."""
FLUSH_NS = 5 * SECOND_NS
"""So long a stage that stops waits for an exporter that takes nothing."""
CROWDED = 0.5


class Flows:
    KIND: ClassVar[str] = "flows"

    def open(self, context: Context) -> None:
        """PipelineError: its file is missing or damaged."""
        self._context = context
        self._live = all(source.kind != "pcap" for source in context.lane.inputs)
        seed = os.urandom(8) if self._live else bytes(8)  # the same files, the same records
        memory = FlowMemory(context.directory, context.lane.number, context.geometry.max_packets)
        self.table = Table(memory, seed=(int.from_bytes(seed, "little") >> 1 | 1, 0x2D358DCCAA6C78A5 ^ int.from_bytes(seed, "big") >> 2))
        self._header = memory.header[0]
        self._fragments = FragmentTable(int.from_bytes(seed, "little") >> 1)
        self._ignored = np.zeros(N_COUNTERS, np.int64)
        self._key, self._seen = np.zeros(1, KEY), np.zeros(CHUNK, SEEN)
        row = self.table.row
        row["fragments_at"], row["ignored_at"] = self._fragments.at, self._ignored.ctypes.data
        row["key_at"], row["seen_at"], row["counters_at"] = self._key.ctypes.data, self._seen.ctypes.data, context.counters_at
        row["live_at"] = context.live_at
        self._ticked_ns = self._flushing_ns = self._flush_taken = 0
        self._take_over()

    def _take_over(self) -> None:
        recover(self.table, self._context.cursor)
        show(self.table.at)

    def load(self, generation: Generation) -> None:
        flows = generation.config.flows
        if flows is None:
            raise PipelineError(f"generation {generation.number} meters no flows, and this pipeline has a flows stage")
        row, sample = self.table.row, flows.sample
        row["idle_ns"], row["active_ns"] = int(flows.idle_s * SECOND_NS), int(flows.active_s * SECOND_NS)
        row["one_in"] = sample.one_in if sample else 1
        row["by_packet"] = sample is not None and sample.by == "packet"
        row["inner"], row["forwarded"] = flows.layer == "inner", flows.of == "forwarded"
        # A flow is sampled by KEY.flow, and what is inside of a tunnel is seen only when one looks for it.
        row["closer"] = row["inner"] | (sample is not None and sample.by == "flow")
        row["use_names"] = flows.names > 0 and int(row["n_names"][0]) > 0
        self._may_skip = flows.overload == "skip" or (flows.overload == "" and self._context.lane.is_live)

    def step(self, batch: Batch) -> int:
        if self._may_skip and self._context.ring_fill() > CROWDED:
            publish_records(self.table.at)  # the block before is committed
            return skip_block(self._context.counters_at, batch.block_at, batch.max_packets)
        return do_block(
            self.table.at,
            batch.seq,
            time.time_ns() - LATE_NS if self._live else 0,
            batch.block_at,
            batch.max_packets,
            batch.packets_at,
            batch.verdicts_at,
            batch.data_at,
            batch.data_bytes,
        )

    def tick(self) -> None:
        """Nothing has come for a while."""
        publish_records(self.table.at)
        now = time.monotonic_ns()
        if self._live and now - self._ticked_ns >= SECOND_NS // 10:
            self._ticked_ns = now
            do_tick(self.table.at, time.time_ns() - LATE_NS)

    def flush(self) -> bool:
        """End some of the flows that are left, at the end. True: there are more."""
        publish_records(self.table.at)
        now, taken = time.monotonic_ns(), int(self._header["taken"])
        if not self._flushing_ns or taken != self._flush_taken:
            self._flushing_ns, self._flush_taken = now, taken
        room = room_for_records(self.table.at)
        if room == 0 and now - self._flushing_ns > FLUSH_NS:
            room = SWEEP_MOST  # nobody takes them: they are counted as dropped
        return do_some(self.table.at, min(room, SWEEP_MOST)) > 0

    def close(self) -> None:
        pass
