"""A pipeline whose flows stage is the test: it puts records into `flows-L` as the stage would."""

from __future__ import annotations

from typing import Any

import numpy as np

from broker.core import flow_layout as layout
from broker.core.flow_layout import FLOW, FlowSizes
from broker.core.flow_model import Export, Flows, Store
from broker.core.flow_ring import FlowMemory, create_exports, create_flows, name_exports, open_exports
from broker.core.generations import write_generation
from broker.core.layout import Geometry
from broker.core.model import Config, Input, Tool
from broker.core.shm import Pipeline, create_pipeline
from tests.waiting import until

GEOMETRY = Geometry(n_blocks=4, max_packets=16, max_frames=32, header_bytes=2048, data_bytes=4096)
HOUR_NS = 3_600 * 10**9
NOON_NS = 1_760_000_400 * 10**9 // HOUR_NS * HOUR_NS  # an hour of October 2025


def config(store: Store | None, *, exports: tuple[Export, ...] = (), node: str = "esx07", meter_s: int = 3600, **flows: Any) -> Config:
    return Config(
        node,
        (Input("span0", "pcap", 0, files=("a.pcap",)), Input("span1", "pcap", 3, files=("b.pcap",))),
        (Tool("ids", 0, file="out.pcap"),),
        (),
        flows=Flows(store=store, exports=exports, meter_s=meter_s, **flows),
    )


def put_in_force(pipeline: Pipeline, configuration: Config, number: int = 1) -> None:
    write_generation(pipeline.directory, number, configuration, bytes(8))
    pipeline.header[0]["generation"] = number


def make_pipeline(name: str, configuration: Config, *, lanes: int = 1, n_records: int = 4096) -> Pipeline:
    pipeline = create_pipeline(name, [GEOMETRY] * lanes)
    for lane in range(lanes):
        create_flows(pipeline.directory, lane, FlowSizes(64, 16, n_records, GEOMETRY.max_packets))
    assert configuration.flows is not None
    create_exports(pipeline.directory)
    name_exports(pipeline.directory, [*(e.name for e in configuration.flows.exports), "store"])
    put_in_force(pipeline, configuration)
    return pipeline


def random_rows(n: int, *, seed: int = 1, lane: int = 0, first: int = 0, at_ns: int = NOON_NS, for_ns: int = HOUR_NS // 2) -> Any:
    """FLOW[n], numbered; all bits of all columns are used, text and the smallest and largest of each among them."""
    rng = np.random.default_rng(seed)
    rows = np.frombuffer(rng.bytes(n * FLOW.itemsize), FLOW).copy()
    for field in ("bytes", "packets"):
        rows[field] = rng.integers(0, 1 << 40, (n, 2))
    names = [b"", b"", b"a", b"www.example.org", b"x" * layout.NAME_BYTES, *(f"host-{i}.example.net".encode() for i in range(40))]
    rows["name"] = np.array(names)[rng.integers(0, len(names), n)]
    rows["name_len"] = np.strings.str_len(rows["name"])
    rows["named"], rows["tunnel"] = rng.integers(0, 3, n), rng.integers(0, 8, n)
    rows["input"] = np.array([0, 3])[rng.integers(0, 2, n)]
    rows["version"], rows["end"] = rng.choice([4, 6], n), rng.integers(1, 6, n)
    rows["last_ns"] = np.sort(rng.integers(at_ns, at_ns + for_ns, n))
    rows["first_ns"] = rows["last_ns"] - rng.integers(0, 60 * 10**9, n)
    rows["lane"], rows["number"] = lane, np.arange(first, first + n)
    if n > 1:
        for field in ("source_port", "tunnel_id", "rtt_us", "retransmitted", "one_in", "tos"):
            rows[field][0], rows[field][1] = 0, np.iinfo(rows[field].dtype).max
    return rows


class Feeder:
    """Of one lane."""

    def __init__(self, pipeline: Pipeline, lane: int = 0) -> None:
        self.memory = FlowMemory(pipeline.directory, lane, GEOMETRY.max_packets)
        self.head = self.memory.header[0]

    @property
    def room(self) -> int:
        return self.memory.sizes.n_records - (int(self.head["published"]) - int(self.head["taken"]))

    def put(self, rows: Any) -> None:
        """As soon as there is room; each record lies where its turn is."""
        while len(rows):
            until(lambda: self.room, "room for records")
            now, rows = rows[: self.room], rows[self.room :]
            at = int(self.head["published"])
            self.memory.records[(at + np.arange(len(now))) % self.memory.sizes.n_records] = now
            self.head["published"] = at + len(now)


def exports_row(pipeline: Pipeline, name: str = "store") -> Any:
    rows = open_exports(pipeline.directory)
    return rows[list(rows["name"]).index(name.encode())]
