"""The processes beside the data path that flow records need: an exporter, and a store if there is one. Started, watched, started again,
stopped last; a supervisor that takes over finds them by their command lines.

| process | wanted when |
|---|---|
| export | flows are metered |
| store | their records are to stay |

They belong to the pipeline, not to the supervisor: without one they go on. Exit status 78 means that starting again would be of no use.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from broker.core.errors import EXIT_CONFIG
from broker.core.flow_model import Flows
from broker.supervisor import plan
from broker.supervisor.processes import Process, attach, find

MODULE = "broker.flows"
ORDER = ("export", "store")
"""In which they are stopped: who hands over before who takes."""


@dataclass
class _Companion:
    process: Process
    child: subprocess.Popen[bytes] | None  # None: a former supervisor's
    since_ns: int
    asked_to_stop: bool = False


@dataclass
class _Book:
    failures: int = 0
    not_before_ns: int = 0
    given_up: bool = False


def wanted(flows: Flows | None) -> tuple[str, ...]:
    """Their names."""
    if flows is None:
        return ()
    return ORDER if flows.store is not None else ORDER[:1]


def end_all(name: str) -> None:
    """kill -9 those of a pipeline that is no more: what they had not handed over is in the spool, or still where they took it from."""
    for pid in find(name, MODULE):
        if process := attach(pid, name, MODULE):
            process.send(signal.SIGKILL)
            process.wait(5.0)
            process.close()


class Companions:
    """Of one pipeline. `tick` never waits."""

    def __init__(self, name: str, log: Any) -> None:
        self.name, self.log = name, log
        self._running: dict[str, _Companion] = {}
        self._books: dict[str, _Book] = {}

    def adopt(self) -> None:
        for pid, kind in find(self.name, MODULE).items():
            if process := attach(pid, self.name, MODULE):
                self._running[kind] = _Companion(process, None, time.monotonic_ns())

    def fds(self) -> list[int]:
        return [c.process.fd for c in self._running.values() if c.process.fd >= 0]

    def tick(self, flows: Flows | None, now_ns: int) -> None:
        """Have those run that should; forget those that have ended."""
        names = wanted(flows)
        for name, companion in list(self._running.items()):
            if not companion.process.alive():
                self._ended(name, companion, now_ns)
            elif name not in names and not companion.asked_to_stop:
                companion.process.send(signal.SIGTERM)
                companion.asked_to_stop = True
        for name in names:
            book = self._books.setdefault(name, _Book())
            if name not in self._running and not book.given_up and now_ns >= book.not_before_ns:
                self._start(name, now_ns)

    def _start(self, name: str, now_ns: int) -> None:
        command = [sys.executable, "-I", "-m", MODULE, name, "--pipeline", self.name]
        # Asked to stop while it is starting it must not end, but hand over what is there: until it listens the signal waits.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._running[name] = _Companion(Process(child.pid), child, now_ns)
        self.log.info("companion_started", process=name, pid=child.pid)

    def _ended(self, name: str, companion: _Companion, now_ns: int) -> None:
        status = companion.child.wait() if companion.child else None
        companion.process.close()
        del self._running[name]
        if companion.asked_to_stop:
            self.log.info("companion_stopped", process=name, status=status)
            return
        book = self._books.setdefault(name, _Book())
        if status == EXIT_CONFIG:
            book.given_up = True
            self.log.error("companion_given_up", process=name, reason=f"exit status {EXIT_CONFIG}; the reason is in its log line")
            return
        if now_ns - companion.since_ns > plan.HEALTHY_NS:
            book.failures = 0
        wait_s = plan.back_off_s(book.failures, random.random())  # noqa: S311 - jitter
        book.failures += 1
        book.not_before_ns = now_ns + int(wait_s * plan.SECOND_NS)
        self.log.warning("companion_died", process=name, status=status, again_in_s=round(wait_s, 3))

    def reloaded(self) -> None:
        """Another configuration may do for one that was given up."""
        self._books.clear()

    def troubles(self, flows: Flows | None) -> list[str]:
        """In words, what is wrong."""
        return [
            f"{name} of flow records is down" + (" for good" if self._books.get(name, _Book()).given_up else "")
            for name in wanted(flows)
            if name not in self._running
        ]

    def stop(self, flows: Flows | None, within_s: float) -> list[str]:
        """One after the other: each hands over what is there, and one that has died is started for that once more. Returns those that had
        to be killed."""
        killed = []
        until = time.monotonic() + within_s
        for name in ORDER:
            if name not in self._running:
                if name not in wanted(flows) or name not in self._books or self._books[name].given_up:
                    continue
                self._start(name, time.monotonic_ns())
            companion = self._running.pop(name)
            companion.process.send(signal.SIGTERM)
            if not companion.process.wait(max(0.5, until - time.monotonic())):
                companion.process.send(signal.SIGKILL)
                killed.append(name)
                companion.process.wait(2.0)
            if companion.child is not None:
                companion.child.wait()
            companion.process.close()
        return killed

    def leave(self) -> None:
        """Let them run on."""
        for companion in self._running.values():
            companion.process.close()
        self._running.clear()
