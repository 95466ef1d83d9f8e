"""Real questions to a real host behind a wire, which stops answering in every way there is; each must be seen within a second."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import structlog

from broker.core.layout import TOOL_ALIVE, TOOL_DEAD, TOOL_UNASKED, TOOLS
from broker.core.model import Config, Health, Tool, Tunnel
from broker.supervisor.probes import Prober, echo, neighbour, service
from broker.supervisor.probes.probe import CannotAskError, Probe
from tests.netns import Namespace, connect, needs_root
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

SEEN_S = 1.0
PORT = 4790
V4, V6 = "10.99.0.2", "fd99::2"
BEHIND = {"10.98.0.7": "10.99.0.2", "fd98::7": "fd99::2"}  # hosts, and the router to them


@dataclass
class Hosts:
    ours: Namespace
    theirs: Namespace
    state: np.ndarray[Any, np.dtype[np.int64]] = field(default_factory=lambda: np.zeros(TOOLS, np.int64))

    def probing(self, *tools: Tool) -> Prober:
        prober = Prober(self.state, structlog.get_logger())
        with self.ours.inside():  # and so will be its thread
            prober.follow(Config("n", (), tools, ()))
        return prober

    def address(self, what: str, address: str) -> None:
        prefix, nodad = ("64", ["nodad"]) if ":" in address else ("24", [])
        self.theirs.ip("addr", what, f"{address}/{prefix}", "dev", "c0", *(nodad if what == "add" else []))

    def wait(self, state: int, what: str, slots: slice = slice(0, 1), within_s: float = SEEN_S) -> None:
        until(lambda: bool((self.state[slots] == state).all()), what, within_s)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with contextlib.ExitStack() as closing:
        ours, theirs = (closing.enter_context(contextlib.closing(Namespace())) for _ in range(2))
        connect(ours, "b1", theirs, "c0")
        made = Hosts(ours, theirs)
        for host, name, number in ((ours, "b1", 1), (theirs, "c0", 2)):
            host.ip("addr", "add", f"10.99.0.{number}/24", "dev", name)
            host.ip("addr", "add", f"fd99::{number}/64", "dev", name, "nodad")
        for host, router in BEHIND.items():
            ours.ip("route", "add", host, "via", router)
        yield made


@pytest.fixture
def listening(hosts: Hosts) -> Iterator[Callable[[], None]]:
    """A service at both addresses of theirs; calling it ends it."""
    with hosts.theirs.inside():
        sockets = [socket.create_server((V4, PORT)), socket.create_server((V6, PORT), family=socket.AF_INET6)]

    def stop() -> None:
        for one in sockets:
            one.close()

    yield stop
    stop()


def tool(kind: Any, remote: str, slot: int = 0, **tunnel: Any) -> Tool:
    return Tool(f"{kind}{slot}", slot, Tunnel("vxlan", remote, **tunnel), health=Health(kind, PORT if kind == "tcp" else 0))


QUESTIONS = [(kind, remote) for kind in ("icmp", "tcp", "neighbour") for remote in (V4, V6)] + [("neighbour", host) for host in BEHIND]


@pytest.mark.usefixtures("listening")
def test_a_host_that_loses_its_address_is_dead_within_a_second_and_comes_back(hosts: Hosts) -> None:
    """Asked in each way at once; a host behind a router is as its router."""
    tools = [tool(kind, remote, slot) for slot, (kind, remote) in enumerate(QUESTIONS)]
    every = slice(0, len(tools))
    with contextlib.closing(hosts.probing(*tools)) as prober:
        hosts.wait(TOOL_ALIVE, "all to answer", every)
        for address in (V4, V6):
            hosts.address("del", address)
        hosts.wait(TOOL_DEAD, "all to be seen dead", every)
        for address in (V4, V6):
            hosts.address("add", address)
        hosts.wait(TOOL_ALIVE, "all to be back", every, 3.0)  # the kernel asks for the neighbour once a second
        prober.check()


@pytest.mark.parametrize(("kind", "remote"), [("icmp", V4), ("icmp", V6), ("neighbour", V4), ("neighbour", V6)])
def test_a_link_that_goes_down_at_the_far_end_is_seen_within_a_second(hosts: Hosts, kind: str, remote: str) -> None:
    with contextlib.closing(hosts.probing(tool(kind, remote))):
        hosts.wait(TOOL_ALIVE, "it to answer")
        hosts.theirs.ip("link", "set", "c0", "down")
        hosts.wait(TOOL_DEAD, "it to be seen dead")


@pytest.mark.parametrize("remote", [V4, V6])
def test_a_service_that_stops_is_dead_though_its_host_is_there(hosts: Hosts, remote: str, listening: Callable[[], None]) -> None:
    with contextlib.closing(hosts.probing(tool("tcp", remote, 0), tool("icmp", remote, 1))):
        hosts.wait(TOOL_ALIVE, "both to answer", slice(0, 2))
        listening()
        hosts.wait(TOOL_DEAD, "the service to be seen dead")
        assert hosts.state[1] == TOOL_ALIVE
        with hosts.theirs.inside(), socket.create_server((remote, PORT), family=socket.AF_INET6 if ":" in remote else socket.AF_INET):
            hosts.wait(TOOL_ALIVE, "the service to be back")


def test_connections_leave_nothing_behind(hosts: Hosts, listening: Callable[[], None]) -> None:
    health = Health("tcp", PORT, every_ms=50)
    with contextlib.closing(hosts.probing(Tool("t", 0, Tunnel("vxlan", V4), health=health))):
        hosts.wait(TOOL_ALIVE, "it to answer")
    with hosts.ours.inside(), open("/proc/thread-self/net/tcp") as file:
        assert len(file.readlines()) == 1  # the heading


@pytest.mark.parametrize("kind", ["icmp", "tcp", "neighbour"])
@pytest.mark.usefixtures("listening")
def test_a_tool_is_asked_over_the_interface_and_from_the_address_of_its_tunnel(hosts: Hosts, kind: str) -> None:
    """Not over a second wire, which nobody is at; nor from an address that we do not have."""
    connect(hosts.ours, "dead0", hosts.ours, "dead1")
    hosts.ours.ip("route", "add", "10.99.0.0/24", "dev", "dead0", "metric", "9")
    asked = [tool(kind, V4, 0), tool(kind, V4, 1, interface="b1"), tool(kind, V4, 2, source="10.99.0.1")]
    not_there = [tool(kind, V4, 3, interface="dead0"), tool(kind, V4, 4, source="10.99.0.77"), tool(kind, V4, 5, interface="none0")]
    with contextlib.closing(hosts.probing(*asked, *not_there)):
        hosts.wait(TOOL_ALIVE, "those on the wire to answer", slice(0, 3))
        hosts.wait(TOOL_DEAD, "the others to be dead", slice(3, 6), 3.0)
        assert (hosts.state[:3] == TOOL_ALIVE).all()


def answered(probe: Probe, within_s: float = 2.0) -> bool:
    poller = select.poll()
    poller.register(probe.socket, probe.events)
    try:
        while poller.poll(within_s * 1000):
            if probe.answered():
                return True
        return False
    finally:
        probe.close()


@pytest.mark.parametrize("remote", [V4, V6])
@pytest.mark.parametrize("allowed", [True, False], ids=["ping-socket", "raw-socket"])
def test_an_echo_is_asked_for_by_either_socket(hosts: Hosts, remote: str, allowed: bool) -> None:
    with hosts.ours.inside():
        with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
            file.write("0 2147483647" if allowed else "1 0")
        probe = echo.ask(tool("icmp", remote))
        assert probe.socket.type == (socket.SOCK_DGRAM if allowed else socket.SOCK_RAW)
        assert answered(probe)


def test_an_echo_of_somebody_else_is_no_answer(hosts: Hosts) -> None:
    """Two ask the same host by raw sockets, which get everybody's replies."""
    with hosts.ours.inside():
        first = echo.ask(tool("icmp", V4))
        second = echo.ask(tool("icmp", V4))
        poller = select.poll()
        poller.register(first.socket, select.POLLIN)
        assert poller.poll(2000)
        second.close()
        third = echo.ask(tool("icmp", V4))
        said = [first.answered()]
        while poller.poll(300):
            said.append(first.answered())
        first.close()
        third.close()
    assert len(said) == 3
    assert said.count(True) == 1


