"""Doorbells: a ZeroMQ message without content that wakes a parked neighbour. A hint: losing one costs at most PARK_LIMIT_MS.

Each worker pulls from its own ipc socket in the pipeline's directory (0700); whoever finds it parked pushes. Make one only in the process
that uses it, after the fork: a ZeroMQ context has threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import zmq

from broker.core.errors import PipelineError

PARK_LIMIT_MS = 100
_UNIX_PATH_LIMIT = 107  # sockaddr_un.sun_path less its NUL


def bell_path(directory: Path, lane: int, kind: str, worker: int) -> Path:
    return directory / f"{lane}.{kind}.{worker}.bell"


class Doorbell:
    """This worker's bell, and the cords of its neighbours' bells."""

    def __init__(self, directory: Path, lane: int, kind: str, worker: int) -> None:
        path = bell_path(directory, lane, kind, worker)
        if len(str(path)) > _UNIX_PATH_LIMIT:
            raise PipelineError(f"{path}: longer than {_UNIX_PATH_LIMIT} characters, the limit for a Unix socket; use a shorter name")
        self._directory, self._lane = directory, lane
        self._context = zmq.Context()
        self._bell = self._socket(zmq.PULL)
        self._bell.bind(f"ipc://{path}")
        self._cords: dict[tuple[str, int], zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._bell, zmq.POLLIN)
        self._watched = -1
        self._signalled, self._signal = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.register(self._signalled, zmq.POLLIN)
        self._takes_signals = False

    def wake_on_signals(self) -> None:
        """From here on a signal ends a `wait`: a poll that is interrupted would be taken up again for the rest of its time."""
        signal.set_wakeup_fd(self._signal, warn_on_full_buffer=False)
        self._takes_signals = True

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        # One message in flight says it all. A small high-water mark instead loses rings: a sender learns late that the reader has read.
        socket.set(zmq.CONFLATE, 1)
        # The neighbour may be restarting: try again soon, it binds the same path.
        socket.reconnect_ivl = 5
        return socket

    def ring(self, kind: str, worker: int) -> None:
        """Wake a neighbour. Never blocks; a ring that nobody has heard yet is replaced by this one."""
        cord = self._cords.get((kind, worker))
        if cord is None:
            cord = self._cords[kind, worker] = self._socket(zmq.PUSH)
            cord.connect(f"ipc://{bell_path(self._directory, self._lane, kind, worker)}")
        with contextlib.suppress(zmq.Again):
            cord.send(b"", zmq.NOBLOCK)

    def wait(self, timeout_ms: int, fd: int = -1) -> None:
        """Sleep until rung, until `fd` is readable, or for `timeout_ms` (at least 0)."""
        if fd != self._watched:
            if self._watched >= 0:
                self._poller.unregister(self._watched)
            if fd >= 0:
                self._poller.register(fd, zmq.POLLIN)
            self._watched = fd
        for socket, _ in self._poller.poll(timeout_ms):
            if socket is self._bell:
                with contextlib.suppress(zmq.Again):
                    self._bell.recv(zmq.NOBLOCK)
            elif socket == self._signalled:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._signalled, 64)

    def close(self) -> None:
        self._context.destroy(linger=0)
        if self._takes_signals:
            signal.set_wakeup_fd(-1)
        os.close(self._signalled)
        os.close(self._signal)
