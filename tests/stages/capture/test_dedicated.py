"""A dedicated interface: its frames are captured, and the host behind it hears nothing. Judges are the host's own IP stack, and tc."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.core.model import Input, Lane
from stages.capture.errors import SourceError
from tests.netns import Namespace, connect, needs_root
from tests.packets import ethernet, ipv4
from tests.stages.capture.support import SLOT, Worker
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

OURS, THEIRS = "10.9.1.1", "10.9.2.1"
OURS6 = "2001:db8::1/64"
ICMP = 1


@dataclass
class Hosts:
    """`broker` captures on "near", which has no address; it answers echoes for OURS, which is on another interface."""

    broker: Namespace
    other: Namespace
    directory: Path
    workers: list[Worker] = field(default_factory=list)

    def make(self) -> None:
        connect(self.other, "far", self.broker, "near")
        self.broker.ip("route", "replace", THEIRS, "dev", "near")
        self.broker.ip("neigh", "replace", THEIRS, "lladdr", "02:00:00:00:00:0a", "dev", "near")

    def worker(self, *, dedicated: bool = True, lane: Lane | None = None) -> Worker:
        live = Input("near", "afpacket", SLOT, interface="near", dedicated=dedicated)
        self.workers.append(Worker(self.directory, lane=lane or Lane(0, (live,))))
        return self.workers[-1]

    def tc(self, *words: str) -> str:
        return subprocess.run(["tc", *words], check=True, capture_output=True, text=True).stdout

    def hears(self) -> bool:
        """Whether the host answers an echo that arrives on "near". Either its answer comes, or the frame is in the drops of the filter;
        whichever it is, it has happened when `send` returns but for softirq, so the counter of the interface says when to look."""
        with self.other.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as far:
            far.bind(("far", 0x0800))
            answers = []
            mac = bytes.fromhex(address("near", self.broker).replace(":", ""))
            echo = struct.pack(">BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
            echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
            before = self.dropped()
            far.send(mac + ethernet(ipv4(THEIRS, OURS, ICMP, echo))[6:])
            far.setblocking(False)

            def told() -> bool:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        frame = far.recv(2048)
                        if frame[23] == ICMP and frame[34] == 0:
                            answers.append(frame)
                return bool(answers) or self.dropped() > before

            until(told, "an answer to the echo, or a drop at the ingress")
            return bool(answers)

    def dropped(self) -> int:
        """Frames dropped by tc at the ingress of "near"."""
        with self.broker.inside():
            words = self.tc("-s", "qdisc", "show", "dev", "near").split("qdisc ")
        return sum(int(w.split("dropped ")[1].split(",")[0]) for w in words if w.startswith(("clsact", "ingress")))


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    return 0xFFFF - (total % 0xFFFF)


def address(name: str, host: Namespace) -> str:
    return host.ip("-br", "link", "show", name).split()[2]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """The test runs on the broker's host."""
    with contextlib.closing(Namespace()) as broker, contextlib.closing(Namespace()) as other, broker.inside():
        made = Hosts(broker, other, tmp_path)
        broker.ip("addr", "add", f"{OURS}/32", "dev", "lo")
        made.make()
        yield made
        for worker in made.workers:
            worker.die()


def _drain(worker: Worker) -> None:
    worker.capture.stop()
    while not worker.capture.finished:
        worker.step()


def test_the_host_hears_nothing_while_it_is_captured_and_all_is_captured(hosts: Hosts) -> None:
    assert hosts.hears()
    before = hosts.tc("qdisc", "show", "dev", "near")
    worker = hosts.worker().start()
    for _ in range(3):
        assert not hosts.hears()
    until(lambda: worker.step() == 0 and sum(r.data[23:24] == b"\x01" for r in worker.records) == 3, "the echoes in the capture")
    _drain(worker)
    assert hosts.hears()
    assert hosts.tc("qdisc", "show", "dev", "near") == before


def test_a_killed_worker_leaves_it_there_and_the_next_takes_it_over(hosts: Hosts) -> None:
    worker = hosts.worker().start()
    worker.die()
    assert not hosts.hears()
    worker.start()
    assert hosts.tc("filter", "show", "dev", "near", "ingress").count("handle") == 1
    _drain(worker)
    assert hosts.hears()


def test_a_start_that_is_not_dedicated_removes_what_a_killed_one_has_left(hosts: Hosts) -> None:
    hosts.worker().start().die()
    assert not hosts.hears()
    hosts.worker(dedicated=False).start()
    assert hosts.hears()
    assert "clsact" not in hosts.tc("qdisc", "show", "dev", "near")


def test_an_interface_that_comes_back_is_dedicated_again(hosts: Hosts) -> None:
    worker = hosts.worker().start()
    hosts.broker.ip("link", "del", "near")
    until(lambda: worker.step() == 0 and worker.capture.wait_fd == -1, "the socket closed")
    hosts.make()
    until(lambda: worker.step() >= 0 and worker.capture.wait_fd != -1, "the interface opened again")
    assert not hosts.hears()
    _drain(worker)
    assert hosts.hears()


