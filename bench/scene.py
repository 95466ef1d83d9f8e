"""An agent between two hosts of its own, and what can be offered to it: for benches that ask how much it carries."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import stamps
from bench.live import settled
from bench.wires import Wires

LOWEST, HIGHEST = 5_000.0, 640_000.0
_OUTER_BYTES = 14 + 20 + 8  # Ethernet, IPv4, GRE with its key
_QUIET_S = 1.0
_OFFERED_SHARE = 0.9  # less than that of what was asked for is all that the generator can do


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

    def latencies_under(self, load: float, n: int) -> list[float]:
        """The same while `load` packets per second pass beside them."""
        per_second = min(1_000.0, load / 10)
        seconds = n / per_second + 1.0
        generator = subprocess.Popen(self.generator(load - per_second, int(load * (seconds + 1))), stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.5)  # the load is there
            return self.latencies(per_second, n)
        finally:
            generator.terminate()
            generator.wait()


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
