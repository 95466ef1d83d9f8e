"""Which tools are asked, when, and what their answers come to. One thread; a clock and the way to ask are handed in.

A tool is asked every `every_ms`; what has not answered by then has failed. Answers are taken before anything is judged, and who comes to
judge much too late (a machine that stood still) judges nobody.

`tool_state` outlives us: a supervisor that dies leaves what it knew last, and the next one goes on from there. A reload keeps what is
known of a tool unless its address or the way it is asked has changed.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core.layout import TOOL_DEAD, TOOL_STATE_NAMES, TOOL_UNASKED
from broker.core.model import Config, Health, Tool
from broker.supervisor.probes import echo, neighbour, service
from broker.supervisor.probes.probe import CannotAskError, Probe, in_words, refused_by_us
from broker.supervisor.probes.standing import Standing, judge

Ask = Callable[[Tool], Probe]
_ASK: dict[str, Ask] = {"icmp": echo.ask, "tcp": service.ask, "neighbour": neighbour.ask}


def ask(tool: Tool) -> Probe:
    """Send one probe, without waiting. CannotAskError; OSError: no answer will come."""
    assert tool.health is not None
    return _ASK[tool.health.kind](tool)


def asked(config: Config) -> Iterator[Tool]:
    """Tools on the wire, with `health`."""
    return (tool for tool in config.tools if tool.health is not None and tool.tunnel is not None and not tool.file)


@dataclass
class _Asked:
    tool: Tool
    health: Health
    standing: Standing
    due_ns: int  # when the probe under way is judged, and the next one sent
    sent: bool = False  # there is something to judge
    probe: Probe | None = None  # that may still be answered
    answered: bool = False
    trouble: str = ""  # why no answer will come
    cannot: str = ""  # why it could not be asked, last time

    def forget(self) -> None:
        if self.probe is not None:
            self.probe.close()
        self.probe, self.sent, self.answered, self.trouble = None, False, False, ""


@dataclass
class Asking:
    """`follow`, then `step` for ever: whenever a descriptor of `fds` is ready, and at `due_ns`."""

    state: NDArray[np.int64]  # [TOOLS], TOOL_*: written here and nowhere else
    log: Any
    ask: Ask = ask
    clock_ns: Callable[[], int] = time.monotonic_ns
    _asked: dict[str, _Asked] = field(default_factory=dict)

    def follow(self, config: Config) -> None:
        """Ask the tools of `config`, which has slots, and no others."""
        before, now = self._asked, self.clock_ns()
        self._asked = {}
        for tool in asked(config):
            assert tool.health is not None
            known = before.get(tool.name)
            if known is None:
                self._asked[tool.name] = _Asked(tool, tool.health, self._left(tool.slot), now)
            elif _question(known.tool) == _question(tool):
                known.tool, known.health = tool, tool.health
                self._asked[tool.name] = before.pop(tool.name)
            else:
                self._asked[tool.name] = _Asked(tool, tool.health, Standing(), now)
        for gone in before.values():
            gone.forget()
        kept = {a.tool.slot: a.standing.state for a in self._asked.values()}
        for slot in range(len(self.state)):
            self.state[slot] = kept.get(slot, TOOL_UNASKED)

    def _left(self, slot: int) -> Standing:
        """By an earlier supervisor."""
        state = int(self.state[slot])
        return Standing(state if 0 <= state < len(TOOL_STATE_NAMES) else TOOL_UNASKED)

    def fds(self) -> Iterator[tuple[int, int]]:
        """(descriptor, events) to poll for."""
        return ((a.probe.socket.fileno(), a.probe.events) for a in self._asked.values() if a.probe is not None)

    @property
    def due_ns(self) -> int | None:
        """When `step` is to be called at the latest; None: nobody is asked."""
        return min((a.due_ns for a in self._asked.values()), default=None)

    def step(self) -> None:
        """Take answers, judge, ask. Never waits."""
        self._hear()
        now = self.clock_ns()
        for one in self._asked.values():
            if one.due_ns <= now:
                every_ns = one.health.every_ms * 1_000_000
                late = now - one.due_ns > every_ns
                if one.sent and (one.answered or not late):
                    self._judge(one)
                one.due_ns = now + every_ns if late else one.due_ns + every_ns
                self._send(one)

    def _hear(self) -> None:
        poller = select.poll()
        for fd, events in self.fds():
            poller.register(fd, events)
        ready = {fd for fd, _ in poller.poll(0)}
        for one in self._asked.values():
            if one.probe is not None and one.probe.socket.fileno() in ready:
                self._take(one, one.probe)

    def _take(self, one: _Asked, probe: Probe) -> None:
        """All that has come, up to the answer."""
        try:
            while not one.answered:
                one.answered = probe.answered()
        except BlockingIOError:
            return
        except OSError as error:
            one.trouble = in_words(error)
        probe.close()
        one.probe = None

    def _judge(self, one: _Asked) -> None:
        before, one.standing = one.standing, judge(one.standing, one.answered, one.health.fail_after)
        if one.standing.state == before.state:
            return
        self.state[one.tool.slot] = one.standing.state
        assert one.tool.tunnel is not None
        facts = {"tool": one.tool.name, "remote": one.tool.tunnel.remote, "asked": one.health.kind}
        if one.standing.state == TOOL_DEAD:
            reason = one.trouble or f"no answer within {one.health.every_ms} ms"
            self.log.warning("tool_dead", reason=reason, failures=one.health.fail_after, **facts)
        else:
            self.log.info("tool_alive", **facts)

    def _send(self, one: _Asked) -> None:
        one.forget()
        try:
            one.probe = self.ask(one.tool)
        except CannotAskError as cannot:
            self._give_up(one, str(cannot))
            return
        except OSError as error:
            if refused_by_us(error):
                self._give_up(one, in_words(error))
                return
            one.trouble = in_words(error)
        one.sent, one.cannot = True, ""

    def _give_up(self, one: _Asked, reason: str) -> None:
        """For this time. Nothing is known of the tool then; its flows are its own."""
        one.standing = Standing()
        self.state[one.tool.slot] = TOOL_UNASKED
        if one.cannot != reason:
            one.cannot = reason
            self.log.warning("tool_not_asked", tool=one.tool.name, asked=one.health.kind, reason=reason)

    def close(self) -> None:
        """What is known stays."""
        for one in self._asked.values():
            one.forget()


def _question(tool: Tool) -> tuple[Any, ...]:
    """What an answer is an answer to."""
    tunnel, health = tool.tunnel, tool.health
    assert tunnel is not None
    assert health is not None
    return tool.slot, tunnel.remote, tunnel.source, tunnel.interface, health.kind, health.port
