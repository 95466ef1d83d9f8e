"""The supervisor's end of the talk with the stage host. What may be said is written in `stages/host.py`.

The host outlives the supervisor: it is started in a session of its own, and a later supervisor connects to it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

from broker.core import log
from broker.core.errors import TapmeshError
from broker.core.messages import MessageError, check, unpack_map
from broker.supervisor.processes import Process, attach

MESSAGE_BYTES = 65_536
ANSWER_S = 5.0
"""The host forks and answers in milliseconds; one that is silent for so long hangs."""


class HostError(TapmeshError):
    """The host is gone, does not answer, or refuses."""


class HostLink:
    """One connection to one host process."""

    def __init__(self, process: Process, child: subprocess.Popen[bytes] | None, connection: socket.socket) -> None:
        self.process = process
        self._child = child
        self._socket = connection
        self._log = log.get()
        self._events: list[dict[str, Any]] = []
        self.ready = False
        self.connected = True

    def fileno(self) -> int:
        return self._socket.fileno()

    def alive(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            return False
        return self.process.alive()

    def exit_status(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def events(self) -> list[dict[str, Any]]:
        """What it has said since; never waits. After the end of the connection `connected` is False."""
        self._receive(0)
        events, self._events = self._events, []
        return events

    def request(self, **message: Any) -> dict[str, Any]:
        """Ask and wait for the answer. HostError when there is none or it is a refusal."""
        try:
            self._socket.send(msgpack.packb(message))
        except OSError as error:
            self.connected = False
            raise HostError(f"the stage host is gone: {error.strerror}") from None
        deadline = time.monotonic() + ANSWER_S
        while self.connected and (left := deadline - time.monotonic()) > 0:
            answer = self._receive(left)
            if answer is not None:
                if not answer["ok"]:
                    raise HostError(f"the stage host refuses to {message['do']}: {answer.get('reason')}")
                return answer
        self.connected = False
        raise HostError(f"the stage host (pid {self.process.pid}) does not answer")

    def _receive(self, wait_s: float) -> dict[str, Any] | None:
        """Take in messages until one is an answer, or none is left and `wait_s` is over."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        until = time.monotonic() + wait_s  # events may come for minutes
        while self.connected and poller.poll(max(0.0, until - time.monotonic()) * 1000):
            try:
                raw = self._socket.recv(MESSAGE_BYTES)
            except OSError:
                raw = b""
            if not raw:
                self.connected = False
                return None
            try:
                message = _understood(raw)
            except MessageError as error:
                self._log.error("host_not_understood", reason=str(error))
                self.connected = False
                return None
            if "event" not in message:
                return message
            self.ready = self.ready or message["event"] == "ready"
            self._events.append(message)
        return None

    def close(self) -> None:
        """Let go of it; it goes on."""
        self._socket.close()
        self.process.close()

    def reap(self, wait_s: float) -> None:
        """After it was told to quit, or killed: wait for its end; kill it if that takes too long."""
        if not self.process.wait(wait_s):
            self.process.send(9)
            self.process.wait(1.0)
        if self._child is not None:
            self._child.wait()
        self.close()


_SAID: dict[str, dict[str, type]] = {
    "ready": {},
    "progress": {"text": str},
    "exited": {"pid": int, "status": int},
}
"""Of each event, what is used of it."""


def _understood(raw: bytes) -> dict[str, Any]:
    """An event or an answer. MessageError for anything else: what says such a thing is no stage host of ours."""
    message = unpack_map(raw)
    if "event" not in message:
        check(message, ok=bool)
        return message
    check(message, event=str)
    if message["event"] not in _SAID:
        raise MessageError(f"unknown event {message['event']!r:.80}")
    check(message, **_SAID[message["event"]])
    return message


def launch(name: str, *, stdin: bool = False) -> subprocess.Popen[bytes]:
    """Start the host of pipeline `name`. Isolated (-I): what runs is what is installed, not what lies in the working directory.

    `stdin`: capture may read ours.
    """
    command = [sys.executable, "-I", "-m", "stages", "host", "--pipeline", name]
    return subprocess.Popen(command, stdin=None if stdin else subprocess.DEVNULL, start_new_session=True)


def connect(directory: Path, child: subprocess.Popen[bytes]) -> HostLink | None:
    """Connect to the host just launched; None as long as it does not listen yet. HostError when it has ended."""
    if child.poll() is not None:
        raise HostError(f"the stage host ended with status {child.returncode} before it could be spoken to")
    connection = _connect(directory)
    if connection is None:
        return None
    return HostLink(Process(child.pid), child, connection)


def adopt(directory: Path, name: str) -> HostLink | None:
    """Connect to a host that an earlier supervisor has left running; None if there is none."""
    connection = _connect(directory)
    if connection is None:
        return None
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    process = attach(pid, name)
    if process is None:
        connection.close()
        return None
    return HostLink(process, None, connection)


def _connect(directory: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(ANSWER_S)
        connection.connect(os.fspath(directory / "host.sock"))
    except OSError:
        connection.close()
        return None
    return connection
