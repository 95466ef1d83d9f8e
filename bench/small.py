"""The whole agent in one vCPU and 512 MB, on the wires of the live bench: a control group and one core hold all its processes.

| row | what |
|---|---|
| rate without loss | packets per second, by bisection; each step is offered for a few seconds, and the agent goes on between them |
| idle | CPU time of all its processes over ten seconds without a packet, in percent of a core |
| memory | PSS as in `bench.memory`; `peak_mib`: the most that was charged to the group, kernel memory and rings
included, and not the pages of libraries that others had read before |
| latency | p99 in microseconds from the generator's send call to the receiving host's packet socket, idle and at 80 % of the rate |
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import programs, workload
from bench.brokers import agent_config, missing, pinned, when_up
from bench.limits import Limits, limits
from bench.live import N_FRAMES, is_ipv4
from bench.memory import MIB, footprint
from bench.report import Row
from bench.scene import Scene, highest
from bench.wires import wires

MEMORY_BYTES = 512 << 20
_LOAD_SHARE = 0.8


@dataclass(frozen=True)
class Times:
    """How much of everything. A quick one measures nothing."""

    sizes: tuple[str, ...] = ("imix", "64", "1514")
    step_s: float = 5.0  # longer than what the kernel's ring may hide: it holds a third of a second
    n_steps: int = 7
    idle_s: float = 10.0
    idle_stamps: int = 300
    load_stamps: int = 4_000


QUICK = Times(("imix",), 0.2, 1, 0.5, 5, 50)


@contextlib.contextmanager
def scene(size: str, directory: Path, held: Limits) -> Iterator[Scene]:
    """RuntimeError when a process of the agent is not in the group, or when the kernel has killed one for want of memory."""
    capture, config = directory / "in.pcap", directory / "small.yaml"
    workload.write_capture(capture, size, N_FRAMES)
    config.write_text(agent_config("kind: gre, key: 1"))
    programs.run([sys.executable, "-c", "from stages.warm import warm; warm(print)"])  # compiling takes more memory than running
    passes = [is_ipv4(frame) for frame in workload.frames_of(capture)]
    with contextlib.ExitStack() as closing:
        lines = closing.enter_context(wires())
        lines.drop_at_ingress()
        with held.inside():
            process = closing.enter_context(programs.agent(config, pinned(lines.command(lines.b, []))))
        when_up(process)
        if outside := set(programs.family(process.pid)) - held.pids():
            raise RuntimeError(f"processes of the agent are not in its control group: {outside}")
        yield Scene(lines, capture, passes, process.pid)
        if held.killed():
            raise RuntimeError(f"the kernel killed {held.killed()} processes for want of memory")


def measure(quick: bool) -> Iterator[Row]:
    if os.geteuid() != 0:
        raise RuntimeError("needs root: network namespaces, raw sockets and control groups")
    if absent := missing(commands=("ip", "tc", "taskset")):
        raise RuntimeError(absent)
    times = QUICK if quick else Times()
    for size in times.sizes:
        held = limits(f"tapmesh-bench-{os.getpid()}", MEMORY_BYTES)
        with programs.scratch() as directory, held as group, scene(size, directory, group) as one:
            if size == times.sizes[0]:
                yield from whole(one, size, times, group)
            else:
                yield _rate(one, size, times)


def whole(one: Scene, size: str, times: Times, held: Limits) -> Iterator[Row]:
    """All rows of one size. RuntimeError when a stamped packet is lost."""
    idle = _share(programs.family(one.agent), times.idle_s)
    yield Row("small", "idle: CPU of all processes", 100 * idle, "% of a core", {}, {"seconds": times.idle_s})
    yield _latency("idle, 10 packets/s", one.latencies(10.0, times.idle_stamps))
    rate = _rate(one, size, times)
    yield rate
    yield _loaded(one, rate.value, times)
    total, made_of = footprint(programs.family(one.agent))
    detail = {**made_of, "peak_mib": round(held.peak_bytes() / MIB, 1), "limit_mib": MEMORY_BYTES // MIB}
    yield Row("small", "memory of the agent after that", total / MIB, "MiB", {}, detail)


def _rate(one: Scene, size: str, times: Times) -> Row:
    rate, steps = highest(lambda rate: one.offer(rate, times.step_s), times.n_steps)
    return Row("small", f"{size}: rate without loss", rate, "packets/s", {}, {"steps": steps})


def _loaded(one: Scene, rate: float, times: Times) -> Row:
    load = _LOAD_SHARE * rate
    return _latency(f"at {_LOAD_SHARE:.0%} of it", one.latencies_under(load, times.load_stamps), {"packets_per_s": round(load)})


def _latency(case: str, found: list[float], detail: dict[str, float] | None = None) -> Row:
    def at(share: float) -> float:
        return found[min(len(found) - 1, int(share * len(found)))]

    more = {"p50": round(at(0.5), 1), "p999": round(at(0.999), 1), "max": round(found[-1], 1), "packets": len(found)}
    return Row("small", f"latency, {case}: p99", at(0.99), "us", {}, {**more, **(detail or {})})


def _share(pids: list[int], seconds: float) -> float:
    before, began = programs.cpu_ns(pids), time.monotonic()
    time.sleep(seconds)
    return (programs.cpu_ns(pids) - before) / 1e9 / (time.monotonic() - began)
