"""A pipeline between two wires under a steady load, and what became of its packets: by its ledger, who receives, its file and its store."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from broker.cli.common import attach
from broker.supervisor.companions import MODULE as COMPANIONS
from broker.supervisor.ledger import Ledger, balance
from broker.supervisor.processes import find
from broker.supervisor.snapshot import Reader
from tests.again import ROOT
from tests.cli.tapmesh import Broker, running, unique_name
from tests.endurance.numbered import RECORD, Received, Tally, read
from tests.flows.store.test_parquet import everything
from tests.live.test_veth import Wires
from tests.netns import Namespace
from tests.packets import read_pcap
from tests.waiting import until

duckdb = pytest.importorskip("duckdb")

RATE = 3000
CONFIG = """
inputs:
  span0: INPUT
tools:
  ids: {tunnel: {kind: gre, remote: 10.99.0.2, key: 7, sequence: true}}
  recorder: {kind: pcap, file: DIRECTORY/recorder.pcap}
maps:
  - {name: all, rules: [pass: udp], to: [ids, recorder]}
flows:
  idle_s: 2
  exports: {lines: {kind: json, file: DIRECTORY/flows.json}}
  store: {kind: parquet, directory: DIRECTORY/store, flush_s: 1}
stages: {capture: LANES, filter: 2, encapsulate: 2, send: 2}
"""
INTERFACE = "{kind: afpacket, interface: b0}"
TUNNEL = "{kind: tunnel, listen: gre, from: [10.98.0.1]}"


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
    sender: Peer
    receiver: Peer
    tell: Callable[[str], None]
    brokers: list[Broker] = field(default_factory=list)

    @property
    def broker(self) -> Broker:
        """The last that was started."""
        return self.brokers[-1]

    def start(self) -> None:
        with self.wires.b.inside():
            self.brokers.append(self.stack.enter_context(running(self.directory / "c.yaml", self.directory, self.name)))
        until(lambda: self.broker.events("pipeline_up"), "all workers to be up")
        until(lambda: len(find(self.name, COMPANIONS)) == 2, "exporter and store")

    def host(self) -> int:
        """The pid of the stage host: workers have the same command line, but names of their own."""
        found: list[int] = []

        def one() -> bool:
            found[:] = [pid for pid in find(self.name) if not name_of(pid).startswith("tm-")]
            return len(found) == 1

        until(one, "a single host")
        return found[0]

    def hosts_ready(self) -> set[int]:
        """pids of all that have come up: a host says so where its supervisor logs."""
        return {line["pid"] for broker in self.brokers for line in broker.events("host_ready")}

    def goes_on(self) -> None:
        """Packets that are sent from now on arrive. (Frames that wait in rings now are fewer than this.)"""
        wanted = self.receiver.tally.n + RATE // 10
        until(lambda: self.receiver.tally.n > wanted, "packets to go on arriving")

    def ledger(self) -> Ledger:
        """As `tapmesh status` has it."""
        pipeline, names = attach(self.name)
        return balance(Reader(pipeline).take(names))


def name_of(pid: int) -> str:
    """Empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def loaded(wires: Wires, directory: Path, tell: Callable[[str], None], *, source: str = INTERFACE, n_lanes: int = 1) -> Iterator[Run]:
    directory.mkdir()
    config = CONFIG.replace("DIRECTORY", str(directory)).replace("INPUT", source).replace("LANES", str(n_lanes))
    (directory / "c.yaml").write_text(config)
    mac = "-"
    if source == TUNNEL:
        wires.b.ip("addr", "add", "10.98.0.2/24", "dev", "b0")
        mac = json.loads(wires.b.ip("-j", "link", "show", "b0"))[0]["address"]
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(peer(wires.c, directory / "received", "receive", directory / "records"))
        assert receiver.process.stdout is not None
        assert receiver.process.stdout.readline() == "ready\n"
        sender = Peer(receiver.process, receiver.tally)
        run = Run(wires, directory, unique_name(), stack, sender, receiver, tell)
        run.start()
        run.sender = stack.enter_context(peer(wires.a, directory / "sent", "send", "a0", RATE, mac))
        yield run


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


OVERFLOWED = {"kernel", "shed_in_kernel"}


def check(run: Run, may_drop: set[str] = OVERFLOWED) -> None:
    """Stop it. All that was promised of what was sent, by the ledger, the receiver, the file and the store; `may_drop`: reasons."""
    run.sender.stop()
    until(lambda: everything(run.directory / "store"), "the store to have written")  # it may just have been killed
    assert run.broker.stop() == 0, run.broker.stderr
    lost = kernel_lost(run)
    run.receiver.stop()
    closed = run.broker.ledger()
    assert (closed["balanced"], closed["in_flight"], closed["faults"]) == (True, 0, [])
    assert not lost, f"the test itself lost packets: {lost}"
    assert run.sender.tally.n_broken == 0
    n_sent = run.sender.tally.n
    ledger = closed["ledger"]
    dropped = {reason: n for reason, n in ledger["packets"]["dropped"].items() if n}
    assert set(dropped) <= may_drop, dropped
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
    files = run.directory.glob("recorder*.pcap")  # one for each lane
    in_file = [read(frame) for path in files for _, frame in read_pcap(path.read_bytes())[1]]
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
