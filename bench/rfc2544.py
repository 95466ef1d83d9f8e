"""What RFC 2544 asks of a device, of the live agent on the wires of the live bench: medians of some runs, least and most beside.

| row | RFC 2544 | what |
|---|---|---|
| rate without loss | 26.1 | packets per second, by bisection |
| latency at SHARE of it | 26.2 | p99 in microseconds, p50 and p99.9 beside it, of stamped packets among the load |
| burst without loss | 26.4 | frames, sent as fast as the generator can; `most_offered` is the longest that was tried |
| forwarded at twice the rate | | share of the rate without loss that still arrives when twice as much (`offered`: what the generator \
could) is offered |
| recovery | 26.5 | seconds at half the rate, after that overload, until the last packet is lost |

Sizes are with the frame check sequence, as there. Each run has an agent of its own. It has all cores but the first, which the generator
has; on a machine with one they share it. What is lost after the overload is seen in the ledger, where the agent counts whatever it drops.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import programs, workload
from bench.brokers import agent_config, missing, when_up
from bench.live import N_FRAMES, is_ipv4
from bench.report import Row
from bench.scene import Scene, highest
from bench.wires import JUMBO_MTU, wires
from broker.core.metrics import COUNTERS, WIDTH, index
from broker.core.ring import read_counters
from broker.core.shm import Pipeline

SIZES = {"64": "64", "imix": "imix", "1518": "1514", "9000": "9000"}
"""By the name of the workload, which is without the FCS."""
SHARES = (0.8, 1.0)
OVERLOAD = 2.0
LINE_RATE = 10_000_000.0  # packets per second, which no generator here can send: it sends what it can
_LOSSES = [(c.stage, c.live, index(c.stage, c.name), WIDTH[c.per]) for c in COUNTERS if c.name.startswith("dropped_")]
_LOOK_EVERY_S = 0.01


@dataclass(frozen=True)
class Times:
    """How much of everything. A quick one measures nothing."""

    sizes: tuple[str, ...] = tuple(SIZES)
    runs: int = 5
    step_s: float = 3.0
    n_steps: int = 8
    stamps: int = 4_000
    shortest_burst: int = 1_000
    longest_burst: int = 1_000_000
    burst_steps: int = 8
    overload_s: float = 5.0
    recovery_s: float = 10.0


QUICK = Times(("imix",), 1, 0.2, 1, 20, 100, 200, 1, 0.2, 0.5)


@dataclass
class Run:
    """One agent's figures."""

    rate: float = 0.0
    latencies: dict[float, list[float]] = field(default_factory=dict)  # by share of the rate; microseconds, in order of size
    burst: int = 0
    offered: float = 0.0  # in the overload, of the rate: less than OVERLOAD where the generator could not
    forwarded: float = 0.0
    recovery_s: float = 0.0


def measure(quick: bool) -> Iterator[Row]:
    if os.geteuid() != 0:
        raise RuntimeError("needs root: network namespaces and raw sockets")
    if absent := missing(commands=("ip", "tc", "taskset")):
        raise RuntimeError(absent)
    times = QUICK if quick else Times()
    for size in times.sizes:
        runs = []
        for _ in range(times.runs):
            with programs.scratch() as directory, stage(directory, SIZES[size]) as (scene, pipeline):
                runs.append(run(scene, pipeline, times))
        yield from rows(size, runs, times)


@contextlib.contextmanager
def stage(directory: Path, size: str) -> Iterator[tuple[Scene, Pipeline]]:
    capture, config = directory / "in.pcap", directory / "rfc2544.yaml"
    workload.write_capture(capture, size, N_FRAMES)
    config.write_text(agent_config("kind: gre, key: 1"))
    passes = [is_ipv4(frame) for frame in workload.frames_of(capture)]
    cores = sorted(os.sched_getaffinity(0))
    with wires(JUMBO_MTU) as lines:
        lines.drop_at_ingress()
        words = ["taskset", "-c", ",".join(map(str, cores[1:] or cores)), *lines.command(lines.b, [])]
        with programs.agent(config, words) as process:
            pipeline = when_up(process)
            yield Scene(lines, capture, passes, process.pid), pipeline


