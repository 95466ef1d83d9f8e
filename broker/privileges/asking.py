"""How a process without capabilities gets what needs one: it asks the opener of its pipeline, whose socket lies in the pipeline's
directory. Where none is in use each order is done here, with what this process may do itself.

One order a connection (SOCK_SEQPACKET, a msgpack map each way): `{do, ...}` with the arguments of a function of `orders` or a method of
`Kept`; back come `{errno: 0, value}`, or the errno, and a descriptor if the order makes one.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
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


def keep(name: str, described: str, opened: socket.socket) -> bool:
    """Have a socket outlive this process (`Kept.keep`). False: there is no opener that would. OSError as `Kept.keep`."""
    return _ask("keep", opened.fileno(), name=name, described=described) is not None


def find_kept(name: str, described: str) -> socket.socket | None:
    """What one before us has kept, if it is what we would open; None: nothing is."""
    try:
        found = _ask("find", name=name, described=described)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    return None if found is None else socket.socket(fileno=found[1])


def drop_kept(name: str) -> None:
    """Close it."""
    _ask("drop", name=name)


@dataclass(frozen=True)
class KeptSocket:
    name: str
    described: str
    socket: socket.socket


def all_kept() -> list[KeptSocket]:
    """Everything that is kept, for who is to keep it from now on."""
    found = []
    for name, described in (_ask("list") or ([], -1))[0]:
        kept = find_kept(name, described)
        if kept is not None:
            found.append(KeptSocket(name, described, kept))
    return found


def _ask(do: str, fd: int = -1, /, **arguments: Any) -> tuple[Any, int] | None:
    """(value, descriptor or -1); None: there is no opener. `fd` goes with the order. OSError as the kernel put it there."""
    if _place is None:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(WAIT_S)
        try:
            connection.connect(os.fspath(_place))
            socket.send_fds(connection, [msgpack.packb({"do": do, **arguments})], [fd] if fd >= 0 else [])
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
