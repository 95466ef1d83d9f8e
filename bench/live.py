"""Live, on veth: CPU time per forwarded packet, ours and of peers that do the same with the same kind of socket.

| figure | what is in it, per frame that arrived |
|---|---|
| value | user and system time of all processes of the broker; the kernel sends in it, on a veth down to the receiving end |
| whole_ns | with the time of generator and ksoftirqd, less what the generator takes when frames end at b0: whoever pays for it |
| loss | share of what should have arrived that did not: the worst turn; a ratio with loss in it says little |

Ours and the plain C broker are compared by the same backend. Of segments it has one port, and it sorts a block by length: what the order
within flows costs us, who keep it, is in the ratio to that. The kernel cuts the runs before the veth, as for a card that cannot.

The kernel's own redirect has no process, so only its whole_ns counts, and the ratio to it is made of that. Each side is run alone, turn by
turn; the median of its turns counts. Python peers are offered what they can carry. A side that cannot run here is said on stderr.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import openvswitch, programs, workload
from bench.brokers import C_SOURCE, VNI, Side, c_broker, mirred, missing, nothing, ours, python_broker
from bench.report import Row
from bench.wires import Wires, wires

N_FRAMES = 16_384  # of the capture that is sent round and round
RATE, DPKT_RATE, SCAPY_RATE = 100_000.0, 8_000.0, 300.0
_SETTLED_S = 0.3  # nothing more arrives for so long: what has not arrived is lost
_PATIENCE_S = 20.0

_NO_ETHTOOL = missing(commands=("ethtool",))
_NO_C = missing(commands=("cc",), files=(C_SOURCE,))
SIDES = (
    Side("nothing", nothing),
    Side("gre by packet", ours("kind: gre, key: 1", "packet")),
    Side("C, gre by packet", c_broker("pkt"), _NO_C),
    Side("gre by socket", ours("kind: gre, key: 1", "socket")),
    Side("C, gre by socket", c_broker("raw"), _NO_C),
    Side("vxlan by segment", ours(f"kind: vxlan, vni: {VNI}", "segment"), _NO_ETHTOOL),
    Side("vxlan by segment, one port", ours(f"kind: vxlan, vni: {VNI}, source_port: 50000", "segment"), _NO_ETHTOOL),
    Side("C, vxlan by segment, one port", c_broker("udpgso", "-s"), _NO_C or _NO_ETHTOOL),
    Side("vxlan by socket, one port", ours(f"kind: vxlan, vni: {VNI}, source_port: 50000", "socket")),
    Side("C, vxlan by socket, one port", c_broker("udp"), _NO_C),
    Side("tc mirred, vxlan", mirred),
    Side("Open vSwitch, gre", openvswitch.switch, missing(commands=openvswitch.COMMANDS, files=(openvswitch.SCHEMA,))),
    Side("gre, slow", ours("kind: gre, key: 1", "auto"), rate=DPKT_RATE),
    Side("dpkt, gre", python_broker("dpkt"), missing(modules=("dpkt",)), rate=DPKT_RATE),
    Side("scapy, gre", python_broker("scapy"), missing(modules=("scapy",)), rate=SCAPY_RATE),
)
_SEGMENTS = "C, vxlan by segment, one port"
PEERS = {
    "gre by packet": ("C, gre by packet", "gre by socket", "dpkt, gre", "scapy, gre", "Open vSwitch, gre"),
    "gre by socket": ("C, gre by socket",),
    "gre, slow": ("dpkt, gre",),
    "vxlan by segment": (_SEGMENTS, "C, vxlan by socket, one port", "vxlan by socket, one port", "tc mirred, vxlan"),
    "vxlan by segment, one port": (_SEGMENTS, "vxlan by socket, one port", "tc mirred, vxlan"),
    "vxlan by socket, one port": ("C, vxlan by socket, one port",),
}
WHOLE = ("tc mirred, vxlan",)  # compared by whole_ns
LONG_ONLY = ("gre by socket", "vxlan by segment", "vxlan by socket, one port", "gre, slow")  # not worth their start in a quick run


@dataclass(frozen=True)
class Turn:
    """One run of one side."""

    cpu_ns: float  # of the broker, per frame that arrived
    generator_ns: float  # of the generator and ksoftirqd, per frame sent
    sent: int
    expected: int
    arrived: int
    offered: float  # packets per second
    stages: dict[str, dict[str, float]]

    @property
    def loss(self) -> float:
        return 1 - self.arrived / self.expected

    def whole_ns(self, alone_ns: float) -> float:
        return self.cpu_ns + (self.generator_ns - alone_ns) * self.sent / max(self.arrived, 1)


def measure(quick: bool) -> Iterator[Row]:
    if os.geteuid() != 0:
        raise RuntimeError("needs root: network namespaces and raw sockets")
    if absent := missing(commands=("ip", "tc", "taskset")):
        raise RuntimeError(absent)
    sides = [side for side in SIDES if not side.absent and not (quick and side.name in LONG_ONLY)]
    for side in SIDES:
        if side.absent:
            print(f"bench live: {side.name} is not measured: {side.absent}", file=sys.stderr)
    for size in ("imix",) if quick else ("imix", "64"):
        yield from _compare(size, sides, *((0.25, 1) if quick else (3.0, 5)))


def _compare(size: str, sides: list[Side], seconds: float, n_turns: int) -> Iterator[Row]:
    turns: dict[str, list[Turn]] = {}
    with programs.scratch() as directory:
        capture = directory / "in.pcap"
        workload.write_capture(capture, size, N_FRAMES)
        passes = [is_ipv4(frame) for frame in workload.frames_of(capture)]
        for _ in range(n_turns):
            for side in list(sides):
                try:
                    turns.setdefault(side.name, []).append(one_turn(side, capture, passes, seconds, directory))
                except RuntimeError as error:
                    print(f"bench live: {side.name}: {error}", file=sys.stderr)
                    sides.remove(side)
    yield from _rows(size, {name: found for name, found in turns.items() if found})


def is_ipv4(frame: bytes) -> bool:
    """The workload's IPv4 is all of 10.0.0.0/8, which passes; its IPv6 does not."""
    at = 16 if frame[12:14] == b"\x81\x00" else 12
    return frame[at : at + 2] == b"\x08\x00"


