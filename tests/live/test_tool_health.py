"""A tool dies while traffic flows: its flows go to the other member of the group within a second, nobody else notices, they come back."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.core.layout import TOOL_ALIVE, TOOL_DEAD
from tests.cli.tapmesh import Broker, running, tapmesh, unique_name
from tests.live.test_veth import SO_RCVBUFFORCE, send
from tests.netns import Namespace, connect, needs_root
from tests.packets import udp_frame
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

SEEN_S = 1.0
N_FLOWS = 32
CONFIG = """
node: live
inputs:
  span0: {{kind: afpacket, interface: b0}}
tools:
  one: {{tunnel: {{kind: vxlan, remote: 10.99.1.2, vni: 1}}, health: {{kind: icmp}}}}
  two: {{tunnel: {{kind: vxlan, remote: 10.99.2.2, vni: 2}}, health: {{kind: icmp}}}}
groups:
  sensors: {{members: [one, two], mode: {mode}}}
maps:
  - {{name: all, rules: [{{pass: "udp"}}], to: sensors}}
http: 127.0.0.1:{port}
"""


class Tool:
    """A host with a VXLAN port; `flows`: the numbers that it got of each flow."""

    def __init__(self, host: Namespace, interface: str, address: str) -> None:
        self.host, self.interface, self.address = host, interface, address
        self.flows: dict[int, list[int]] = {}
        with host.inside():
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
            self.socket.bind(("0.0.0.0", 4789))

    def take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                payload = self.socket.recv(2048)[8 + 14 + 20 + 8 :]  # VXLAN, Ethernet, IPv4, UDP
                self.flows.setdefault(int.from_bytes(payload[:4], "big"), []).append(int.from_bytes(payload[4:8], "big"))


@dataclass
class Scene:
    """One packet of every flow a round."""

    source: Namespace
    broker: Namespace
    one: Tool
    two: Tool
    rounds: int = 0

    def round(self) -> int:
        """Its number. What has arrived is taken."""
        number = self.rounds
        self.rounds += 1
        frames = []
        for flow in range(N_FLOWS):
            payload = flow.to_bytes(4, "big") + number.to_bytes(4, "big")
            frames.append(udp_frame(f"10.1.0.{flow + 1}", 5000 + flow, "10.2.0.1", 53, payload))
        send(self.source, "a0", frames)
        for tool in (self.one, self.two):
            tool.take()
        return number

    def until_at(self, tool: Tool, flows: set[int], deadline_s: float = 60.0) -> None:
        """Until `tool` has got a packet of each of `flows` that was sent from now on."""
        since = self.rounds

        def there() -> bool:
            self.round()
            return all(max(tool.flows.get(flow, [-1])) >= since for flow in flows)

        until(there, f"the flows at {tool.address}", deadline_s)


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
            tools.append(Tool(host, "c0", f"10.99.{number}.2/24"))
            closing.enter_context(tools[-1].socket)
        yield Scene(a, b, *tools)


@contextlib.contextmanager
def brokering(scene: Scene, directory: Path, mode: str) -> Iterator[tuple[Broker, int]]:
    """And the port of its HTTP."""
    with scene.broker.inside():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = directory / "live.yaml"
        config.write_text(CONFIG.format(mode=mode, port=port))
        broker = contextlib.ExitStack()
        started = broker.enter_context(running(config, directory, unique_name()))
    with broker:
        started.wait_up()
        until(lambda: states(started) == {"one": TOOL_ALIVE, "two": TOOL_ALIVE}, "both tools to answer")
        yield started, port


def states(broker: Broker) -> dict[str, int]:
    return dict(zip(("one", "two"), broker.pipeline().tool_state[:2].tolist(), strict=True))


def healthz(scene: Scene, port: int) -> str:
    """It also misses the interfaces: /sys shows those of the test."""
    with scene.broker.inside():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()


@pytest.mark.parametrize("mode", ["share", "failover"])
def test_flows_of_a_dead_tool_go_to_the_other_within_a_second_and_come_back(scene: Scene, tmp_path: Path, mode: str) -> None:
    every = set(range(N_FLOWS))
    with brokering(scene, tmp_path, mode) as (broker, port):
        first = scene.round()
        until(lambda: scene.round() and set(scene.one.flows) | set(scene.two.flows) == every, "every flow somewhere")
        ones, twos = set(scene.one.flows), set(scene.two.flows)
        assert not ones & twos
        assert bool(twos) == (mode == "share")
        assert ones

        scene.one.host.ip("addr", "del", scene.one.address, "dev", "c0")
        scene.until_at(scene.two, every, SEEN_S)
        assert states(broker) == {"one": TOOL_DEAD, "two": TOOL_ALIVE}
        assert json.loads(tapmesh("status", "--name", broker.name, "--json").stdout)["alive"] == {"one": False, "two": True}
        assert "sensors" not in healthz(scene, port)

        broker.kill("encapsulate")  # whoever comes after it knows who is dead
        scene.until_at(scene.two, every)
        got_before = sum(map(len, scene.one.flows.values()))
        scene.one.host.ip("addr", "add", scene.one.address, "dev", "c0")
        scene.until_at(scene.one, ones)
        assert sum(map(len, scene.one.flows.values())) > got_before
        events = [(line["event"], line["tool"]) for line in broker.log if line["event"] in ("tool_alive", "tool_dead")]
        assert sorted(events[:2]) == [("tool_alive", "one"), ("tool_alive", "two")]
        assert events[2:] == [("tool_dead", "one"), ("tool_alive", "one")]
        assert broker.stop() == 0
        ledger = broker.ledger()
    scene.one.take()
    scene.two.take()
    for flow in twos:  # its own flows: all of them, each once, in order
        assert scene.two.flows[flow] == list(range(first, scene.rounds))
    for flow in ones:  # taken over for a while
        assert scene.two.flows[flow] == sorted(scene.two.flows[flow])
        assert not set(scene.two.flows[flow]) & set(scene.one.flows[flow])
    assert ledger["balanced"] is True
    received = ledger["ledger"]["inputs"]["span0"]["received_packets"]
    assert received == scene.rounds * N_FLOWS
    tools = ledger["ledger"]["tools"]
    assert sum(tool["delivered_frames"] + sum(tool["dropped_frames"].values()) for tool in tools.values()) == received
    assert tools["two"]["delivered_frames"] == sum(map(len, scene.two.flows.values()))


def test_a_group_of_which_nobody_is_there_is_told_and_what_is_known_outlives_the_supervisor(scene: Scene, tmp_path: Path) -> None:
    with brokering(scene, tmp_path, "share") as (broker, port):
        for tool in (scene.one, scene.two):
            tool.host.ip("addr", "del", tool.address, "dev", "c0")
        dead = {"one": TOOL_DEAD, "two": TOOL_DEAD}
        until(lambda: states(broker) == dead, "both to be dead", SEEN_S)
        assert "group sensors: all members are dead: one, two" in healthz(scene, port).splitlines()
        broker.process.kill()
        broker.process.wait()
        scene.one.host.ip("addr", "add", scene.one.address, "dev", "c0")
        assert states(broker) == dead
        alive = [line for line in tapmesh("status", "--name", broker.name).stdout.splitlines() if line.startswith(("one ", "two "))]
        assert all(line.split()[1] == "dead" for line in alive)
        with scene.broker.inside():
            config = tmp_path / "live.yaml"
            next_one = contextlib.ExitStack()
            again = next_one.enter_context(running(config, tmp_path, broker.name))
        with next_one:
            until(lambda: again.events("pipeline_adopted"), "the next supervisor")
            until(lambda: states(broker) == {"one": TOOL_ALIVE, "two": TOOL_DEAD}, "the one that is back")
            assert [(line["event"], line["tool"]) for line in again.log if line["event"].startswith("tool_")] == [("tool_alive", "one")]
            assert again.stop() == 0