def test_an_interface_that_comes_back_with_an_address_is_captured_without_it(hosts: Hosts) -> None:
    """Also by the first worker, which refuses only before it has captured anything."""
    worker = hosts.worker().start()
    hosts.broker.ip("link", "del", "near")
    until(lambda: worker.step() == 0 and worker.capture.wait_fd == -1, "the socket closed")
    connect(hosts.other, "far", hosts.broker, "near")
    hosts.broker.ip("addr", "add", "10.1.2.3/24", "dev", "near")
    with capture_logs() as logs:
        until(lambda: worker.step() >= 0 and worker.capture.wait_fd != -1, "the interface opened again")
    assert [line["event"] for line in logs] == ["ingress_drop_refused", "interface_returned"]
    assert "clsact" not in hosts.tc("qdisc", "show", "dev", "near")


@pytest.mark.parametrize("discipline", ["ingress", "clsact"])
def test_what_others_have_hung_there_stays(hosts: Hosts, discipline: str) -> None:
    """A discipline that was there, with and without a filter of its own."""
    for filters in (False, True):
        hosts.tc("qdisc", "add", "dev", "near", discipline)
        if filters:
            hosts.tc("filter", "add", "dev", "near", "ingress", "pref", "7", "bpf", "da", "bytecode", "1,6 0 0 4294967295")
        before = [hosts.tc(what, "show", "dev", "near", *words) for what, words in (("qdisc", ()), ("filter", ("ingress",)))]
        worker = hosts.worker().start()
        assert not hosts.hears()
        _drain(worker)
        assert [hosts.tc(what, "show", "dev", "near", *words) for what, words in (("qdisc", ()), ("filter", ("ingress",)))] == before
        hosts.tc("qdisc", "del", "dev", "near", discipline)


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_a_discipline_of_ours_stays_while_others_use_it(hosts: Hosts, side: str) -> None:
    worker = hosts.worker().start()
    hosts.tc("filter", "add", "dev", "near", side, "pref", "7", "bpf", "da", "bytecode", "1,6 0 0 4294967295")
    theirs = hosts.tc("filter", "show", "dev", "near", side)
    _drain(worker)
    assert "pref 7 " in theirs
    assert hosts.tc("filter", "show", "dev", "near", side).count("pref 7 ") == theirs.count("pref 7 ")
    assert hosts.hears()


def test_with_several_lanes_the_first_sees_to_it(hosts: Hosts) -> None:
    live = Input("near", "afpacket", SLOT, interface="near", dedicated=True)
    lanes = [Lane(n, (live,), fanout_group=4711, fanout_size=2, member=n) for n in range(2)]
    workers = [hosts.worker(lane=lane).start() for lane in lanes]
    _drain(workers[1])
    assert not hosts.hears()
    _drain(workers[0])
    assert hosts.hears()


USES = {
    "address": ([("addr", "add", "10.1.2.3/24", "dev", "near")], "it has the address 10.1.2.3/24"),
    "ip6": ([("addr", "add", OURS6, "dev", "near", "nodad")], f"it has the address {OURS6}"),
    "bridge": ([("link", "add", "br0", "type", "bridge"), ("link", "set", "near", "master", "br0")], "it is a port of br0"),
}


@pytest.mark.parametrize(("made", "told"), USES.values(), ids=USES.keys())
def test_the_host_is_not_cut_off(hosts: Hosts, made: list[tuple[str, ...]], told: str) -> None:
    """The first start is refused; an interface that changes while we run is captured without it."""
    worker = hosts.worker().start()
    worker.die()
    for words in made:
        hosts.broker.ip(*words)
    with capture_logs() as logs:
        worker.start()
    assert [(line["event"], line.get("reason")) for line in logs] == [("ingress_drop_removed", None), ("ingress_drop_refused", told)]
    assert "clsact" not in hosts.tc("qdisc", "show", "dev", "near")
    with pytest.raises(SourceError, match=f"^near: it cannot be dedicated, for this host would be cut off from it: {told}$"):
        hosts.worker().start()


def test_a_foreign_filter_at_our_place_is_left_alone_and_told(hosts: Hosts) -> None:
    hosts.tc("qdisc", "add", "dev", "near", "clsact")
    hosts.tc("filter", "add", "dev", "near", "ingress", "pref", "65520", "u32", "match", "u32", "0", "0", "flowid", ":1")
    before = hosts.tc("filter", "show", "dev", "near", "ingress")
    with capture_logs() as logs:
        worker = hosts.worker().start()
    assert [line["reason"] for line in logs] == ["another filter has the preference 65520 at its ingress"]
    _drain(worker)
    assert hosts.tc("filter", "show", "dev", "near", "ingress") == before


def test_without_the_capability_it_says_which(hosts: Hosts) -> None:
    script = """
import os
from broker.privileges import ingress_drop
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    ingress_drop.install("near")
except OSError as error:
    print(ingress_drop.in_words(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stdout == "it needs the capability CAP_NET_ADMIN (or root)\n"
