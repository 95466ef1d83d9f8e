"""The main job on wires: frames sent in one namespace, captured, filtered and encapsulated by the broker in a second, received in a third.

What should arrive is what libpcap selects of what was sent; raw sockets, a UDP socket and tcpdump with tshark say what did.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.tapmesh import Broker, running, unique_name
from tests.libpcap import Filter, needs_libpcap
from tests.netns import Namespace, connect, needs_root
from tests.packets import arp, ethernet, fragments, tcp, tcp_frame, udp_frame
from tests.waiting import DEADLINE_S, until

pytestmark = [pytest.mark.root, needs_root, needs_libpcap]

SO_RCVBUFFORCE = 33  # asm-generic/socket.h
WEB = "tcp port 443 or (vlan 30 and udp)"
DATABASE = "ip6 and tcp"
CONFIG = f"""
node: live
inputs:
  span0: {{{{kind: afpacket, interface: b0}}}}
tools:
  ids: {{{{tunnel: {{{{kind: gre, remote: 10.99.0.2, key: 7, sequence: true, checksum: true}}}}}}}}
  v6: {{{{tunnel: {{{{kind: gre, remote: "fd99::2"}}}}}}}}
  udp: {{{{tunnel: {{{{kind: gre-udp, remote: 10.99.0.2, sequence: true}}}}}}}}
  recorder: {{{{kind: pcap, file: {{recorder}}}}}}
maps:
  - {{{{name: web, rules: [{{{{pass: "{WEB}"}}}}], to: [ids, udp]}}}}
  - {{{{name: database, rules: [{{{{pass: "{DATABASE}"}}}}], to: [v6, recorder]}}}}
