"""Keeps one stage host running: starts it, hears it, replaces it when it dies or hangs. Workers go on without one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.core.errors import EXIT_CONFIG
from broker.supervisor import hostlink, plan
from broker.supervisor.hostlink import HostError, HostLink
from broker.supervisor.plan import WorkerId


class HostKeeper:
    """The host of one pipeline. `tick` never waits; `launch` waits for one answer."""

    def __init__(self, name: str, directory: Path, log: Any, told_exit: Callable[[dict[str, Any]], None], *, stdin: bool) -> None:
        self.name, self.directory, self.log = name, directory, log
        self.told_exit = told_exit
        self.stdin = stdin
        self.progress = ""  # what it last said while compiling
        self.given_up = ""  # why it is not started again
        self._child: subprocess.Popen[bytes] | None = None  # launched, not connected yet
        self._link: HostLink | None = None
        self._failures = 0
        self._not_before_ns = 0

    @property
    def ready(self) -> bool:
        return self._link is not None and self._link.ready and self._link.connected

    @property
    def pid(self) -> int:
        return self._link.process.pid if self._link else self._child.pid if self._child else 0

    def fds(self) -> list[int]:
        return [self._link.fileno(), self._link.process.fd] if self._link else []

    def start(self) -> None:
        self._child = hostlink.launch(self.name, stdin=self.stdin)
        self.log.info("host_started", pid=self._child.pid)

    def adopt(self) -> bool:
        """Connect to the host that an earlier supervisor has left."""
        self._link = hostlink.adopt(self.directory, self.name)
        if self._link is not None:
            self.log.info("host_adopted", pid=self._link.process.pid)
        return self._link is not None

    def tick(self, now_ns: int) -> None:
        if self._link is not None:
            self._hear(self._link, now_ns)
        elif self._child is not None:
            try:
                self._link = hostlink.connect(self.directory, self._child)
            except HostError:
                self._failed(self._child.returncode, now_ns)
                self._child = None
            if self._link is not None:
                self._child = None
        elif not self.given_up and now_ns >= self._not_before_ns:
            self.start()

    def _hear(self, link: HostLink, now_ns: int) -> None:
        for event in link.events():
            if event["event"] == "exited":
                self.told_exit(event)
            elif event["event"] == "progress":
                self.progress = str(event["text"])
                self.log.info("kernels_compiling", progress=self.progress)
            elif event["event"] == "ready":
                self.progress = ""
                self._failures = 0
        if not link.connected or not link.alive():
            link.reap(0.5)  # what has closed its socket is of no use even if it lives
            self._failed(link.exit_status(), now_ns)
            self._link = None

    def _failed(self, status: int | None, now_ns: int) -> None:
        if status == EXIT_CONFIG:
            self.given_up = f"the stage host cannot start (exit status {EXIT_CONFIG}; the reason is in its log line)"
            self.log.error("host_given_up", reason=self.given_up)
            return
        wait_s = plan.back_off_s(self._failures, random.random())  # noqa: S311 - jitter
        self._failures += 1
        self._not_before_ns = now_ns + int(wait_s * plan.SECOND_NS)
        self.log.warning("host_died", status=status, again_in_s=round(wait_s, 3))

    def launch(self, worker: WorkerId) -> int:
        """Have a worker forked; returns its pid. HostError when the host does not do it."""
        if self._link is None:
            raise HostError("there is no stage host")
        answer = self._link.request(do="start", lane=worker.lane, kind=worker.kind, worker=worker.worker)
        if type(answer.get("pid")) is not int:
            raise HostError("the stage host does not say which process it has forked")
        return int(answer["pid"])

    def quit(self) -> None:
        """End it, and with it every worker that it still has."""
        if self._link is not None:
            try:
                if self._link.ready:
                    self._link.request(do="quit", force=True)
                else:  # it answers nobody before its kernels are compiled, which another process does for it
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._link.process.pid, signal.SIGKILL)
            except HostError as error:
                self.log.warning("host_killed", reason=str(error))
            self._link.reap(2.0)
            self._link = None
        if self._child is not None:
            os.killpg(self._child.pid, signal.SIGKILL)  # with the process that compiles kernels for it
            self._child.wait()
            self._child = None

    def leave(self) -> None:
        """Let it run on."""
        if self._link is not None:
            self._link.close()
            self._link = None
