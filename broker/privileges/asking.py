"""How a process without capabilities gets what needs one: it asks the opener of its pipeline, whose socket lies in the pipeline's
directory. Where none is in use each order is done here, with what this process may do itself.

One order a connection (SOCK_SEQPACKET, a msgpack map each way): `{do, ...}` with the arguments of a function of `orders`; back come
`{errno: 0, value}`, or the errno, and a descriptor if the order makes one.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import msgpack

from broker.core.messages import MessageError, unpack_map
from broker.privileges import orders

SOCKET_NAME = "opener.sock"
MESSAGE_BYTES = 4096
WAIT_S = 5.0
"""The opener answers in a millisecond; one that is silent for so long hangs (OSError: ETIMEDOUT)."""

_place: Path | None = None


def use(directory: Path) -> bool:
    """From now on this process asks the opener of the pipeline in `directory`, if it has one. Whether it has."""
    global _place
    path = directory / SOCKET_NAME
    _place = path if path.exists() else None
    return _place is not None


def open_socket(family: int, kind: int, protocol: int = 0, *, send_buffer: int = 0, receive_buffer: int = 0) -> socket.socket:
    """As `orders.open_socket`."""
    found = _ask("open_socket", family=family, kind=kind, protocol=protocol, send_buffer=send_buffer, receive_buffer=receive_buffer)
    if found is None:
        return orders.open_socket(family, kind, protocol, send_buffer=send_buffer, receive_buffer=receive_buffer)
    opened = socket.socket(fileno=found[1])
    opened.setblocking(not kind & socket.SOCK_NONBLOCK)
    return opened


def open_tap(name: str) -> int:
    """As `orders.open_tap`."""
    found = _ask("open_tap", name=name)
    return orders.open_tap(name) if found is None else found[1]


def dedicate(name: str) -> str:
    """As `orders.dedicate`."""
    found = _ask("dedicate", name=name)
    return orders.dedicate(name) if found is None else str(found[0])


def release(name: str) -> bool:
    """As `orders.release`."""
    found = _ask("release", name=name)
    return orders.release(name) if found is None else bool(found[0])


def rules_passed_by() -> str:
    """As `orders.rules_passed_by`."""
    found = _ask("rules_passed_by")
    return orders.rules_passed_by() if found is None else str(found[0])


def _ask(do: str, **arguments: Any) -> tuple[Any, int] | None:
    """(value, descriptor or -1); None: there is no opener. OSError as the kernel put it there."""
    if _place is None:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(WAIT_S)
        try:
            connection.connect(os.fspath(_place))
            connection.send(msgpack.packb({"do": do, **arguments}))
            raw, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        except (ConnectionError, FileNotFoundError):
            return None  # it is gone: the kernel says below what we may not do ourselves
    if not raw:
        return None
    try:
        answer = unpack_map(raw, errno=int)
    except MessageError:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO)) from None
    if answer["errno"]:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    return answer.get("value"), fds[0] if fds else -1
