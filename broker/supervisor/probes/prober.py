"""The thread that asks: the supervisor's loop writes files and waits for the host, and a tool must not seem dead because of that."""

from __future__ import annotations

import select
import socket
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core.model import Config
from broker.supervisor.probes.asking import Asking, asked

EVENTS = {
    "tool_alive": "a tool answers; its flows are its own again",
    "tool_dead": "a tool has not answered several times in a row; in groups, others take its flows",
    "tool_not_asked": "this host does not let us ask a tool; it counts as being there",
}
END_S = 2.0


class Prober:
    """Starts its thread with the first configuration that has a tool to ask."""

    def __init__(self, state: NDArray[np.int64], log: Any) -> None:
        """`state`: int64[TOOLS], TOOL_*."""
        self._asking = Asking(state, log)
        self._wake: tuple[socket.socket, socket.socket] | None = None  # there with the thread: its end, ours
        self._thread: threading.Thread | None = None
        self._new: Config | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._error: BaseException | None = None

    def follow(self, config: Config) -> None:
        """Ask the tools of `config` from now on. It has slots."""
        if self._thread is None and not any(asked(config)):
            self._asking.follow(config)
            return
        with self._lock:
            self._new = config
        if self._wake is None:
            self._wake = socket.socketpair()
            self._wake[0].setblocking(False)
            self._thread = threading.Thread(target=self._run, args=self._wake[:1], name="probes", daemon=True)
            self._thread.start()
        self._wake[1].send(b"\0")

    def check(self) -> None:
        """Raises what has ended the thread: nobody may think that tools are asked when they are not."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._closing = True
        if self._wake is None or self._thread is None:
            return
        self._wake[1].send(b"\0")
        self._thread.join(END_S)
        for end in self._wake:
            end.close()
        self._wake = self._thread = None

    def _run(self, woken: socket.socket) -> None:
        try:
            while not self._closing:
                with self._lock:
                    new, self._new = self._new, None
                if new is not None:
                    self._asking.follow(new)
                self._asking.step()
                self._wait(woken)
        except BaseException as error:  # the boundary of a thread: `check` raises it where somebody sees it
            self._error = error
        finally:
            self._asking.close()

    def _wait(self, woken: socket.socket) -> None:
        poller = select.poll()
        poller.register(woken, select.POLLIN)
        for fd, events in self._asking.fds():
            poller.register(fd, events)
        due_ns = self._asking.due_ns
        wait_ms = None if due_ns is None else max(0, -((self._asking.clock_ns() - due_ns) // 1_000_000))
        for fd, _ in poller.poll(wait_ms):
            if fd == woken.fileno():
                woken.recv(64)
