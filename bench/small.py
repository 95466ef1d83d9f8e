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
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import programs, stamps, workload
from bench.brokers import agent_config, missing, pinned, when_up
from bench.limits import Limits, limits
from bench.live import N_FRAMES, is_ipv4, settled
from bench.memory import MIB, footprint
from bench.report import Row
from bench.wires import Wires, wires

MEMORY_BYTES = 512 << 20
LOWEST, HIGHEST = 5_000.0, 640_000.0
_OUTER_BYTES = 14 + 20 + 8  # Ethernet, IPv4, GRE with its key
_QUIET_S = 1.0
_LOAD_SHARE = 0.8
_OFFERED_SHARE = 0.9  # less than that of what was asked for is all that the generator can do


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


@dataclass(frozen=True)
class Scene:
    """An agent that is up in its group, and a capture that is sent to it."""

    wires: Wires
    capture: Path
    passes: list[bool]
    agent: int  # the process of it that started the others

    def offer(self, rate: float, seconds: float) -> tuple[float, float]:
        """(packets per second that were really offered, share of them that was lost)."""
        n = max(20, int(rate * seconds))
        whole, rest = divmod(n, len(self.passes))
        expected = whole * sum(self.passes) + sum(self.passes[:rest])
        before = self.wires.received()
        done = subprocess.run(self.generator(rate, n), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the generator: {done.stderr.strip()[-500:]}")
        arrived = settled(self.wires, before + expected) - before
        return n / json.loads(done.stdout)["wall_s"], 1 - arrived / expected

    def generator(self, rate: float, n: int) -> list[str]:
        return self._aside(self.wires.a, [sys.executable, "-m", "bench.offer", "a0", str(self.capture), str(rate), str(n)])

    def _aside(self, host: str, words: list[str]) -> list[str]:
        """On the core that is not the agent's, where there are two."""
        return self.wires.command(host, ["taskset", "-c", str(min(os.sched_getaffinity(0))), *words])

    def latencies(self, rate: float, n: int) -> list[float]:
        """Microseconds, in order of size. RuntimeError when a stamped packet is lost."""
        words = [sys.executable, "-m", "bench.stamps"]
        length = str(stamps.FRAME_BYTES + _OUTER_BYTES)
        receiver = subprocess.Popen(
            self._aside(self.wires.c, [*words, "receive", "c0", length, str(n), str(_QUIET_S + 2 / rate)]),
            stdout=subprocess.PIPE,
            text=True,
        )
        with receiver:
            assert receiver.stdout is not None
            receiver.stdout.readline()
            subprocess.run(self._aside(self.wires.a, [*words, "send", "a0", str(rate), str(n)]), check=True)
            found: list[float] = sorted(json.loads(receiver.stdout.readline() or "[]"))
        if len(found) != n:
            raise RuntimeError(f"{len(found)} of {n} stamped packets arrived")
        return found


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


def highest(offer: Callable[[float], tuple[float, float]], n_steps: int) -> tuple[float, list[list[float]]]:
    """The highest rate that was carried without loss, by bisection between the logarithms of LOWEST and HIGHEST; and what each step offered
    and lost. It ends where the generator cannot offer more. RuntimeError when even LOWEST is not carried."""
    low, high, steps = LOWEST, HIGHEST, []
    best, loss = offer(low)
    steps.append([round(best), round(loss, 6)])
    if loss > 0:
        raise RuntimeError(f"{loss:.3%} of {best:.0f} packets/s was lost")
    for _ in range(n_steps):
        rate = math.sqrt(low * high)
        offered, loss = offer(rate)
        steps.append([round(offered), round(loss, 6)])
        if loss > 0:
            high = rate
            continue
        low, best = rate, max(best, offered)
        if offered < _OFFERED_SHARE * rate:
            break
    return best, steps


def _loaded(one: Scene, rate: float, times: Times) -> Row:
    load = _LOAD_SHARE * rate
    per_second = min(1_000.0, load / 10)
    seconds = times.load_stamps / per_second + 1.0
    generator = subprocess.Popen(one.generator(load - per_second, int(load * (seconds + 1))), stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)  # the load is there
        found = one.latencies(per_second, times.load_stamps)
    finally:
        generator.terminate()
        generator.wait()
    return _latency(f"at {_LOAD_SHARE:.0%} of it", found, {"packets_per_s": round(load)})


def _latency(case: str, found: list[float], detail: dict[str, float] | None = None) -> Row:
    def at(share: float) -> float:
        return found[min(len(found) - 1, int(share * len(found)))]

    more = {"p50": round(at(0.5), 1), "p999": round(at(0.999), 1), "max": round(found[-1], 1), "packets": len(found)}
    return Row("small", f"latency, {case}: p99", at(0.99), "us", {}, {**more, **(detail or {})})


def _share(pids: list[int], seconds: float) -> float:
    before, began = programs.cpu_ns(pids), time.monotonic()
    time.sleep(seconds)
    return (programs.cpu_ns(pids) - before) / 1e9 / (time.monotonic() - began)
