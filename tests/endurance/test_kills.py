"""kill -9 of every process there is, under load, at random: what `broker/README.md` says it costs, to the packet.

A round kills each kind once, in a random order and at random moments, while numbered packets come at a steady rate. After every fault the
ledger must close and packets must go on; at the end of a run what was received is compared with what was sent. `test_kills_of_a_live_input`
has the opener alive whenever capture dies, so it must lose nothing but what the kernel has counted.

At length (`make endurance`) each kind dies 1,000 times. TAPMESH_SEED=N repeats a run, as far as the machine does.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.cli.common import attach
from broker.core import layout
from broker.supervisor.companions import MODULE as COMPANIONS
from broker.supervisor.ledger import Ledger, balance
from broker.supervisor.processes import find
from broker.supervisor.snapshot import Reader
from tests.again import ROOT
from tests.cli.tapmesh import Broker, numbered, running, unique_name, write_config
from tests.endurance.numbered import RECORD, Received, Tally, read
from tests.endurance.sizes import LONG, seed, size
from tests.flows.store.test_parquet import everything
from tests.live.test_privileges import kept_of, openers
from tests.live.test_veth import Wires, wires  # noqa: F401 - a fixture
from tests.netns import Namespace, needs_root
from tests.packets import pcap, read_pcap
from tests.waiting import until

duckdb = pytest.importorskip("duckdb")

WORKERS = ("capture", "filter", "encapsulate", "send", "flows")
KINDS = (*WORKERS, "export", "store", "host", "supervisor", "opener")
RATE = 3000
READY_S = 1.0
"""From kill -9 to `up`: the promise of the 99th percentile."""
READY_IN_CI_S = 5.0
"""Of 60 kills nearly the longest, on a machine that others use too."""
GAP_S = 0.3
"""Mean time between one fault's end and the next."""
ROUNDS_OF_A_RUN = 20

CONFIG = """
inputs:
  span0: {kind: afpacket, interface: b0}
tools:
  ids: {tunnel: {kind: gre, remote: 10.99.0.2, key: 7, sequence: true}}
  recorder: {kind: pcap, file: DIRECTORY/recorder.pcap}
maps:
  - {name: all, rules: [pass: udp], to: [ids, recorder]}
flows:
  idle_s: 2
  exports: {lines: {kind: json, file: DIRECTORY/flows.json}}
  store: {kind: parquet, directory: DIRECTORY/store, flush_s: 1}
stages: {capture: 1, filter: 2, encapsulate: 2, send: 2}
"""


@dataclass
class Peer:
    """A process of `numbered` and its tally."""

    process: subprocess.Popen[str]
    tally: Tally

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


@contextlib.contextmanager
def peer(host: Namespace, tally: Path, *words: object) -> Iterator[Peer]:
    tally.unlink(missing_ok=True)
    made = Tally(tally)
    command = [sys.executable, "-m", "tests.endurance.numbered", *map(str, words), str(tally)]
    with host.inside():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield Peer(process, made)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@dataclass
