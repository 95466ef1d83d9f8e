"""The supervisor's side of least privilege: it starts the opener (`broker.privileges.opener`), gives up its own capabilities, and with it
everything that it starts afterwards.

The opener outlives the supervisor, as the data path does. The next supervisor has one of its own, which takes the place of the old, and
what that one keeps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack

from broker.core.model import Config
from broker.privileges import asking, capabilities, sandbox
from broker.privileges.capabilities import NAMES, NET_ADMIN, NET_RAW
from broker.supervisor.processes import attach, find
from broker.supervisor.pulse import Pulse

MODULE = "broker.privileges.opener"
END_S = 2.0
_HANGS = "the opener does not answer: what is open goes on, but nothing that needs a capability can be opened until it does"
_GONE = "the opener has ended: nothing that needs a capability can be opened any more; start tapmesh again, the data path goes on meanwhile"


def wanted(config: Config) -> frozenset[int]:
    """The capabilities that `config` has a use for."""
    ends = any(t.tunnel is not None or t.interface for t in config.tools)
    found = set()
    if ends or any(i.kind in ("afpacket", "tunnel") for i in config.inputs):
        found.add(NET_RAW)
    # Buffers beyond net.core.rmem_max and wmem_max, the rules that a packet socket would go past, tc, tap devices.
    if ends or any(t.tap for t in config.tools) or any(i.kind == "tunnel" or i.dedicated for i in config.inputs):
        found.add(NET_ADMIN)
    return frozenset(found)


class Opener:
    """`start` before anything else is started, `listen` once the pipeline has its directory, `quit` or `leave` at the end."""

    def __init__(self, name: str, log: Any) -> None:
        self._name, self._log = name, log
        self._child: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._told = ""
        self._pulse: Pulse | None = None
        self._hangs = False
        self.kept: frozenset[int] = frozenset()

    def start(self, config: Config) -> None:
        """Have the opener run, if this process holds a capability that `config` has a use for, and give up one's own. Main thread."""
        self.kept = capabilities.held() & wanted(config)
        if self.kept:
            self._launch()
        capabilities.keep(())
        if reason := sandbox.enter("control"):
            self._log.warning("sandbox_missing", reason=reason)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-I", "-m", MODULE, "--pipeline", self._name, "--keep", *map(str, sorted(self.kept))]
            capabilities.hand_on(self.kept)
            self._child = subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True)
        self._control = ours
        self._log.info("opener_started", pid=self._child.pid, capabilities=[NAMES[number] for number in sorted(self.kept)])

    def listen(self, directory: Path) -> None:
        """From now on every process of the pipeline reaches it, this one too."""
        path = directory / asking.SOCKET_NAME
        if self._control is not None:
            inherited = self._inherited(directory)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                scratch = path.with_name(f".{path.name}")
                scratch.unlink(missing_ok=True)
                listener.bind(os.fspath(scratch))
                listener.listen(64)
                os.rename(scratch, path)
                with contextlib.suppress(OSError):  # it has ended: `trouble` says so
                    socket.send_fds(self._control, [msgpack.packb({"path": os.fspath(path)})], [listener.fileno()])
            self._end_others()
            asking.use(directory)
            for kept in inherited:
                with kept.socket, contextlib.suppress(OSError):
                    asking.keep(kept.name, kept.described, kept.socket)
            self._pulse = Pulse(path, msgpack.packb({"do": "list"}), asking.MESSAGE_BYTES)
        asking.use(directory)

    def _end_others(self) -> None:
        """They would hold sockets that a worker is to open again."""
        assert self._child is not None
        for pid in find(self._name, MODULE).keys() - {self._child.pid}:
            other = attach(pid, self._name, MODULE)
            if other is not None:
                other.send(signal.SIGKILL)
                other.wait(END_S)
                other.close()

    def _inherited(self, directory: Path) -> list[asking.KeptSocket]:
        """What the opener of a supervisor before us keeps for the workers that go on."""
        if not asking.use(directory):
            return []
        try:
            return asking.all_kept()
        except (OSError, ValueError, KeyError, TypeError) as error:  # another version, or it hangs: the workers have their sockets still
            self._log.warning("sockets_not_inherited", reason=str(error))
            return []

    def check(self) -> None:
        """Say once that it has ended, or that it hangs."""
        if self._child is None:
            return
        ended = self._child.poll() is not None
        self._hangs = not ended and self._pulse is not None and self._pulse.hangs()
        trouble = self.trouble()
        if trouble == self._told:
            return
        self._told = trouble
        if trouble:
            self._log.error("opener_died" if ended else "opener_hangs", pid=self._child.pid, status=self._child.returncode, reason=trouble)
        else:
            self._log.info("opener_answers", pid=self._child.pid)

    def trouble(self) -> str:
        """In words; empty: none."""
        if self._child is not None and self._child.returncode is not None:
            return _GONE
        return _HANGS if self._hangs else ""

    def quit(self) -> None:
        """End it: the pipeline is no more."""
        if self._control is not None and self._child is not None:
            with contextlib.suppress(OSError):
                self._control.send(msgpack.packb({"do": "end"}))
            try:
                self._child.wait(END_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self.leave()

    def leave(self) -> None:
        """Let it run on."""
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None
        if self._control is not None:
            self._control.close()
            self._control = None
