"""A real opener for tests of one process."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack

from broker.privileges import asking
from broker.supervisor.opener import MODULE
from tests.waiting import until


@contextlib.contextmanager
def opener_of(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An opener with what this process may, which this process asks from now on."""
    path = directory / asking.SOCKET_NAME
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, "-m", MODULE, "--pipeline", "test", "--keep", "12", "13"]
        process = subprocess.Popen(command, stdin=theirs.fileno())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(str(path))
                listener.listen(8)
                socket.send_fds(ours, [msgpack.packb({"path": str(path)})], [listener.fileno()])
            assert asking.use(directory)
            yield process
        finally:
            process.kill()
            process.wait()
            path.unlink()
            asking.use(directory)
    until(lambda: process.poll() is not None, "the opener's end")