class Run:
    """One pipeline under load."""

    wires: Wires
    directory: Path
    name: str
    stack: contextlib.ExitStack
    chance: random.Random
    sender: Peer
    receiver: Peer
    tell: Callable[[str], None]
    broker: Broker = field(init=False)
    ready_s: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def start(self) -> None:
        with self.wires.b.inside():
            self.broker = self.stack.enter_context(running(self.directory / "c.yaml", self.directory, self.name))
        until(lambda: self.broker.events("pipeline_up"), "all workers to be up")
        until(lambda: len(find(self.name, COMPANIONS)) == 2, "exporter and store")

    def kill(self, kind: str) -> None:
        began = time.monotonic()
        if kind in WORKERS:
            n = self.broker.pipeline().lanes[0].geometry.count(kind)
            worker = self.chance.randrange(n)
            self.broker.wait_again(kind, self.broker.kill(kind, worker), worker)
        elif kind in ("export", "store"):
            self._replaced(kind, COMPANIONS)
        elif kind == "host":
            self._host()
        else:
            if kind == "opener":
                os.kill(*openers(self.name), signal.SIGKILL)
                until(lambda: self.broker.events("opener_died"), "the supervisor to say so")
                self.goes_on()
            self._supervisor()
        self.ready_s[kind].append(time.monotonic() - began)

    def _replaced(self, kind: str, module: str) -> None:
        def pids() -> set[int]:
            return {pid for pid, what in find(self.name, module).items() if what == kind}

        until(pids, f"the {kind}")
        (old,) = pids()
        os.kill(old, signal.SIGKILL)
        until(lambda: pids() and old not in pids(), f"{kind} to come back")

    def _host(self) -> None:
        hosts = [pid for pid in find(self.name) if pid not in self.broker.pids().values()]
        n_ready = self._hosts_ready()
        (old,) = hosts
        os.kill(old, signal.SIGKILL)
        self.goes_on()
        until(lambda: self._hosts_ready() > n_ready, "a new host")

    def _hosts_ready(self) -> int:
        return sum(line["event"] == "host_ready" for line in self.broker.log)

    def _supervisor(self) -> None:
        """What comes without one is delivered, and the next goes on with all that runs."""
        before = self.broker.pids()
        self.broker.process.kill()
        self.broker.process.wait()
        self.goes_on()
        self.start()
        assert self.broker.events("pipeline_adopted")
        until(lambda: kept_of(self.name) == {"capture-0"}, "the opener to keep capture's socket")
        assert self.broker.pids() == before

    def goes_on(self) -> None:
        """Packets that are sent from now on arrive. (Frames that wait in rings now are fewer than this.)"""
        wanted = self.receiver.tally.n + RATE // 10
        until(lambda: self.receiver.tally.n > wanted, "packets to go on arriving")

    def ledger(self) -> Ledger:
        """As `tapmesh status` has it."""
        pipeline, names = attach(self.name)
        return balance(Reader(pipeline).take(names))


@contextlib.contextmanager
def loaded(wires: Wires, directory: Path, chance: random.Random, tell: Callable[[str], None]) -> Iterator[Run]:  # noqa: F811
    directory.mkdir()
    (directory / "c.yaml").write_text(CONFIG.replace("DIRECTORY", str(directory)))
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(peer(wires.c, directory / "received", "receive", directory / "records"))
        assert receiver.process.stdout is not None
        assert receiver.process.stdout.readline() == "ready\n"
        sender = Peer(receiver.process, receiver.tally)
        run = Run(wires, directory, unique_name(), stack, chance, sender, receiver, tell)
        run.start()
        run.sender = stack.enter_context(peer(wires.a, directory / "sent", "send", "a0", RATE))
        yield run


def pause(chance: random.Random, mean_s: float = GAP_S) -> None:
    """Any moment is as likely as another."""
    select.select([], [], [], chance.expovariate(1 / mean_s))


def statistics(host: Namespace, interface: str) -> dict[str, int]:
    with host.inside():
        words = subprocess.run(["ip", "-s", "-j", "link", "show", interface], capture_output=True, check=True).stdout
    (link,) = json.loads(words)
    found: dict[str, int] = {f"{way}_{key}": int(n) for way, counts in link["stats64"].items() for key, n in counts.items()}
    return found


def kernel_lost(run: Run) -> dict[str, int]:
    """What the wires of the test itself have lost, and its receiver: nothing that is said here is worth anything then."""
    lost = {
        f"{end} {key}": statistics(host, end)[key]
        for host, end in ((run.wires.a, "a0"), (run.wires.b, "b0"), (run.wires.b, "b1"), (run.wires.c, "c0"))
        for key in ("rx_dropped", "tx_dropped")
    }
    with run.wires.c.inside():
        lines = Path("/proc/thread-self/net/raw").read_text().splitlines()[1:]
    lost["receiver"] = sum(int(line.split()[-1]) for line in lines)
    return {what: n for what, n in lost.items() if n}


