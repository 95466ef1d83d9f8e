"""kill -9 of every process there is, under load, at random: what `broker/README.md` says it costs, to the packet.

A round kills each kind once, in a random order and at random moments, while numbered packets come at a steady rate. After every fault the
ledger must close and packets must go on; at the end of a run what was received is compared with what was sent. `test_kills_of_a_live_input`
has the opener alive whenever capture dies, so it must lose nothing but what the kernel has counted.

At length (`make endurance`) each kind dies 1,000 times. TAPMESH_SEED=N repeats a run, as far as the machine does.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core import layout
from broker.supervisor.companions import MODULE as COMPANIONS
from broker.supervisor.processes import find
from tests.cli.tapmesh import Broker, numbered, running, write_config
from tests.endurance.live import TUNNEL, Run, check, loaded
from tests.endurance.sizes import LONG, seed, size
from tests.live.test_privileges import kept_of, openers
from tests.live.test_veth import Wires, wires  # noqa: F401 - a fixture
from tests.netns import needs_root
from tests.packets import pcap, read_pcap
from tests.waiting import until

WORKERS = ("capture", "filter", "encapsulate", "send", "flows")
KINDS = (*WORKERS, "export", "store", "host", "supervisor", "opener")
READY_S = 1.0
"""From kill -9 to `up`: the promise of the 99th percentile."""
READY_IN_CI_S = 5.0
"""Of 60 kills nearly the longest, on a machine that others use too."""
GAP_S = 0.3
"""Mean time between one fault's end and the next."""
N_PAIRS, PAIR_S = 2, 0.06
"""In a round; mean time between the two."""
KILLS_OF_A_ROUND = len(KINDS) + 2 * N_PAIRS
ROUNDS_OF_A_RUN = 20


class Killer:
    """Of the processes of one run. `strike` kills one; what it returns waits until all is as it should be again."""

    def __init__(self, run: Run, chance: random.Random) -> None:
        self.run, self.chance = run, chance
        self.ready_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.struck_s = 0.0  # when

    def round(self) -> list[str]:
        """Each kind alone, then some of two at once."""
        words = []
        for kind in self.chance.sample(KINDS, len(KINDS)):
            self.pause(GAP_S)
            self.strike(kind, alone=True)()
            self.ready_s[kind].append(time.monotonic() - self.struck_s)
            words.append(f"{kind} {self.ready_s[kind][-1]:.3f} s")
            self.settle(kind)
        for _ in range(N_PAIRS):
            one, other = self.chance.sample([kind for kind in KINDS if kind != "opener"], 2)
            self.pause(GAP_S)
            waits = [self.strike(one)]
            self.pause(PAIR_S)
            waits.append(self.strike(other))
            for wait in waits if other != "supervisor" else reversed(waits):
                wait()
            words.append(f"{one} and {other}")
            self.settle(words[-1])
        return words

    def pause(self, mean_s: float) -> None:
        """Any moment is as likely as another."""
        select.select([], [], [], self.chance.expovariate(1 / mean_s))

    def settle(self, what: str) -> None:
        self.run.goes_on()
        ledger = self.run.ledger()
        assert ledger.balanced, (what, ledger.faults())

    def strike(self, kind: str, *, alone: bool = False) -> Callable[[], None]:
        if kind in WORKERS:
            return self._worker(kind)
        self.struck_s = time.monotonic()
        if kind in ("export", "store"):
            return self._companion(kind)
        if kind == "host":
            return self._host(alone)
        if kind == "opener":
            os.kill(*openers(self.run.name), signal.SIGKILL)
            until(lambda: self.run.broker.events("opener_died"), "the supervisor to say so")
            self.run.goes_on()
        return self._supervisor(alone)

    def _worker(self, kind: str) -> Callable[[], None]:
        lanes = self.run.broker.pipeline().lanes
        lane, worker = self.chance.randrange(len(lanes)), self.chance.randrange(lanes[0].geometry.count(kind))
        if kind == "send":
            in_a_block(self.run.broker.row(kind, worker, lane))
        self.struck_s = time.monotonic()
        old = self.run.broker.kill(kind, worker, lane=lane)
        return lambda: self.run.broker.wait_again(kind, old, worker, lane)

    def _companion(self, kind: str) -> Callable[[], None]:
        def pids() -> set[int]:
            return {pid for pid, what in find(self.run.name, COMPANIONS).items() if what == kind}

        until(pids, f"the {kind}")
        (old,) = pids()
        os.kill(old, signal.SIGKILL)
        return lambda: until(lambda: pids() and old not in pids(), f"{kind} to come back")

    def _host(self, alone: bool) -> Callable[[], None]:
        os.kill(self.run.host(), signal.SIGKILL)
        before = self.run.hosts_ready()
        if alone:
            self.run.goes_on()
        return lambda: until(lambda: self.run.hosts_ready() - before, "a new host")

    def _supervisor(self, alone: bool) -> Callable[[], None]:
        """What comes without one is delivered, and the next goes on with all that runs."""
        pids = self.run.broker.pids()
        self.run.broker.process.kill()
        self.run.broker.process.wait()
        if alone:
            self.run.goes_on()

        def wait() -> None:
            self.run.start()
            assert self.run.broker.events("pipeline_adopted")
            assert not alone or self.run.broker.pids() == pids
            until(lambda: len(kept_of(self.run.name)) == len(self.run.broker.pipeline().lanes), "the opener to keep capture's sockets")

        return wait


