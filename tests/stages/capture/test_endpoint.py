"""The far end of tunnels on a host of the test's own: plain sockets, and the kernel's vxlan device, send to it."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.core.layout import Geometry
from broker.core.model import Input
from broker.core.senders import Sender, read_senders
from stages.capture.errors import SourceError
from tests import packets as p
from tests.netns import Namespace, connect, needs_root
from tests.stages.capture.support import SLOT, Worker
from tests.stages.wire.tunnels import CASES, FRAME, PORTS, WRONG, Case, erspan3, vxlan
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

ANY = ("0.0.0.0/0", "::/0")
ENDS = {4: "127.0.0.1", 6: "::1"}
_REASONS = ("kernel", "malformed", "source", "key", "protocol", "checksum", "oversize")


@dataclass
class Host:
    """The test runs on it."""

    namespace: Namespace
    directory: Path
    workers: list[Worker] = field(default_factory=list)

    def worker(self, listen: str = "gre", *, senders: Sequence[str] = ANY, sizes: dict[str, int] | None = None, **more: Any) -> Worker:
        there = Input("remote", "tunnel", SLOT, listen=listen, senders=tuple(senders), port=PORTS.get(listen, 0), **more)  # type: ignore[arg-type]
        self.workers.append(Worker(self.directory, there, geometry=Geometry(**(sizes or {}))).start())
        return self.workers[-1]

    def senders(self) -> list[Sender]:
        return read_senders(self.directory, 1)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with contextlib.closing(Namespace()) as namespace, namespace.inside():
        made = Host(namespace, tmp_path)
        yield made
        for worker in made.workers:
            worker.die()


def send(listen: str, packets: Sequence[bytes], version: int = 4, source: str = "") -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    port = PORTS.get(listen, 0)
    kind = (socket.SOCK_DGRAM, 0) if port else (socket.SOCK_RAW, socket.IPPROTO_GRE)
    with socket.socket(family, *kind) as sender:
        if source:
            sender.bind((source, 0))
        for packet in packets:
            sender.sendto(packet, (ENDS[version], port))


def take(worker: Worker, n: int) -> list[bytes]:
    until(lambda: worker.step() == 0 and len(worker.records) >= n, f"{n} packets")
    return [r.data for r in worker.records]


def dropped(worker: Worker) -> dict[str, int]:
    return {reason: n for reason in _REASONS if (n := worker.count(f"dropped_{reason}"))}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_packet_in_any_tunnel_comes_out_as_it_went_in(host: Host, case: Case, version: int) -> None:
    worker = host.worker(case.listen)
    send(case.listen, [case.data] * 3, version)
    assert take(worker, 3) == [case.inside] * 3
    assert [r.wirelen for r in worker.records] == [len(case.inside)] * 3
    assert set(worker.inputs) == {SLOT}
    assert not dropped(worker)
    (sender,) = host.senders()
    assert (sender.address, sender.tunnel, sender.session, sender.received_packets) == (ENDS[version], case.tunnel, case.session, 3)
    assert sender.repeated_packets == (2 if case.sequence is not None else 0)
    assert (sender.delay_min_ns is not None) == (case.tunnel == "erspan3")


@pytest.mark.parametrize(("listen", "data", "why"), WRONG)
def test_what_is_no_packet_is_dropped_under_its_reason(host: Host, listen: str, data: bytes, why: str) -> None:
    worker = host.worker(listen)
    good = next(case for case in CASES if case.listen == listen)
    send(listen, [data, good.data])
    assert take(worker, 1) == [good.inside]
    assert dropped(worker) == {why: 1}


def test_only_listed_sources_and_the_wanted_key_are_taken(host: Host) -> None:
    worker = host.worker("gre", senders=["127.0.0.8/29", "2001:db8::/32"], key=7)
    packets = [p.gre(FRAME, key=7), p.gre(FRAME, key=8), p.gre(FRAME)]
    for source in ("127.0.0.8", "127.0.0.15"):
        send("gre", packets, source=source)
    for source in ("127.0.0.7", "127.0.0.16"):
        send("gre", packets, source=source)
    send("gre", packets, version=6)
    assert take(worker, 2) == [FRAME] * 2
    until(lambda: worker.step() == 0 and sum(dropped(worker).values()) == 13, "the others")
    assert dropped(worker) == {"source": 9, "key": 4}
    assert {s.address for s in host.senders()} == {"127.0.0.8", "127.0.0.15"}


def test_only_the_wanted_vni_is_taken(host: Host) -> None:
    worker = host.worker("vxlan", vni=5)
    send("vxlan", [vxlan(FRAME, 4), vxlan(FRAME, 5), vxlan(FRAME, 5 << 8 & 0xFFFFFF)])
    assert take(worker, 1) == [FRAME]
    assert dropped(worker) == {"key": 2}


def sized(n: int, length: int) -> bytes:
    return p.ethernet(struct.pack(">I", n) + bytes(length - 18), type=0x88B5)


@pytest.mark.parametrize("listen", ["gre", "gre-udp"])
def test_long_and_short_packets_come_in_order_over_many_blocks(host: Host, listen: str) -> None:
    """Up to the longest that IP carries: they come in fragments, and a block of the smallest size holds few of them."""
    frames = [sized(n, 60 + n * 7919 % 1900 if n % 3 else 65_000 - n) for n in range(300)]
    worker = host.worker(listen, sizes={"max_packets": 50}, buffer_bytes=1 << 26)
    host.namespace.ip("link", "set", "lo", "mtu", "1500")
    for at in range(0, 300, 10):
        send(listen, [p.gre(f, sequence=n) for n, f in enumerate(frames[at : at + 10], at)])
        until(lambda at=at: worker.step() >= 0 and len(worker.records) >= max(0, at - 40), "some of them")  # type: ignore[misc]
    assert take(worker, 300) == frames
    assert max(worker.blocks) <= 50
    (sender,) = host.senders()
    assert (sender.received_packets, sender.lost_packets, sender.reordered_packets) == (300, 0, 0)


def test_what_the_sockets_buffer_has_no_room_for_is_counted_twice_over(host: Host) -> None:
    """By the kernel as dropped, and by the sequence numbers as lost."""
    worker = host.worker("gre-udp", buffer_bytes=1 << 16)
    send("gre-udp", [p.gre(sized(n, 1000), sequence=n) for n in range(500)])
    worker.run_empty()
    send("gre-udp", [p.gre(sized(500, 1000), sequence=500)])
    worker.run_empty()
    n_taken = len(worker.records)
    assert 0 < n_taken < 500
    assert dropped(worker) == {"kernel": 501 - n_taken}
    (sender,) = host.senders()
    assert sender.received_packets == n_taken
    assert sender.lost_packets == worker.count("lost_packets") == 501 - n_taken
    assert sender.expected_packets == 501


def test_killed_before_it_publishes_the_packets_are_lost_and_after_it_they_are_not(host: Host) -> None:
    worker = host.worker("gre-udp")
    numbered = [p.gre(sized(n, 100), key=1, sequence=n) for n in range(40)]
    send("gre-udp", numbered[:10])
    until(lambda: worker.step() > 0, "the first block")  # published, and not yet folded
    worker.die()
    assert [s.received_packets for s in host.senders()] == [0]
    worker.start()
    send("gre-udp", numbered[10:20])
    until(lambda: worker.step(publish=False) > 0, "the second block")
    worker.die()
    worker.start()
    send("gre-udp", numbered[20:30])
    take(worker, 20)
    (sender,) = host.senders()
    assert (sender.received_packets, sender.lost_packets, sender.repeated_packets) == (20, 10, 0)


def test_it_stops_when_what_the_sockets_hold_is_given(host: Host) -> None:
    worker = host.worker("gre-udp", sizes={"max_packets": 16})
    send("gre-udp", [p.gre(sized(n, 100), sequence=n) for n in range(100)])
    worker.capture.stop()
    send("gre-udp", [p.gre(sized(n, 100), sequence=n) for n in range(100, 120)])
    while not worker.capture.finished:
        worker.step()
    assert [r.data for r in worker.records] == [sized(n, 100) for n in range(100)]
    assert not dropped(worker)
    assert [s.received_packets for s in host.senders()] == [100]


def test_times_are_those_of_the_kernel_and_delays_those_of_the_sender(host: Host) -> None:
    worker = host.worker("gre")
    before_ns = time.time_ns()
    stamps = [(time.time_ns() // 100_000 - 25) & 0xFFFF_FFFF, (time.time_ns() // 100_000 + 10_000) & 0xFFFF_FFFF]
    send("gre", [erspan3(FRAME, 1, n, stamp) for n, stamp in enumerate(stamps)])
    after_ns = time.time_ns()
    take(worker, 2)
    times = [r.ts_ns for r in worker.records]
    assert before_ns <= times[0] <= times[1] <= after_ns
    (sender,) = host.senders()
    assert sender.delay_max_ns is not None
    assert sender.delay_min_ns is not None
    spent_ns = after_ns - before_ns
    assert 2_400_000 <= sender.delay_max_ns <= 2_600_000 + spent_ns
    assert -1_000_100_000 <= sender.delay_min_ns <= -999_900_000 + spent_ns


def test_the_kernels_vxlan_device_is_understood(host: Host) -> None:
    """A device on another host sends; over IPv4 with and over IPv6 without a UDP checksum."""
    with contextlib.closing(Namespace()) as far:
        connect(far, "f0", host.namespace, "n0")
        for name, end, number in ((far, "f0", 1), (host.namespace, "n0", 2)):
            name.ip("addr", "add", f"10.9.0.{number}/24", "dev", end)
            name.ip("addr", "add", f"fd09::{number}/64", "dev", end, "nodad")
        for vni, options in ((4, ("10.9.0.1", "10.9.0.2", "udpcsum")), (6, ("fd09::1", "fd09::2", "udp6zerocsumtx"))):
            source, remote, checksum = options
            far.ip(
                "link", "add", f"vx{vni}", "type", "vxlan", "id", str(vni), "local", source, "remote", remote, "dstport", "4789", checksum
            )
            far.ip("link", "set", f"vx{vni}", "up")
        worker = host.worker("vxlan", senders=["10.9.0.0/24", "fd09::/64"])
        frames = [sized(n, 60 + n) for n in range(0, 1300, 100)]
        with far.inside():
            for vni in (4, 6):
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
                    sender.bind((f"vx{vni}", 0))
                    for frame in frames:
                        sender.send(frame)
        until(lambda: worker.step() == 0 and [r.data for r in worker.records if r.data[12:14] == b"\x88\xb5"] == 2 * frames, "all frames")
        assert {(s.address, s.session) for s in host.senders()} == {("10.9.0.1", 4), ("fd09::1", 6)}
        assert not dropped(worker)


def test_what_stands_in_the_way_is_told_in_words(host: Host) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", PORTS["geneve"]))
        with pytest.raises(SourceError, match=r"geneve port 6081: UDP port 6081 is taken by another program"):
            host.worker("geneve")
    with pytest.raises(SourceError, match=r"gre on 192\.0\.2\.77: 192\.0\.2\.77 is no address of this host"):
        host.worker("gre", address="192.0.2.77")


def test_an_address_of_our_own_takes_only_what_is_sent_to_it(host: Host) -> None:
    worker = host.worker("gre-udp", address="127.0.0.9")
    send("gre-udp", [p.gre(sized(1, 60))])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(p.gre(sized(2, 60)), ("127.0.0.9", PORTS["gre-udp"]))
    assert take(worker, 1) == [sized(2, 60)]
