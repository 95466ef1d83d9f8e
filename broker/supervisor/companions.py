"""The processes beside the data path that flow records need: an exporter, and a store if there is one. Started, watched, started again,
stopped last; a supervisor that takes over finds them by their command lines.

| process | wanted when |
|---|---|
| export | flows are metered |
| store | their records are to stay |

They belong to the pipeline, not to the supervisor: without one they go on. Exit status 78 means that starting again would be of no use.
One that has not beaten for PATIENCE_NS is stuck, killed and started again.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core.errors import EXIT_CONFIG
from broker.core.flow_model import Flows
from broker.core.flow_ring import COMPANIONS, open_beats
from broker.core.shm import pipeline_directory
from broker.supervisor import plan
from broker.supervisor.processes import Process, attach, find

MODULE = "broker.flows"
ORDER = COMPANIONS
"""In which they are stopped: who hands over before who takes."""
PATIENCE_NS = {"export": 10 * plan.SECOND_NS, "store": 100 * plan.SECOND_NS}
"""How long each may do one thing. A store may wait half a minute for the answer to each of a few requests."""
SLOW_NS = 10 * plan.SECOND_NS
"""After so long it is told as trouble."""


@dataclass
class _Companion:
    process: Process
    child: subprocess.Popen[bytes] | None  # None: a former supervisor's
    since_ns: int
    asked_to_stop: bool = False
    killed: bool = False


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
        self._beats: NDArray[np.int64] | None = None  # there is none before the pipeline has its memory

    def adopt(self) -> None:
        for pid, kind in find(self.name, MODULE).items():
            if process := attach(pid, self.name, MODULE):
                self._running[kind] = _Companion(process, None, time.monotonic_ns())

    def fds(self) -> list[int]:
        return [c.process.fd for c in self._running.values() if c.process.fd >= 0]

    def tick(self, flows: Flows | None, now_ns: int, watching_since_ns: int = 0) -> None:
        """Have those run that should; forget those that have ended, and end those that are stuck. `watching_since_ns`: since when the
        supervisor has been running without a pause."""
        names = wanted(flows)
        for name, companion in list(self._running.items()):
            if not companion.process.alive():
                self._ended(name, companion, now_ns)
            elif name not in names and not companion.asked_to_stop:
                companion.process.send(signal.SIGTERM)
                companion.asked_to_stop = True
            elif not companion.killed and (silent_ns := self._silent_ns(name, now_ns, watching_since_ns)) > self._patience_ns(name):
                companion.process.send(signal.SIGKILL)
                companion.killed = True
                self.log.error("companion_killed", process=name, reason=f"no heartbeat for {silent_ns / plan.SECOND_NS:.1f} s")
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
        except OSError as error:  # no memory, no process: that may pass, and is no reason to leave the data path
            self._failed(name, now_ns, error.strerror)
            return
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
        self._failed(name, now_ns, status)

    def _failed(self, name: str, now_ns: int, status: int | str | None) -> None:
        """`status`: with which it ended, if that is known, or why it could not begin."""
        book = self._books.setdefault(name, _Book())
        wait_s = plan.back_off_s(book.failures, random.random())  # noqa: S311 - jitter
        book.failures += 1
        book.not_before_ns = now_ns + int(wait_s * plan.SECOND_NS)
        self.log.warning("companion_died", process=name, status=status, again_in_s=round(wait_s, 3))

    def reloaded(self) -> None:
        """Another configuration may do for one that was given up."""
        self._books.clear()

    def _beat_ns(self, name: str) -> int:
        if self._beats is None:
            self._beats = open_beats(pipeline_directory(self.name))
        return int(self._beats[COMPANIONS.index(name)])

    def _patience_ns(self, name: str) -> int:
        has_begun = self._beat_ns(name) >= self._running[name].since_ns
        return PATIENCE_NS[name] if has_begun else max(PATIENCE_NS[name], plan.STARTING_NS)

    def _silent_ns(self, name: str, now_ns: int, watching_since_ns: int) -> int:
        return now_ns - max(self._beat_ns(name), self._running[name].since_ns, watching_since_ns)

    def troubles(self, flows: Flows | None, now_ns: int, watching_since_ns: int) -> list[str]:
        """In words, what is wrong."""
        words = []
        for name in wanted(flows):
            if name not in self._running:
                words.append(f"{name} of flow records is down" + (" for good" if self._books.get(name, _Book()).given_up else ""))
            elif (silent_ns := self._silent_ns(name, now_ns, watching_since_ns)) > SLOW_NS:
                words.append(f"{name} of flow records has no heartbeat for {silent_ns / plan.SECOND_NS:.0f} s")
        return words

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
            if name not in self._running:
                continue
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
