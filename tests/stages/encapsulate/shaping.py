"""Encapsulate by a configuration as it is written, over a block on the heap, and what came of each packet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from broker.config import parse_config
from broker.core.batch import Batch
from broker.core.layout import TOOLS, Geometry
from broker.core.metrics import COUNTERS
from broker.core.model import Config
from broker.core.stage import Generation
from stages.encapsulate.stage import Encapsulate
from tests.stages import delivery
from tests.stages.delivery import SMALL, Surroundings, allow_batch, allow_encapsulate

ROOM = replace(SMALL, max_frames=4096, header_bytes=4096 * 64, shaped_bytes=1 << 20)
TWO = """
inputs: {span: {kind: pcap, file: x}}
tools:
  a: {tunnel: {kind: gre, remote: 192.0.2.1}%s}
  b: {tunnel: {kind: gre, remote: 192.0.2.2}%s}
%s
collector: [a, b]
"""
OUTER = 24  # IPv4 and GRE


class Shaping:
    """A worker with a configuration; blocks go through it one after the other."""

    def __init__(self, text: str, geometry: Geometry = ROOM) -> None:
        self.surroundings = Surroundings(geometry)
        self.stage = Encapsulate()
        self.stage.open(self.surroundings.context)
        self.seq = 0
        self.load(text)

    def load(self, text: str, number: int = 1) -> None:
        self.config: Config = parse_config(text)
        self.stage.load(Generation(number, self.config, delivery.np.zeros(1, delivery.np.uint8), 0))
        allow_encapsulate(self.stage, self.surroundings)

    def bit(self, to: str, of_map: str = "") -> int:
        return 1 << next(d.slot for d in self.config.deliveries if (d.to, d.map) == (to, of_map))

    def slot(self, tool: str) -> int:
        return next(t.slot for t in self.config.tools if t.name == tool)

    def block(self, packets: Sequence[bytes], verdicts: Sequence[int] | int, **more: Sequence[int]) -> Batch:
        batch = delivery.new_batch(self.surroundings.geometry)
        delivery.fill(batch, packets, verdicts, **more)  # type: ignore[arg-type]
        allow_batch(batch)
        batch.seq = self.seq
        self.seq += 1
        self.stage.step(batch)
        return batch

    def send(self, packets: Sequence[bytes], verdicts: Sequence[int] | int, **more: Sequence[int]) -> dict[str, list[tuple[int, bytes]]]:
        """(packet, what is inside of the outer header) of each frame, by tool."""
        batch = self.block(packets, verdicts, **more)
        names = {t.slot: t.name for t in self.config.tools}
        found: dict[str, list[tuple[int, bytes]]] = {name: [] for name in names.values()}
        for packet, tool, header, window in delivery.frames(batch):
            outer = 0 if self.config.tools[tool].tunnel is None else OUTER
            found[names[tool]].append((packet, header[outer:] + window))
        return found

    def count(self, name: str, tool: str) -> int:
        return self.surroundings.count("encapsulate", name, self.slot(tool))

    def owed(self, wanted: int) -> int:
        """Wishes less all that became of them: 0 when each is accounted for. `wanted`: set bits of all verdicts so far."""
        drops = [c.name for c in COUNTERS if c.stage == "encapsulate" and c.name.startswith("dropped_")]
        gone = ("merged_frames", "shared_packets", "framed_frames", *drops)
        return wanted + self._total("given_frames") - sum(map(self._total, gone))

    def _total(self, name: str) -> int:
        return sum(self.surroundings.count("encapsulate", name, slot) for slot in range(TOOLS))