def live_run(wires: Wires, directory: Path, chance: random.Random, n_kills: int, tell: Callable[[str], None]) -> dict[str, list[float]]:  # noqa: F811
    with loaded(wires, directory, chance, tell) as run:
        run.goes_on()
        for at in range(n_kills):
            if at % len(KINDS) == 0:
                order = chance.sample(KINDS, len(KINDS))
            kind = order[at % len(KINDS)]
            pause(chance)
            run.kill(kind)
            run.goes_on()
            ledger = run.ledger()
            assert ledger.balanced, (kind, ledger.faults())
            tell(f"{at + 1} of {n_kills}: {kind}, {run.ready_s[kind][-1]:.3f} s")
        run.sender.stop()
        assert run.broker.stop() == 0, run.broker.stderr
        lost = kernel_lost(run)
        run.receiver.stop()
        closed = run.broker.ledger()
        check(run, closed, lost)
    return run.ready_s


def check(run: Run, closed: dict[str, Any], lost: dict[str, int]) -> None:
    """All that was promised of what was sent, by the ledger, the receiver, the file and the store."""
    assert (closed["balanced"], closed["in_flight"], closed["faults"]) == (True, 0, [])
    assert not lost, f"the test itself lost packets: {lost}"
    assert run.sender.tally.n_broken == 0
    n_sent = run.sender.tally.n
    ledger = closed["ledger"]
    dropped = {reason: n for reason, n in ledger["packets"]["dropped"].items() if n}
    assert set(dropped) <= {"dropped_kernel"}, dropped
    assert ledger["packets"]["received"] == n_sent
    n_delivered = n_sent - sum(dropped.values())
    received = Received(np.fromfile(run.directory / "records", RECORD))
    assert run.receiver.tally.n_broken == 0
    assert received.repeats_are_alike
    assert received.disordered == []
    tool = ledger["tools"]["ids"]
    assert (received.n_unique, len(np.unique(received.numbers))) == (n_delivered, n_delivered)
    assert tool["delivered_frames"] == tool["wanted_frames"] == n_delivered
    assert received.n_gaps == 0
    assert received.n_repeated <= tool["repeated_frames_at_most"]
    in_file = [read(frame) for _, frame in read_pcap((run.directory / "recorder.pcap").read_bytes())[1]]
    assert None not in in_file
    assert sorted(row[1] for row in in_file if row) == received.numbers.tolist()
    assert ledger["tools"]["recorder"]["repeated_frames_at_most"] == 0
    metered = ledger["flows"]
    assert metered["metered_packets"] + sum(metered["unmetered_packets"].values()) == n_delivered
    names = ", ".join(f"'{path}'" for path in everything(run.directory / "store"))
    counted, n_rows, n_numbers = (
        duckdb.connect()
        .execute(f"SELECT sum(packets + packets_back), count(*), count(DISTINCT (run, lane, number)) FROM read_parquet([{names}])")
        .fetchone()
    )
    assert (counted, n_rows) == (metered["metered_packets"], n_numbers)
    most = tool["repeated_frames_at_most"]
    run.tell(f"sent {n_sent:,}, delivered {n_delivered:,}, dropped {dropped}, repeated {received.n_repeated:,} of {most:,} at most")


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
    left = size("kills", 44, 1000 * len(KINDS))
    ready_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    while left > 0:
        n = min(left, ROUNDS_OF_A_RUN * len(KINDS))
        for kind, times in live_run(wires, tmp_path / f"run-{left}", chance, n, tell).items():
            ready_s[kind] += times
        left -= n
        tell(f"{left} left; {figures(ready_s)}")
    of_workers = [t for kind in WORKERS for t in ready_s[kind]]
    assert np.percentile(of_workers, 99) < (READY_S if LONG else READY_IN_CI_S)


@pytest.mark.parametrize("n", [1, 2], ids=["one-each", "two-each"])
def test_kills_of_a_replay(tmp_path: Path, n: int) -> None:
    """A file is delivered byte for byte, whoever dies."""
    number = seed()
    tell = teller(number)
    chance = random.Random(number)
    left = size("kills_of_a_replay", 8, 2000)
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
                pause(chance, GAP_S / 2)
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
