"""A tool refuses, vanishes, is forbidden, fills up, takes less and always comes back: the other gets every packet, and counters say why."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.tapmesh import Broker, running, tapmesh, unique_name
from tests.live.test_veth import SO_RCVBUFFORCE, send
from tests.netns import Namespace, connect, needs_root
from tests.packets import udp_frame
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

A_ROUND = 40
CONFIG = """
node: live
inputs:
  span0: {kind: afpacket, interface: b0}
tools:
  good: {tunnel: {kind: vxlan, remote: 10.99.1.2}}
  bad: {tunnel: {kind: vxlan, remote: 10.99.2.2, df: true}}
maps:
  - {name: all, rules: [pass: udp], to: [good, bad]}
"""


@dataclass
class Tool:
    """A host that takes VXLAN; `numbers`: of the packets that it got."""

    host: Namespace
    numbers: list[int] = field(default_factory=list)
    socket: socket.socket | None = None

    def open(self) -> None:
        with self.host.inside():
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
            self.socket.bind(("0.0.0.0", 4789))

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.socket is not None:
                self.numbers.append(int.from_bytes(self.socket.recv(2048)[50:54], "big"))  # behind VXLAN, Ethernet, IPv4 and UDP


@dataclass
class Scene:
    a: Namespace
    b: Namespace
    good: Tool
    bad: Tool
    sent: int = 0

    def round(self) -> None:
        """Some packets; what has arrived is taken."""
        numbers = range(self.sent, self.sent + A_ROUND)
        send(self.a, "a0", [udp_frame("10.1.0.1", 5000, "10.2.0.1", 53, n.to_bytes(4, "big") + bytes(1000)) for n in numbers])
        self.sent += A_ROUND
        self.good.take()
        self.bad.take()

    def until_it_is_back(self) -> None:
        since = self.sent

        def back() -> bool:
            self.round()
            return bool(self.bad.numbers) and self.bad.numbers[-1] >= since

        until(back, "the tool to get packets again")

    def until_told(self, broker: Broker, reason: str) -> None:
        """Rounds until the tool's own counter says so."""

        def told() -> bool:
            self.round()
            return counted(broker, reason) > 0

        until(told, f"frames counted as {reason}")


@pytest.fixture
def scene() -> Iterator[Scene]:
    with contextlib.ExitStack() as closing:
        a, b, c, d = (closing.enter_context(contextlib.closing(Namespace())) for _ in range(4))
        connect(a, "a0", b, "b0", quiet=True)
        tools = []
        for number, host in ((1, c), (2, d)):
            connect(b, f"b{number}", host, "c0")
            b.ip("addr", "add", f"10.99.{number}.1/24", "dev", f"b{number}")
            host.ip("addr", "add", f"10.99.{number}.2/24", "dev", "c0")
            tools.append(closing.enter_context(contextlib.closing(Tool(host))))
            tools[-1].open()
            # the kernel keeps only some frames while it asks for an address
            (link,) = json.loads(host.ip("-j", "link", "show", "c0"))
            b.ip("neigh", "add", f"10.99.{number}.2", "lladdr", link["address"], "dev", f"b{number}", "nud", "permanent")
        yield Scene(a, b, *tools)


def counted(broker: Broker, reason: str) -> int:
    done = tapmesh("status", "--name", broker.name, "--json")
    return int(json.loads(done.stdout)["ledger"]["tools"]["bad"]["dropped_frames"].get(reason, 0))


def queue(host: Namespace, does: str, *what: str) -> None:
    with host.inside():
        subprocess.run(["tc", "qdisc", does, "dev", "b2", "root", *what], check=True)


def test_whatever_happens_to_a_tool_the_other_gets_every_packet(scene: Scene, tmp_path: Path) -> None:
    config = tmp_path / "live.yaml"
    config.write_text(CONFIG)
    with contextlib.ExitStack() as stack:
        with scene.b.inside():
            broker = stack.enter_context(running(config, tmp_path, unique_name())).wait_up()
        scene.until_it_is_back()

        scene.bad.close()  # nobody listens: the host says so by ICMP
        until(lambda: scene.round() or broker.events("tool_unheard"), "word that nobody listens")
        scene.bad.open()
        scene.until_it_is_back()

        scene.b.ip("link", "set", "b2", "down")
        scene.until_told(broker, "unreachable")
        scene.b.ip("link", "set", "b2", "up")
        scene.until_it_is_back()

        scene.b.ip("route", "add", "prohibit", "10.99.2.2/32")
        scene.until_told(broker, "forbidden")
        scene.b.ip("route", "del", "prohibit", "10.99.2.2/32")
        scene.until_it_is_back()

        queue(scene.b, "add", "tbf", "rate", "80kbit", "burst", "3000", "limit", "20000")
        scene.until_told(broker, "full")
        queue(scene.b, "del")
        scene.until_it_is_back()

        scene.b.ip("link", "set", "b2", "mtu", "1000")
        scene.until_told(broker, "too_big")
        scene.b.ip("link", "set", "b2", "mtu", "1500")
        scene.until_it_is_back()

        assert broker.stop() == 0
        ledger = broker.ledger()
        scene.good.take()
        told = {(line["event"], line.get("errno", line.get("reason"))) for line in broker.log if line.get("tool") == "bad"}
    assert scene.good.numbers == list(range(scene.sent))
    assert scene.bad.numbers == sorted(set(scene.bad.numbers)), "in order, none twice"
    assert ledger["balanced"] is True
    delivered = {name: tool["delivered_frames"] for name, tool in ledger["ledger"]["tools"].items()}
    drops = {name: {r: n for r, n in tool["dropped_frames"].items() if n} for name, tool in ledger["ledger"]["tools"].items()}
    assert (delivered["good"], drops["good"]) == (scene.sent, {})
    assert drops["bad"].keys() == {"unreachable", "forbidden", "full", "too_big"}
    assert delivered["bad"] + sum(drops["bad"].values()) == scene.sent
    # Of an interface that is down the packet socket says the one, the IP layer the other; which it is depends on when the news came.
    assert told & {("tool_refused", "ENETDOWN"), ("tool_refused", "ENETUNREACH")}
    assert told >= {
        ("tool_unheard", "Connection refused"),
        ("tool_refused", "EACCES"),
        ("tool_full", "No buffer space available"),
    }
