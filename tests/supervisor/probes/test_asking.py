"""Who is asked when, and what is written and logged; the clock is the test's, and tools answer by socket pairs."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import structlog
from structlog.testing import capture_logs

from broker.core.layout import TOOL_ALIVE, TOOL_DEAD, TOOL_UNASKED, TOOLS
from broker.core.model import Config, Health, Tool, Tunnel
from broker.supervisor.probes.asking import Asking
from broker.supervisor.probes.probe import CannotAskError, Probe
from broker.supervisor.probes.prober import Prober

MS = 1_000_000


def tool(name: str, slot: int, **health: Any) -> Tool:
    return Tool(name, slot, Tunnel("vxlan", f"192.0.2.{slot + 1}"), health=Health("icmp", **health))


def config(*tools: Tool) -> Config:
    return Config("n", (), tools, ())


@dataclass
class World:
    """`says` is what a tool does with a probe: answer, be silent, or an exception on our side."""

    now_ms: int = 1000
    says: dict[str, object] = field(default_factory=dict)
    sent: list[tuple[int, str]] = field(default_factory=list)
    ends: dict[str, socket.socket] = field(default_factory=dict)
    sockets: list[socket.socket] = field(default_factory=list)
    state: np.ndarray[Any, np.dtype[np.int64]] = field(default_factory=lambda: np.zeros(TOOLS, np.int64))

    def __post_init__(self) -> None:
        self.asking = Asking(self.state, structlog.get_logger(), self.ask, lambda: self.now_ms * MS)

    def ask(self, asked: Tool) -> Probe:
        self.sent.append((self.now_ms, asked.name))
        says = self.says.get(asked.name, "yes")
        if isinstance(says, Exception):
            raise says
        ours, theirs = socket.socketpair()
        self.sockets += [ours, theirs]
        ours.setblocking(False)
        self.ends[asked.name] = theirs
        if says != "nothing":
            theirs.send(str(says).encode())
        return Probe(ours, select.POLLIN, lambda: ours.recv(3) == b"yes")

    def until(self, ms: int) -> list[dict[str, Any]]:
        """Step whenever it is due, up to that time; what was logged."""
        with capture_logs() as logs:
            while (due := self.asking.due_ns) is not None and due <= ms * MS:
                self.now_ms = max(self.now_ms, due // MS)
                self.asking.step()
            self.now_ms = ms
        return logs


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.asking.close()
    for one in made.sockets:
        one.close()


def test_each_tool_is_asked_at_its_own_pace_and_one_that_dies_changes_nothing_for_the_others(world: World) -> None:
    world.asking.follow(config(tool("a", 0), tool("b", 5, every_ms=100, fail_after=2)))
    assert [line["event"] for line in world.until(1900)] == ["tool_alive", "tool_alive"]
    assert [at for at, name in world.sent if name == "a"] == [1000, 1200, 1400, 1600, 1800]
    assert [at for at, name in world.sent if name == "b"] == list(range(1000, 1901, 100))
    world.says["b"] = "nothing"
    (dead,) = world.until(3000)
    assert (dead["event"], dead["tool"], dead["reason"], dead["failures"]) == ("tool_dead", "b", "no answer within 100 ms", 2)
    assert world.state[[0, 5]].tolist() == [TOOL_ALIVE, TOOL_DEAD]
    assert world.until(9000) == []  # said once
    assert world.state.sum() == TOOL_ALIVE + TOOL_DEAD


def test_with_the_defaults_a_tool_that_falls_silent_is_dead_after_800_ms_at_most_and_back_as_soon(world: World) -> None:
    world.asking.follow(config(tool("a", 0)))
    world.until(2000)
    world.says["a"] = "nothing"  # just after it has answered for the last time
    world.until(2799)
    assert world.state[0] == TOOL_ALIVE
    (dead,) = world.until(2800)
    assert dead["event"] == "tool_dead"
    world.says["a"] = "yes"
    assert world.until(3599) == []
    (alive,) = world.until(3600)
    assert alive["event"] == "tool_alive"
    assert world.state[0] == TOOL_ALIVE


@pytest.mark.parametrize(
    ("says", "state", "reason"),
    [
        ("no!yes", TOOL_ALIVE, ""),  # behind something else
        ("no!", TOOL_DEAD, "no answer within 200 ms"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), TOOL_DEAD, "refused"),
        (OSError("no interface with this name"), TOOL_DEAD, "no interface with this name"),
        (OSError(errno.ENOBUFS, "no buffers"), TOOL_DEAD, "our own queue drops it: the interface has no link, or is full"),
        (OSError(errno.EMFILE, "too many"), TOOL_UNASKED, "too many"),
        (PermissionError(errno.EPERM, "not permitted"), TOOL_UNASKED, "not permitted"),
        (CannotAskError("needs CAP_NET_RAW"), TOOL_UNASKED, "needs CAP_NET_RAW"),
    ],
)
def test_what_becomes_of_a_tool_by_what_it_and_our_host_say(world: World, says: object, state: int, reason: str) -> None:
    world.says["a"] = says
    world.asking.follow(config(tool("a", 0)))
    (line,) = world.until(5000)
    events = {TOOL_ALIVE: "tool_alive", TOOL_DEAD: "tool_dead", TOOL_UNASKED: "tool_not_asked"}
    assert (line["event"], line.get("reason", "")) == (events[state], reason)
    assert world.state[0] == state


def test_what_cannot_be_asked_any_more_counts_as_there_and_is_asked_again(world: World) -> None:
    world.says["a"] = "nothing"
    world.asking.follow(config(tool("a", 0)))
    world.until(3000)
    assert world.state[0] == TOOL_DEAD
    world.says["a"] = OSError(errno.EMFILE, "too many")
    assert [line["event"] for line in world.until(4000)] == ["tool_not_asked"]
    assert world.state[0] == TOOL_UNASKED
    world.says["a"] = "yes"
    assert [line["event"] for line in world.until(4500)] == ["tool_alive"]


def test_an_answer_to_a_probe_that_has_failed_is_none_to_the_next(world: World) -> None:
    world.says["a"] = "nothing"
    world.asking.follow(config(tool("a", 0, fail_after=1)))
    world.until(1000)
    late = world.ends["a"]
    world.until(1200)
    assert world.state[0] == TOOL_DEAD
    with pytest.raises(BrokenPipeError):
        late.send(b"yes")


def test_after_standing_still_nobody_is_taken_for_dead_but_answers_count(world: World) -> None:
    world.says["a"] = "nothing"
    world.asking.follow(config(tool("a", 0, fail_after=1), tool("b", 1, fail_after=1)))
    world.until(1000)
    world.now_ms = 61_000
    world.asking.step()
    assert world.state[:2].tolist() == [TOOL_UNASKED, TOOL_ALIVE]
    assert [name for at, name in world.sent if at == 61_000] == ["a", "b"]
    world.until(61_200)
    assert world.state[0] == TOOL_DEAD
    assert len([at for at, name in world.sent if name == "b" and at > 1000]) == 2  # nothing is made up for


def test_a_reload_keeps_what_is_known_unless_another_question_is_asked(world: World) -> None:
    """And what is not asked any more is nothing that is known."""
    a, b, c, d = (tool(name, slot) for slot, name in enumerate("abcd"))
    world.says = dict.fromkeys("abcd", "nothing")
    world.asking.follow(config(a, b, c, d))
    world.until(3000)
    assert world.state[:4].tolist() == [TOOL_DEAD] * 4
    assert b.tunnel is not None
    moved = replace(b, tunnel=replace(b.tunnel, remote="198.51.100.1"))
    quicker = replace(a, health=Health("icmp", every_ms=50), mtu_bytes=1400)
    world.asking.follow(config(quicker, moved, replace(c, health=None), tool("e", 4)))
    assert world.state[:5].tolist() == [TOOL_DEAD, TOOL_UNASKED, TOOL_UNASKED, TOOL_UNASKED, TOOL_UNASKED]
    world.sent.clear()
    world.says = {}
    world.until(4000)
    assert {name for _, name in world.sent} == {"a", "b", "e"}
    assert world.state[:5].tolist() == [TOOL_ALIVE, TOOL_ALIVE, TOOL_UNASKED, TOOL_UNASKED, TOOL_ALIVE]


def test_a_new_supervisor_goes_on_with_what_the_last_one_knew(world: World) -> None:
    world.state[:3] = TOOL_ALIVE, TOOL_DEAD, TOOL_DEAD
    world.says = {"a": "nothing", "b": "nothing"}
    world.asking.follow(config(tool("a", 0), tool("b", 1)))
    assert world.state[:3].tolist() == [TOOL_ALIVE, TOOL_DEAD, TOOL_UNASKED]
    assert world.until(1400) == []
    assert [(line["event"], line["tool"]) for line in world.until(1600)] == [("tool_dead", "a")]


def test_files_and_tools_without_health_are_not_asked(world: World) -> None:
    plain = replace(tool("a", 0), health=None)
    written = replace(tool("b", 1), file="b.pcap")
    world.asking.follow(config(plain, written, Tool("c", 2, file="c.pcap")))
    assert world.asking.due_ns is None


def test_no_socket_is_left_open(world: World) -> None:
    before = len(os.listdir("/proc/self/fd"))
    world.says["a"] = "nothing"
    world.asking.follow(config(tool("a", 0), tool("b", 1)))
    world.until(60_000)
    for one in world.sockets[1::2]:  # the ends of the tools
        one.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # the probes under way
    world.asking.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_ends_the_thread_is_raised_where_the_supervisor_looks(world: World) -> None:
    class Broken(structlog.testing.CapturingLogger):
        def info(self, *_: object, **__: object) -> None:
            raise ZeroDivisionError

    prober = Prober(world.state, Broken())
    prober._asking.ask = world.ask
    prober.follow(config(tool("a", 0)))
    assert prober._thread is not None
    prober._thread.join(10)
    with pytest.raises(ZeroDivisionError):
        prober.check()
    prober.close()
