"""The real kernel runs a socket filter over frames: a pair of Unix sockets takes them, and cuts them as a packet socket would."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable

_SO_ATTACH_FILTER = 26


def left_of(program: bytes, frames: Iterable[bytes]) -> list[int]:
    """How many bytes of each frame are left; 0: it was rejected."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        code = ctypes.create_string_buffer(program, len(program))
        theirs.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
        theirs.setblocking(False)
        found = []
        for frame in frames:
            if not frame:
                found.append(0)
                continue
            ours.send(frame)
            try:
                found.append(len(theirs.recv(1 << 17)))
            except BlockingIOError:
                found.append(0)
        return found