stages: {{{{capture: 1, filter: {{filter}}, encapsulate: {{encapsulate}}, send: {{send}}}}}}
"""


@dataclass
class Wires:
    """A sends on a0; B captures b0 and delivers over b1; C receives on c0."""

    a: Namespace
    b: Namespace
    c: Namespace


@pytest.fixture
def wires() -> Iterator[Wires]:
    with contextlib.ExitStack() as closing:
        a, b, c = (closing.enter_context(contextlib.closing(Namespace())) for _ in range(3))
        connect(a, "a0", b, "b0", mtu=9000, quiet=True)
        connect(b, "b1", c, "c0")
        for host, name, number in ((b, "b1", 1), (c, "c0", 2)):
            host.ip("addr", "add", f"10.99.0.{number}/24", "dev", name)
            host.ip("addr", "add", f"fd99::{number}/64", "dev", name, "nodad")
        yield Wires(a, b, c)


def traffic() -> list[bytes]:
    """Some of each kind; sizes up to frames that need fragments on the way out."""
    frames = []
    for i in range(150):
        payload = i.to_bytes(4, "big") * (i * 3 + 1)
        client = f"10.1.{i % 5}.{i % 50 + 1}"
        frames += [
            tcp_frame(client, 30_000 + i, "10.2.0.1", 443, payload[:1440]),
            tcp_frame("10.2.0.1", 443, client, 30_000 + i, payload[:1440]),
            udp_frame(client, 5000 + i, "10.2.0.9", 53, payload[:100]),
            udp_frame(client, 5000 + i, "10.2.0.9", 514, payload[:200], vlans=(30,)),
            udp_frame(client, 5000 + i, "10.2.0.9", 514, payload[:200], vlans=(31,)),
            tcp_frame("2001:db8::5", 40_000 + i, "2001:db8::6", 5432, payload[:700]),
        ]
    frames += [ethernet(arp(1, ("02:00:00:00:00:0a", "10.1.0.1"), ("00:00:00:00:00:00", "10.1.0.2")), type=0x0806)] * 3
    return frames


class Receiver:
    """A raw or UDP socket in C that keeps the inner frames and sequence numbers it gets."""

    def __init__(self, host: Namespace, family: int, *, port: int = 0) -> None:
        with host.inside():
            kind, protocol = (socket.SOCK_DGRAM, 0) if port else (socket.SOCK_RAW, socket.IPPROTO_GRE)
            self.socket = socket.socket(family, kind, protocol)
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
            if port:
                self.socket.bind(("10.99.0.2", port))
        self._skips_ip = family == socket.AF_INET and not port  # raw IPv4 sockets get the IP header too
        self.frames: list[bytes] = []
        self.numbers: list[int] = []

    def take(self) -> None:
        while select.select([self.socket], [], [], 0)[0]:
            packet = self.socket.recv(65_536)
            at = (packet[0] & 15) * 4 if self._skips_ip else 0
            flags, protocol = struct.unpack_from("!HH", packet, at)
            assert protocol == 0x6558
            at += 4 + (4 if flags & 0x8000 else 0) + (4 if flags & 0x2000 else 0)
            if flags & 0x1000:
                self.numbers.append(struct.unpack_from("!I", packet, at)[0])
                at += 4
            self.frames.append(packet[at:])


@contextlib.contextmanager
def tcpdump(host: Namespace, interface: str, path: Path) -> Iterator[None]:
    with host.inside():
        process = subprocess.Popen(
            ["tcpdump", "-U", "--immediate-mode", "-B", "65536", "-s", "2048", "-Z", "root", "-i", interface, "-w", str(path)],
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
    assert process.stderr is not None
    for line in process.stderr:
        if "listening on" in line:
            break
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)


def send(host: Namespace, interface: str, frames: list[bytes]) -> None:
    with host.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((interface, 0))
        for frame in frames:
            sender.send(frame)


def start(wires: Wires, directory: Path, stack: contextlib.ExitStack, **counts: int) -> Broker:
    config = directory / "live.yaml"
    workers = {"filter": 1, "encapsulate": 1, "send": 1, **counts}
    config.write_text(CONFIG.format(recorder=directory / "recorder.pcap", **workers))
    with wires.b.inside():
        broker = stack.enter_context(running(config, directory, unique_name()))
    return broker.wait_up()


def inner_frames(path: Path) -> list[bytes]:
    """GRE in IPv4 as tshark decapsulates it, fragments put together.

    The outer Ethernet header is cut off first, so that Ethernet can be disabled and the inner frames come as data.
    """
    gre, bare = path.with_suffix(".gre"), path.with_suffix(".raw")
    for command in (
        ["tcpdump", "-Z", "root", "-r", path, "-w", gre, "ip proto 47"],
        ["editcap", "-L", "-C", "14", "-T", "rawip", gre, bare],
    ):
        subprocess.run(command, check=True, capture_output=True)
    command = ["tshark", "-n", "-r", bare, "--disable-protocol", "eth", "-Y", "gre", "-T", "fields", "-e", "data.data"]
    return [bytes.fromhex(line) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


@pytest.mark.parametrize("counts", [{}, {"filter": 2, "encapsulate": 2, "send": 2}], ids=["one-each", "two-each"])
def test_exactly_what_should_arrive_arrives_in_order(wires: Wires, tmp_path: Path, counts: dict[str, int]) -> None:
    frames = traffic()
    web, database = Filter(WEB), Filter(DATABASE)
    expected_web = [frame for frame in frames if web(frame, len(frame))]
    expected_database = [frame for frame in frames if database(frame, len(frame))]
    assert len(expected_web) > 400
    assert max(map(len, expected_web)) > 1480  # GRE makes it longer than the way out
    dump = tmp_path / "c0.pcap"
    with contextlib.ExitStack() as stack:
        receivers = [Receiver(wires.c, socket.AF_INET), Receiver(wires.c, socket.AF_INET, port=4754), Receiver(wires.c, socket.AF_INET6)]
        stack.callback(lambda: [r.socket.close() for r in receivers])
        stack.enter_context(tcpdump(wires.c, "c0", dump))
        broker = start(wires, tmp_path, stack, **counts)
        for at in range(0, len(frames), 50):
            send(wires.a, "a0", frames[at : at + 50])
            for receiver in receivers:
                receiver.take()

        def all_there() -> bool:
            for receiver in receivers:
                receiver.take()
            return [len(r.frames) for r in receivers] == [len(expected_web), len(expected_web), len(expected_database)]

        until(all_there, "all frames at the receivers", 20)
        until(lambda: len(inner_frames(dump)) >= len(expected_web), "all frames in tcpdump's file", 20)
        assert broker.stop() == 0
        ledger = broker.ledger()
        assert all_there()
    for receiver in receivers[:2]:
        in_order = counts == {}
        assert (receiver.frames == expected_web) if in_order else (sorted(receiver.frames) == sorted(expected_web))
        assert sorted(receiver.numbers) == list(range(len(expected_web)))
        assert flows_in_order(receiver.frames, expected_web)
    assert sorted(receivers[2].frames) == sorted(expected_database)
    assert flows_in_order(receivers[2].frames, expected_database)
    assert sorted(inner_frames(dump)) == sorted(expected_web)
    assert ledger["balanced"] is True
    assert ledger["ledger"]["inputs"]["span0"]["received_packets"] == len(frames)


def flows_in_order(frames: list[bytes], expected: list[bytes]) -> bool:
    """Within each pair of addresses and ports, and each direction, the order is the one they were sent in."""

    def by_flow(some: list[bytes]) -> dict[bytes, list[bytes]]:
        flows: dict[bytes, list[bytes]] = {}
        for frame in some:
            at = 18 if frame[12:14] == b"\x81\x00" else 14
            key = frame[at + 12 : at + 24] if frame[at] >> 4 == 4 else frame[at + 8 : at + 44]
            flows.setdefault(key, []).append(frame)
        return flows

    return by_flow(frames) == by_flow(expected)


def delivered_when_stopped_at_once(wires: Wires, directory: Path, frames: list[bytes]) -> list[bytes]:
    """What the first tool gets of `frames`; the ledger closes."""
    with contextlib.ExitStack() as stack:
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        broker = start(wires, directory, stack)
        send(wires.a, "a0", frames)
        assert broker.stop() == 0
        receiver.take()
        assert broker.ledger()["balanced"] is True
    return receiver.frames


def test_what_was_captured_is_delivered_when_it_is_stopped_at_once(wires: Wires, tmp_path: Path) -> None:
    frames = [f for f in traffic() if Filter(WEB)(f, len(f))]
    delivered = delivered_when_stopped_at_once(wires, tmp_path, frames)
    assert delivered == frames[: len(delivered)]
    assert len(delivered) == len(frames)


def test_fragments_of_one_datagram_go_the_way_of_their_flow(wires: Wires, tmp_path: Path) -> None:
    """A later fragment shows no port: it goes where its first went, and where that is not known it is delivered."""

    def pieces(source: str, port: int) -> list[bytes]:
        segment = tcp(4000, port, payload=bytes(range(256)) * 12)
        return [ethernet(packet) for packet in fragments(source, "10.2.0.1", 6, segment, size=1000)]

    web, other, headless = pieces("10.1.0.1", 443), pieces("10.1.0.2", 22), pieces("10.1.0.3", 22)[1:]
    sent = [piece for datagram in zip(web, other, strict=True) for piece in datagram] + headless
    assert delivered_when_stopped_at_once(wires, tmp_path, sent) == web + headless