def in_a_block(row: Any) -> None:
    """Come back as soon as a send worker has begun to hand over frames: most of its time it has none in hand."""
    before, end = int(row["progress"]), time.monotonic() + 1
    while int(row["progress"]) == before and time.monotonic() < end:
        pass


def live_run(run: Run, chance: random.Random, rounds: int) -> dict[str, list[float]]:
    run.goes_on()
    killer = Killer(run, chance)
    for number in range(rounds):
        run.tell(f"round {number + 1} of {rounds}: {', '.join(killer.round())}")
    check(run)
    return killer.ready_s


def figures(ready_s: dict[str, list[float]]) -> str:
    return "; ".join(
        f"{kind} p50 {np.percentile(times, 50):.3f} p99 {np.percentile(times, 99):.3f} s" for kind, times in ready_s.items() if times
    )


def teller(number: int) -> Callable[[str], None]:
    """Progress, with the seed: shown when the test fails, and where somebody waits for it."""
    stream = sys.__stderr__ if LONG else sys.stdout
    assert stream is not None
    return lambda text: print(f"seed {number}: {text}", file=stream, flush=True)


@pytest.mark.root
@needs_root
def test_kills_of_a_live_input(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    number = seed()
    tell = teller(number)
    chance = random.Random(number)
    left = size("kills", 42, 1000 * KILLS_OF_A_ROUND) // KILLS_OF_A_ROUND
    ready_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    n_lanes = 1
    while left > 0:
        n_lanes = 3 - n_lanes
        rounds = min(left - left // 3, ROUNDS_OF_A_RUN)
        with loaded(wires, tmp_path / f"run-{left}", tell, n_lanes=n_lanes) as run:
            for kind, times in live_run(run, chance, rounds).items():
                ready_s[kind] += times
        left -= rounds
        tell(f"{left} rounds left; {figures(ready_s)}")
    of_workers = [t for kind in WORKERS for t in ready_s[kind]]
    assert np.percentile(of_workers, 99) < (READY_S if LONG else READY_IN_CI_S)


@pytest.mark.root
@needs_root
def test_kills_of_a_tunnel_input(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    """The sockets outlive the worker; what it had taken out of them is counted."""
    number = seed()
    tell = teller(number)
    chance = random.Random(number)
    n_kills = size("kills_of_a_tunnel_input", 6, 1000)
    with loaded(wires, tmp_path / "run", tell, source=TUNNEL) as run:
        run.goes_on()
        killer = Killer(run, chance)
        for n in range(n_kills):
            killer.pause(GAP_S)
            killer.strike("capture")()
            killer.settle("capture")
            tell(f"{n + 1} of {n_kills}")
        check(run, {"kernel", "restart"})


@pytest.mark.parametrize("n", [1, 2], ids=["one-each", "two-each"])
def test_kills_of_a_replay(tmp_path: Path, n: int) -> None:
    """A file is delivered byte for byte, whoever dies."""
    number = seed()
    tell = teller(number)
    chance = random.Random(number)
    left = size("kills_of_a_replay", 6, 2000)
    frames = numbered(30_000, size=20)
    source, target = tmp_path / "in.pcap", tmp_path / "out.pcap"
    source.write_bytes(pcap(frames))
    stages = f"capture: 1, filter: {n}, encapsulate: {n}, send: {n}"
    config = write_config(tmp_path / "c.yaml", source, to=target, pace=6000, stages=stages)
    while left > 0:
        target.unlink(missing_ok=True)
        with running(config, tmp_path) as broker:
            broker.wait_up()
            while left > 0 and not finished(broker):
                select.select([], [], [], chance.expovariate(2 / GAP_S))
                kind = chance.choice(layout.PATH)
                kill_of_a_replay(broker, kind, chance)
                left -= 1
                tell(f"{left} left: {kind}")
            assert broker.process.wait(60) == 0, broker.stderr
            closed = broker.ledger()
        assert (closed["balanced"], closed["in_flight"], closed["faults"]) == (True, 0, [])
        assert closed["ledger"]["tools"]["recorder"]["delivered_frames"] == len(frames)
        assert [frame for _, frame in read_pcap(target.read_bytes())[1]] == frames


def finished(broker: Broker) -> bool:
    return int(broker.row("capture")["state"]) == layout.STATE_FINISHED


def kill_of_a_replay(broker: Broker, kind: str, chance: random.Random) -> None:
    """And wait for it; at the end of the file it need not come back."""
    worker = chance.randrange(broker.pipeline().lanes[0].geometry.count(kind))
    row = broker.row(kind, worker)
    old = int(row["pid"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(old, signal.SIGKILL)
    up = (layout.STATE_RUNNING, layout.STATE_FINISHED)
    until(
        lambda: finished(broker) or broker.process.poll() is not None or (int(row["pid"]) != old and int(row["state"]) in up),
        f"{kind} to come back",
    )
