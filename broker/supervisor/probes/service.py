"""TCP: a connection to the tool's port. One that is refused is no answer: the host is there, but not what is to read the packets."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

from broker.core.model import Tool
from broker.supervisor.probes.probe import Probe, end, family_of, leave_as


def ask(tool: Tool) -> Probe:
    """OSError as the kernel puts it."""
    assert tool.tunnel is not None
    assert tool.health is not None
    opened = socket.socket(family_of(tool.tunnel.remote), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Closed by a reset: nothing is left waiting for minutes, neither here nor there.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leave_as(opened, tool.tunnel)
        refused = opened.connect_ex(end(tool.tunnel.remote, tool.health.port))
        if refused not in (0, errno.EINPROGRESS):
            raise OSError(refused, os.strerror(refused))
    except OSError:
        opened.close()
        raise

    def answered() -> bool:
        refused = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refused:
            raise OSError(refused, os.strerror(refused))
        return True

    return Probe(opened, select.POLLOUT, answered)
