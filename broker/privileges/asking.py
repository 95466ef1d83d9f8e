"""How a process without capabilities gets what needs one: it asks the opener of its pipeline, whose socket lies in the pipeline's
directory. Where none is in use each order is done here, with what this process may do itself.

One order a connection (SOCK_SEQPACKET, a msgpack map each way): `{do, ...}` with the arguments of a function of `orders` or a method of
`Kept`; back come `{errno: 0, value}`, or the errno, and a descriptor if the order makes one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from broker.core.messages import MessageError, unpack_map
from broker.privileges import orders

SOCKET_NAME = "opener.sock"
MESSAGE_BYTES = 65_536
"""The longest is the list of what is kept."""

WAIT_S = 1.5
"""The opener answers in a millisecond; one that is silent for so long hangs (TimeoutError). Less than a worker may be without heartbeat."""
HUNG_WAIT_S = 0.1
"""How long it is waited for after it has been found to hang, until it answers again."""

LOOK_S = 0.1
"""How often it is looked whether the opener is another."""

_place: Path | None = None
_number = 0  # of its inode: another opener has another socket
_look_s = 0.0  # when next
_hangs = False
_ours: dict[str, tuple[str, socket.socket]] = {}  # what is kept for us: name -> described, and our own


def use(directory: Path) -> bool:
    """From now on this process asks the opener of the pipeline in `directory`, if it has one. Whether it has."""
    global _place, _number
    path = directory / SOCKET_NAME
    _number = _number_of(path)
    _place = path if _number else None
    return _place is not None


def _number_of(path: Path) -> int:
    """0: there is none."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


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


def rules_passed_by(wait_s: float = WAIT_S) -> str:
    """As `orders.rules_passed_by`; TimeoutError after `wait_s`."""
    found = _ask("rules_passed_by", wait_s=wait_s)
    return orders.rules_passed_by() if found is None else str(found[0])


def keep(name: str, described: str, opened: socket.socket) -> bool:
    """Have a socket outlive this process (`Kept.keep`). False: there is no opener that would. OSError as `Kept.keep`."""
    _ours[name] = described, opened
    return _ask("keep", opened.fileno(), name=name, described=described) is not None


def find_kept(name: str, described: str) -> socket.socket | None:
    """What one before us has kept, if it is what we would open; None: nothing is. OSError: nobody can tell, and to open another would
    lose what this one holds."""
    try:
        found = _ask("find", name=name, described=described)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    if found is None:
        return None
    kept = socket.socket(fileno=found[1])
    _ours[name] = described, kept
    return kept


def keep_again() -> None:
    """Where there is another opener now, because the one before has died, have it keep what that one has kept for us. Costs nothing to
    speak of; to be called again and again by who has sockets kept."""
    global _number, _look_s
    now = time.monotonic()
    if _place is None or now < _look_s:
        return
    _look_s = now + LOOK_S
    number = _number_of(_place)
    if number in (0, _number):
        return
    _number = number
    for name, (described, opened) in list(_ours.items()):
        if opened.fileno() >= 0:
            with contextlib.suppress(OSError):  # then a worker that dies costs what it costs without an opener
                keep(name, described, opened)


def drop_kept(name: str) -> None:
    """Close it."""
    _ours.pop(name, None)
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


def _ask(do: str, fd: int = -1, /, *, wait_s: float = WAIT_S, **arguments: Any) -> tuple[Any, int] | None:
    """(value, descriptor or -1); None: there is no opener. `fd` goes with the order. OSError as the kernel put it there; TimeoutError."""
    global _hangs
    if _place is None:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(min(wait_s, HUNG_WAIT_S) if _hangs else wait_s)
        try:
            connection.connect(os.fspath(_place))
            socket.send_fds(connection, [msgpack.packb({"do": do, **arguments})], [fd] if fd >= 0 else [])
            raw, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        except (ConnectionError, FileNotFoundError):
            return None  # it is gone: the kernel says below what we may not do ourselves
        except (TimeoutError, BlockingIOError):  # the latter: more wait to be heard than it has room for
            _hangs = True
            raise TimeoutError(errno.ETIMEDOUT, "the opener does not answer") from None
    _hangs = False
    if not raw:
        return None
    try:
        answer = unpack_map(raw, errno=int)
    except MessageError:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO)) from None
    if answer["errno"]:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    return answer.get("value"), fds[0] if fds else -1