def run(scene: Scene, pipeline: Pipeline, times: Times) -> Run:
    """RuntimeError when even the lowest rate is not carried, or a stamped packet is lost."""
    made = Run()
    made.rate, _ = highest(lambda rate: scene.offer(rate, times.step_s), times.n_steps)
    for share in SHARES:
        made.latencies[share] = scene.latencies_under(share * made.rate, times.stamps)
    made.burst = longest_burst(scene, times)
    made.offered, made.forwarded, made.recovery_s = overload(scene, pipeline, made.rate, times)
    return made


def longest_burst(scene: Scene, times: Times) -> int:
    """Frames, by bisection between the logarithms; 0: the shortest loses some already."""

    def carried(n: int) -> bool:
        return scene.offer(LINE_RATE, n / LINE_RATE)[1] <= 0

    low, high = times.shortest_burst, times.longest_burst
    if carried(high):
        return high
    if not carried(low):
        return 0
    for _ in range(times.burst_steps):
        middle = int(math.sqrt(low * high))
        low, high = (middle, high) if carried(middle) else (low, middle)
    return low


def overload(scene: Scene, pipeline: Pipeline, rate: float, times: Times) -> tuple[float, float, float]:
    """(what was offered, what arrived of it, both as shares of `rate`; seconds at half of it until the last loss)"""
    before, began = scene.wires.received(), time.monotonic()
    n = int(OVERLOAD * rate * times.overload_s)
    said = subprocess.run(scene.generator(OVERLOAD * rate, n), check=True, capture_output=True).stdout
    offered = n / json.loads(said)["wall_s"] / rate
    wanted = sum(scene.passes) / len(scene.passes)
    forwarded = (scene.wires.received() - before) / (time.monotonic() - began) / wanted / rate
    after = subprocess.Popen(scene.generator(rate / 2, int(rate / 2 * times.recovery_s)), stdout=subprocess.DEVNULL)
    began = last = time.monotonic()
    lost = losses(pipeline)
    while after.poll() is None:
        time.sleep(_LOOK_EVERY_S)
        if (now := losses(pipeline)) != lost:
            lost, last = now, time.monotonic()
    if after.returncode:
        raise RuntimeError(f"the generator ended with {after.returncode}")
    return offered, forwarded, last - began


def losses(pipeline: Pipeline) -> int:
    """Whatever the agent has counted as dropped so far."""
    lost = 0
    for lane in pipeline.lanes:
        for row, (kind, _) in enumerate(lane.geometry.workers):
            _, committed = read_counters(lane, row)
            for stage_, live, at, width in _LOSSES:
                if stage_ == kind:
                    lost += int((lane.live[row] if live else committed)[at : at + width].sum())
    return lost


def rows(size: str, runs: list[Run], times: Times) -> Iterator[Row]:
    yield _row(f"{size}: rate without loss", [r.rate for r in runs], "packets/s")
    for share in SHARES:
        at = {name: [_of(r.latencies[share], part) for r in runs] for name, part in (("p50", 0.5), ("p999", 0.999))}
        beside = {name: round(statistics.median(found), 1) for name, found in at.items()}
        yield _row(f"{size}: latency at {share:.0%} of it: p99", [_of(r.latencies[share], 0.99) for r in runs], "us", beside)
    yield _row(f"{size}: burst without loss", [float(r.burst) for r in runs], "frames", {"most_offered": times.longest_burst})
    median_of_offered = round(statistics.median(r.offered for r in runs), 2)
    yield _row(
        f"{size}: forwarded at {OVERLOAD:.0f} times the rate",
        [r.forwarded for r in runs],
        "of the rate without loss",
        {"offered": median_of_offered},
    )
    yield _row(f"{size}: recovery after that", [r.recovery_s for r in runs], "s")


def _of(found: list[float], share: float) -> float:
    return found[min(len(found) - 1, int(share * len(found)))]


def _row(case: str, found: list[float], unit: str, beside: dict[str, float] | None = None) -> Row:
    spread = {"least": round(min(found), 3), "most": round(max(found), 3), "runs": len(found)}
    return Row("rfc2544", case, statistics.median(found), unit, {}, {**spread, **(beside or {})})
