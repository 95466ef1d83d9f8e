"""What a packet costs live, for `bench.scaling`: the agent on the wires of `bench.live`, at a rate that it carries."""

from __future__ import annotations

from bench import programs, workload
from bench.brokers import Side, nothing, ours
from bench.live import N_FRAMES, is_ipv4, one_turn
from bench.model import Cost

_SECONDS = 2.0


def live_costs(size: str) -> list[Cost]:
    """Of each stage with what the kernel does in it, hand-overs included; and of what the kernel does to receive, which is a stage of its
    own here: softirqs of a queue are a core's work at most. Per frame that is sent on; what memory moves is not reckoned."""
    with programs.scratch() as directory:
        capture = directory / "in.pcap"
        workload.write_capture(capture, size, N_FRAMES)
        passes = [is_ipv4(frame) for frame in workload.frames_of(capture)]
        alone = one_turn(Side("nothing", nothing), capture, passes, _SECONDS, directory)
        turn = one_turn(Side("gre", ours("kind: gre, key: 1", "auto")), capture, passes, _SECONDS, directory)
    receive_ns = max(1.0, (turn.generator_ns - alone.generator_ns) * turn.sent / max(1, turn.arrived))
    stages = [Cost(kind, max(1.0, stage["cpu_ns"]), 0.0, hands_over=False) for kind, stage in turn.stages.items()]
    return [Cost("kernel receive", receive_ns, 0.0, hands_over=False), *stages]
