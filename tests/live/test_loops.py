"""Never a loop: brokers that capture where their own frames pass, and where others send them back.

In each test the loop would not end by itself: what is asked is that what was sent in is delivered once, and that the rest is counted.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.core.metrics import index
from broker.core.ring import read_counters
from tests.cli.tapmesh import Broker, running
from tests.netns import Namespace, connect, needs_root
from tests.packets import udp_frame
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

N = 500
PORT = 4754


def frames() -> list[bytes]:
    return [udp_frame("10.1.0.1", 4000 + n % 50, "10.2.0.1", 514, n.to_bytes(4, "big") + bytes(60)) for n in range(N)]


def write_config(path: Path, interface: str, tunnel: str, more: str = "") -> Path:
    path.write_text(
        f"""inputs: {{wire: {{kind: afpacket, interface: {interface}{more}}}}}
tools: {{far: {{tunnel: {{{tunnel}}}}}}}
collector: far
"""
    )
    return path


def count(broker: Broker, stage: str, name: str) -> int:
    memory = broker.pipeline().lanes[0]
    row = memory.geometry.row(stage, 0)
    at = index(stage, name)
    return int(read_counters(memory, row)[1][at]) + int(memory.live[row][at])


def closed(broker: Broker) -> tuple[int, dict[str, int], int]:
    """Captured, dropped at the door, delivered; the books balance."""
    assert broker.stop() == 0, broker.stderr
    ledger = broker.ledger()
    assert ledger["balanced"] is True
    wire, far = ledger["ledger"]["inputs"]["wire"], ledger["ledger"]["tools"]["far"]
    dropped = {reason: n for reason, n in wire["dropped_packets"].items() if n}
    return wire["captured_packets"], dropped, far["delivered_frames"] + sum(far["dropped_frames"].values())


def send(host: Namespace, interface: str, some: list[bytes]) -> None:
    with host.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((interface, 0))
        for frame in some:
            sender.send(frame)


@pytest.fixture
def near() -> Iterator[Namespace]:
    with contextlib.closing(Namespace()) as host:
        yield host


def test_a_broker_that_captures_on_lo_what_it_sends_on_lo(near: Namespace, tmp_path: Path) -> None:
    """Nobody listens, so the kernel answers with errors that quote the frames: these are our own too."""
    path = write_config(tmp_path / "c.yaml", "lo", f"kind: gre-udp, remote: 127.0.0.1, port: {PORT}")
    with near.inside(), running(path, tmp_path) as broker:
        broker.wait_up()
        send(near, "lo", frames())
        until(lambda: count(broker, "capture", "dropped_own") >= N // 2, "our own to come back")
        captured, dropped, sent = closed(broker)
    assert (captured, sent) == (N, N)
    assert set(dropped) == {"own"}


def test_a_broker_that_mirrors_the_interface_it_sends_on(near: Namespace, tmp_path: Path) -> None:
    """The receiver is asked for by ARP, has no GRE, and says so in ICMP errors that quote our packets."""
    with contextlib.closing(Namespace()) as far:
        connect(near, "n0", far, "f0")
        for host, end, number in ((near, "n0", 1), (far, "f0", 2)):
            with host.inside(), open(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6", "w") as file:
                file.write("1")
            host.ip("addr", "add", f"10.9.0.{number}/24", "dev", end)
        path = write_config(tmp_path / "c.yaml", "n0", "kind: gre, remote: 10.9.0.2, key: 5, sequence: true")
        with near.inside(), running(path, tmp_path) as broker:
            broker.wait_up()
            send(far, "f0", frames())
            until(lambda: count(broker, "capture", "dropped_own") >= 2, "an ARP answer and an ICMP error")
            until(lambda: count(broker, "capture", "captured_packets") >= N, "all frames")
            captured, dropped, sent = closed(broker)
    assert (captured, sent) == (N, N)
    assert set(dropped) == {"own"}


def test_two_brokers_that_mirror_each_other(near: Namespace, tmp_path: Path) -> None:
    """Each takes what the other sends for traffic, once; then it finds its own tunnel in the other's."""
    with contextlib.closing(Namespace()) as far, contextlib.ExitStack() as stack:
        connect(near, "n0", far, "f0", mtu=3000)
        for host, end, number in ((near, "n0", 1), (far, "f0", 2)):
            with host.inside(), open(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6", "w") as file:
                file.write("1")
            host.ip("addr", "add", f"10.9.0.{number}/24", "dev", end)
        brokers = []
        for host, name, interface, remote in ((near, "one", "n0", "10.9.0.2"), (far, "two", "f0", "10.9.0.1")):
            path = write_config(tmp_path / f"{name}.yaml", interface, f"kind: gre-udp, remote: {remote}, port: {PORT}")
            listener = stack.enter_context(listening(host, remote="0.0.0.0"))
            with host.inside():
                brokers.append(stack.enter_context(running(path, tmp_path)))
            assert listener
        one, two = brokers
        one.wait_up()
        two.wait_up()
        send(far, "f0", frames())
        until(lambda: count(one, "capture", "dropped_own") >= N, "all of ours to come back from the other")
        captured, dropped, sent = closed(one)
        captured_two, _, sent_two = closed(two)
    assert (captured, sent) == (N, N)
    assert set(dropped) == {"own"}
    assert (captured_two, sent_two) == (N, N)


@contextlib.contextmanager
def listening(host: Namespace, remote: str) -> Iterator[socket.socket]:
    """A receiver that takes the frames, so that no ICMP comes."""
    with host.inside():
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((remote, PORT))
    with opened:
        yield opened


@contextlib.contextmanager
def reflecting(host: Namespace) -> Iterator[threading.Event]:
    """Somebody who sends what comes to 127.0.0.1 on to 127.0.0.2, until told to stop: our frames at other addresses."""
    over = threading.Event()
    with host.inside():
        taking, giving = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taking.bind(("127.0.0.1", PORT))
    sink.bind(("127.0.0.2", PORT))

    def reflect() -> None:
        while not over.is_set():
            if select.select([taking], [], [], 0.05)[0]:
                data = taking.recv(65_536)
                if len(data) < 60_000:
                    giving.sendto(data, ("127.0.0.2", PORT))

    thread = threading.Thread(target=reflect)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()
        for opened in (taking, giving, sink):
            opened.close()


def test_the_breaker_opens_and_closes_when_the_loop_is_gone(near: Namespace, tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", "lo", f"kind: gre-udp, remote: 127.0.0.1, port: {PORT}, key: 9")
    with reflecting(near) as over, near.inside(), running(path, tmp_path) as broker:
        broker.wait_up()
        send(near, "lo", frames()[:100])
        until(lambda: broker.events("loop_found"), "the breaker to open")
        until(lambda: count(broker, "capture", "dropped_loop") > 0, "the rest of the loop to be dropped")
        over.set()
        until(lambda: broker.events("loop_tried"), "it to be tried again")
        before = count(broker, "capture", "captured_packets")
        send(near, "lo", frames()[:100])
        until(lambda: count(broker, "capture", "captured_packets") == before + 100, "traffic to pass again")
        assert not broker.events("loop_not_ours")
        _, dropped, _ = closed(broker)
    assert set(dropped) == {"own", "loop"}