def one_turn(side: Side, capture: Path, passes: list[bool], seconds: float, directory: Path) -> Turn:
    rate = side.rate or RATE
    n = max(20, int(rate * seconds))
    whole, rest = divmod(n, len(passes))
    expected = whole * sum(passes) + sum(passes[:rest])
    with wires() as lines, side.start(lines, directory) as running:
        cores = sorted(os.sched_getaffinity(0))
        command = ["taskset", "-c", str(cores[0]), sys.executable, "-m", "bench.offer", "a0", str(capture), str(rate), str(n)]
        pids, soft = running.pids(), _ksoftirqds()
        before, stages_before, soft_before, at_first = programs.cpu_ns(pids), running.stages(), programs.cpu_ns(soft), lines.received()
        done = subprocess.run(lines.command(lines.a, command), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the generator: {done.stderr.strip()[-500:]}")
        said = json.loads(done.stdout)
        arrived = settled(lines, at_first + expected) - at_first if side.start is not nothing else expected
        spent, soft_ns = programs.cpu_ns(pids) - before, programs.cpu_ns(soft) - soft_before
        stages = _between(stages_before, running.stages(), arrived, said["wall_s"])
    generator_ns = (said["cpu_s"] * 1e9 + soft_ns) / n
    return Turn(spent / max(arrived, 1), generator_ns, n, expected, arrived, n / said["wall_s"], stages)


def settled(lines: Wires, wanted: int) -> int:
    """The count at C once all is there, or nothing comes any more."""
    end = time.monotonic() + _PATIENCE_S
    seen, since = lines.received(), time.monotonic()
    while seen < wanted and time.monotonic() < end and time.monotonic() - since < _SETTLED_S:
        time.sleep(0.02)
        now = lines.received()
        if now != seen:
            seen, since = now, time.monotonic()
    return seen


def _ksoftirqds() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().startswith("ksoftirqd/"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _between(before: dict[str, Any], after: dict[str, Any], arrived: int, wall_s: float) -> dict[str, dict[str, float]]:
    """Of each stage: ns per frame, in all and in steps; blocks, sleeps and rings per second."""
    found = {}
    for kind, last in after.items():
        spent = {name: value - before[kind][name] for name, value in last.items()}
        found[kind] = {
            **{name: round(spent[name] / max(arrived, 1)) for name in ("cpu_ns", "busy_ns")},
            **{f"{name}_per_s": round(spent[name] / wall_s) for name in ("blocks", "parks", "bells")},
        }
    return found


def _rows(size: str, turns: dict[str, list[Turn]]) -> Iterator[Row]:
    alone_ns = statistics.median(turn.generator_ns for turn in turns.get("nothing", []) or [_NO_TURN])
    values = {name: statistics.median(turn.cpu_ns for turn in found) for name, found in turns.items()}
    wholes = {name: statistics.median(turn.whole_ns(alone_ns) for turn in found) for name, found in turns.items()}
    for name, found in turns.items():
        if name == "nothing":
            yield Row("live", f"{size}, generator alone", alone_ns, "ns/packet", {}, {"offered": round(found[0].offered)})
            continue
        ratios = {}
        for peer in PEERS.get(name, ()):
            figures = wholes if peer in WHOLE else values
            if peer in figures:
                ratios[peer] = figures[peer] / figures[name]
        detail = {
            "whole_ns": round(wholes[name]),
            "min": round(min(turn.cpu_ns for turn in found)),
            "max": round(max(turn.cpu_ns for turn in found)),
            "loss": round(max(turn.loss for turn in found), 5),
            "offered": round(statistics.median(turn.offered for turn in found)),
            "turns": len(found),
            "stages": found[-1].stages,
        }
        value = wholes[name] if name in WHOLE else values[name]
        yield Row("live", f"{size}, {name}", value, "ns/packet", ratios, detail)


_NO_TURN = Turn(0, 0, 1, 1, 1, 0, {})
