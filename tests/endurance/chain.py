"""All stages over one block, one after the other, and what must hold of every block, whatever is in it.

filter, flows, encapsulate and send are the stages themselves, with a policy of many kinds of tests and tools of every tunnel and shape;
only capture is missing, whose readers have tests of their own. What leaves goes to sockets on lo that take nothing, and to files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.config import parse_config
from broker.config.policy import compile_policy
from broker.core.batch import Batch
from broker.core.flow_layout import FlowSizes
from broker.core.flow_model import Flows as FlowOptions
from broker.core.flow_ring import FlowMemory, RecordReader, create_flows, flows_path
from broker.core.layout import MAX_FRAME_BYTES, Geometry
from broker.core.metrics import COUNTERS, WIDTH, index
from broker.core.model import Config
from broker.core.stage import Generation
from stages.encapsulate.stage import Encapsulate
from stages.filter.stage import Filter
from stages.flows.stage import Flows
from stages.send.stage import Send
from tests.stages.delivery import Surroundings
from tests.stages.filter.hostile import MODES, TEXTS

PACKETS = 2000
N_LONG, LONG_BYTES = 8, 70_000
GEOMETRY = Geometry(
    n_blocks=4,
    max_packets=PACKETS,
    max_frames=16_384,
    header_bytes=16_384 * 96,
    data_bytes=MAX_FRAME_BYTES,
    shaped_bytes=1 << 21,
    n_flows=1,
)
FLOW_SIZES = FlowSizes(2048, 256, 1 << 15, PACKETS)

TOOLS_TEXT = """
  bare: {kind: pcap, file: @/bare}
  gre: {tunnel: {kind: gre, remote: 127.0.0.9, source: 127.0.0.1, key: 7, sequence: true, checksum: true}}
  over6: {tunnel: {kind: gre, remote: "::1", source: "::1"}, slice_after: l4, slice_bytes: 9}
  nvgre: {tunnel: {kind: nvgre, remote: 127.0.0.9, source: 127.0.0.1}, strip: [vlan, vntag, mpls, gre, erspan, vxlan, geneve, gtp]}
  greip: {tunnel: {kind: gre-ip, remote: 127.0.0.9, source: 127.0.0.1, checksum: true}, super_frames: segment, segment_bytes: 576}
  one: {tunnel: {kind: erspan1, remote: 127.0.0.9, source: 127.0.0.1}, mask: cards}
  two: {tunnel: {kind: erspan2, remote: 127.0.0.9, source: 127.0.0.1}, strip: vlan, push_vlan: 7, super_frames: segment}
  three: {tunnel: {kind: erspan3, remote: 127.0.0.9, source: 127.0.0.1, subheader: true}, mask: {from: l4, at: 2, bytes: 16}}
  vxlan: {tunnel: {kind: vxlan, remote: 127.0.0.9, source: 127.0.0.1, udp_checksum: true}, mask: payload, oversize: slice, mtu_bytes: 600}
  geneve: {tunnel: {kind: geneve, remote: 127.0.0.9, source: 127.0.0.1, generation: true}, oversize: drop, mtu_bytes: 600}
  greudp: {tunnel: {kind: gre-udp, remote: "::1", source: "::1"}, dedup: {within_ms: 60000, packets: 1024, ignore: [ttl, tos, vlan, mac]}}
  fewer: {kind: pcapng, file: @/fewer, sample: {one_in: 3}, limit: {packets_per_s: 1, burst_ms: 1000}, mask: {from: payload, bytes: 0}}
"""
GROUPS_TEXT = """
groups:
  shared: {members: [one, two], balance: three-tuple, of: inner}
  all: {members: [nvgre, three], mode: replicate}
