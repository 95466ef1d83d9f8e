"""What a pipeline carries, from what its parts cost. Pure.

```
one stage's packet takes   c = cpu * slowdown + h / packets of a block    h: one hand-over, which every worker of send pays for each block
limits, packets/s:         stage: lanes * workers / c
                           cores: cores / sum of all c
                           memory: bytes per second / sum of all bytes per packet
```
The least of them is what is predicted, and its name is the limit. It is an upper bound by its nature: it has no queues in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CAPTURE_WORKERS = 1  # a lane has one
VISITS_ALL = ("send",)


@dataclass(frozen=True)
class Cost:
    """Of one packet in one stage: CPU time, and bytes that it moves between the caches and memory. The kernel's part is a stage as any."""

    kind: str
    cpu_ns: float
    memory_bytes: float
    hands_over: bool = True


@dataclass(frozen=True)
class Machine:
    """`hand_over_ns`: CPU time of a stage for each block, beyond its work, with all cores busy. `slowdown`: how many times as long a core
    takes for its work while the others are busy too: they may be halves of one."""

    cores: int
    memory_bytes_per_s: float
    hand_over_ns: float
    slowdown: float = 1.0


@dataclass(frozen=True)
class Plan:
    """`workers`: of each stage in each lane, 1 where nothing is said."""

    lanes: int = 1
    workers: Mapping[str, int] = field(default_factory=dict)
    block_packets: float = 1024.0

    def of(self, kind: str) -> int:
        return self.workers.get(kind, 1)

    def processes(self, costs: Sequence[Cost]) -> int:
        return self.lanes * sum(self.of(cost.kind) for cost in costs)


@dataclass(frozen=True)
class Prediction:
    packets_per_s: float
    limit: str
    limits: dict[str, float]  # packets per second that each would allow
    cpu_ns: float  # of a packet, all stages
    memory_bytes: float


def predict(costs: Sequence[Cost], machine: Machine, plan: Plan) -> Prediction:
    """`plan.block_packets`: packets in a block, as many as there are or as fit."""
    limits: dict[str, float] = {}
    total_ns = 0.0
    for cost in costs:
        workers = plan.of(cost.kind)
        hand_over = machine.hand_over_ns / plan.block_packets if cost.hands_over else 0.0
        paid = workers if cost.kind in VISITS_ALL else 1  # times that a block is handed over
        ns = machine.slowdown * cost.cpu_ns + paid * hand_over
        total_ns += ns
        one_worker_ns = ns / workers
        limits[cost.kind] = plan.lanes * 1e9 / one_worker_ns
    memory_bytes = sum(cost.memory_bytes for cost in costs)
    limits["cores"] = machine.cores * 1e9 / total_ns
    if memory_bytes:
        limits["memory"] = machine.memory_bytes_per_s / memory_bytes
    limit = min(limits, key=lambda name: limits[name])
    return Prediction(limits[limit], limit, limits, total_ns, memory_bytes)


def spread(costs: Sequence[Cost], cores: int, block_packets: float) -> Plan:
    """A plan of as many lanes as there are cores for all the stages of one, a worker each; on fewer cores one lane."""
    return Plan(max(1, cores // len(costs)), {}, block_packets)