@pytest.mark.parametrize(("ask", "kind"), [(echo.ask, "icmp"), (neighbour.ask, "neighbour"), (service.ask, "tcp")])
def test_without_privileges_is_told_what_is_missing(hosts: Hosts, ask: Callable[[Tool], Probe], kind: str) -> None:
    """In a child that is nobody; TCP needs none."""
    with hosts.theirs.inside():
        server = socket.create_server((V4, PORT))
    with server, hosts.ours.inside():
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                said = str(answered(ask(tool(kind, V4))))
            except CannotAskError as error:
                said = str(error)
            except BaseException as error:
                said = repr(error)
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
    assert (
        said
        == {
            "icmp": "ping sockets are not allowed to our group (net.ipv4.ping_group_range), and raw sockets need CAP_NET_RAW",
            "neighbour": "packet sockets and raw sockets need CAP_NET_RAW",
            "tcp": "True",
        }[kind]
    )


def test_our_own_address_has_no_neighbours(hosts: Hosts) -> None:
    with hosts.ours.inside(), pytest.raises(CannotAskError, match="its address is of this host"):
        neighbour.ask(tool("neighbour", "10.99.0.1"))


def test_a_reload_and_an_end_are_quick_while_nobody_answers(hosts: Hosts) -> None:
    slow = Tool("t", 0, Tunnel("vxlan", "10.99.0.99"), health=Health("icmp", every_ms=60_000))
    prober = hosts.probing(slow)
    prober.follow(Config("n", (), (tool("icmp", V4),), ()))
    hosts.wait(TOOL_ALIVE, "the new one to answer")
    prober.follow(Config("n", (), (), ()))
    hosts.wait(TOOL_UNASKED, "nobody to be asked")
    prober.close()
    assert "probes" not in {thread.name for thread in threading.enumerate()}