"""
TO = (
    "bare", "gre", "over6", "nvgre", "greip", "one", "two", "three", "vxlan", "geneve", "greudp", "fewer", "shared", "all",
    "[shared, greip]",
)  # fmt: skip
OF_MAPS = (
    "",
    ", strip: [vxlan, gre]",
    ", mask: payload",
    ", slice_after: l2, slice_bytes: 30",
    ", dedup: {within_ms: 1000, packets: 1024}",
)


def text_of(directory: Path, seed: int) -> str:
    """The rules in as many maps as tools and groups, in other modes and shapes for each seed."""
    lines = [
        "inputs: {i0: {kind: pcap, file: x}, i1: {kind: pcap, file: y}}",
        "tools:",
        TOOLS_TEXT.replace("@", str(directory)),
        GROUPS_TEXT,
    ]
    lines.append("maps:")
    for n, to in enumerate(TO):
        mode, shape = MODES[(n + seed) % 3], OF_MAPS[(n + seed) % len(OF_MAPS)]
        lines.append(f"  - {{name: m{n}, to: {to}, undetermined: {mode}{shape}, rules: [")
        rules = TEXTS[n :: len(TO)]
        lines += [f"      {{{'drop' if i % 3 == 1 else 'pass'}: '{text}'}}," for i, text in enumerate(rules)]
        lines.append("    ]}")
    return "\n".join([*lines, "collector: [gre]"])


def config_of(directory: Path, seed: int, *, files: bool) -> Config:
    """`files`: what goes through tunnels is written to files named after the tools, as a replay does it."""
    config = parse_config(text_of(directory, seed))
    if not files:
        return config
    return replace(config, tools=tuple(replace(tool, file=tool.file or str(directory / tool.name)) for tool in config.tools))


class Chain:
    def __init__(self, config: Config, directory: Path, geometry: Geometry = GEOMETRY) -> None:
        self.config, self.seq = config, 0
        inputs = config.inputs
        self._around = {kind: Surroundings(geometry, inputs=inputs) for kind in ("filter", "flows", "encapsulate", "send")}
        self._image = np.frombuffer(compile_policy(config), np.uint8)
        generation = Generation(1, replace(config, flows=FlowOptions(layer="inner")), self._image, int(self._image.ctypes.data))
        if not flows_path(directory, 0).exists():
            create_flows(directory, 0, FLOW_SIZES)
        self.filter, self.flows, self.encapsulate, self.send = Filter(), Flows(), Encapsulate(), Send()
        for stage in (self.filter, self.flows, self.encapsulate, self.send):
            stage.open(replace(self._around[stage.KIND].context, directory=directory))
            stage.load(generation)
        self._records = RecordReader(FlowMemory(directory, 0, geometry.max_packets))
        self.recorded = self.wanted = self.packets = 0

    def step(self, batch: Batch) -> list[str]:
        """What does not hold of this block; nothing is what is wanted."""
        batch.seq = self.seq
        n = int(batch.block["n_packets"][0])
        done = [stage.step(batch) for stage in (self.filter, self.flows, self.encapsulate, self.send)]
        self.seq += 1
        self.packets += n
        self.wanted += int(np.unpackbits(batch.verdicts["verdict"][:n].copy().view(np.uint8)).sum())
        rows = self._records.read(1 << 24)
        self.recorded += int(rows["packets"].sum())
        self._records.release(len(rows))
        wrong = [f"steps said {done}, not {n}"] if done != [n] * 4 else []
        return wrong + self._open_sums() + lies(batch)

    def end(self) -> list[str]:
        """Once all blocks are through: every packet that was metered is in a record."""
        more = True
        while more:
            more = self.flows.flush()
            rows = self._records.read(1 << 24)
            self.recorded += int(rows["packets"].sum())
            self._records.release(len(rows))
        self.send.close()
        metered = self.count("flows", "metered_packets")
        return [] if self.recorded == metered else [f"{metered} packets metered, {self.recorded} in records"]

    def slots(self, stage: str, name: str) -> NDArray[np.int64]:
        """A counter of each tool, of each map, or the one that there is."""
        at = index(stage, name)
        width = next(WIDTH[c.per] for c in COUNTERS if (c.stage, c.name) == (stage, name))
        return self._around[stage].counters[at : at + width]

    def count(self, stage: str, *names: str) -> int:
        return sum(int(self.slots(stage, name).sum()) for name in names)

    def totals(self, stage: str) -> dict[str, int]:
        """Counters that are not zero, over all slots."""
        totals = {c.name: self.count(stage, c.name) for c in COUNTERS if c.stage == stage and not c.live}
        return {name: total for name, total in totals.items() if total}

    def _open_sums(self) -> list[str]:
        """What the ledger says, of all blocks so far."""
        delivered = self.slots("send", "delivered_frames") + sum(self.slots("send", name) for name in _dropped("send"))
        sums = {
            "judged": (self.count("filter", "judged_packets"), self.packets),
            "verdicts": (self.count("filter", "forwarded_packets", "filtered_packets", *_dropped("filter")), self.packets),
            "wanted": (self.count("filter", "wanted_frames"), self.wanted),
            "metered": (self.count("flows", "metered_packets", *_dropped("flows", "unmetered_")), self.packets),
            "frames": (
                self.count("encapsulate", "merged_frames", "shared_packets", "framed_frames", *_dropped("encapsulate")),
                self.wanted + self.count("encapsulate", "given_frames"),
            ),
            "sent": (delivered.tolist(), self.slots("encapsulate", "framed_frames").tolist()),
            "damaged": (self.count("encapsulate", "dropped_damaged_packet") + self.count("send", "dropped_damaged_frame"), 0),
            "refused": (self.count("send", "dropped_other"), 0),
        }
        return [f"{name}: {found}, expected {expected}" for name, (found, expected) in sums.items() if found != expected]


def _dropped(stage: str, beginning: str = "dropped_") -> list[str]:
    return [c.name for c in COUNTERS if c.stage == stage and c.name.startswith(beginning) and not c.live]


def lies(batch: Batch) -> list[str]:
    """Frames whose header lies outside of the headers, or whose window is neither of their own packet nor shaped."""
    rows = batch.frames[: int(batch.block["n_frames"][0])]
    at, size = (rows[name].astype(np.int64) for name in ("data_at", "data_len"))
    header_end = rows["header_at"].astype(np.int64) + rows["header_len"]
    packets = rows["packet"].astype(np.int64)
    if (packets >= int(batch.block["n_packets"][0])).any():
        return ["a frame is of no packet"]
    own = batch.packets[packets]
    first, last = own["data_at"].astype(np.int64), own["data_at"].astype(np.int64) + own["caplen"]
    of_packet = (first <= at) & (at + size <= last)
    of_shaped = (batch.shaped_from <= at) & (at + size <= batch.window_bytes)
    wrong = (header_end > batch.header_bytes) | ~(of_packet | of_shaped)
    return [f"frame {i}: {rows[i]} of {own[i]}" for i in np.nonzero(wrong)[0][:5]]
