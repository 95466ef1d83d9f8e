"""The opener: the one process of a pipeline that has capabilities. It does `orders` for the others, keeps sockets for those that may die
(`kept`), and knows nothing of configurations.

``python -I -m broker.privileges.opener --pipeline NAME``, started by the supervisor, which then gives up its own. Standard input is a
socket to the supervisor (SOCK_SEQPACKET):

| comes | then |
|---|---|
| {path} with a descriptor | that is the socket to listen on, and where it is: every process of the pipeline reaches it, and no other user |
| anything without | it ends |
| the end | it goes on: the data path outlives its control. It ends when its socket has gone from where it was, or is another's |
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import signal
import socket
import struct
import sys
from typing import Any

import msgpack

from broker.core.messages import MessageError, unpack_map
from broker.privileges import capabilities, orders, sandbox
from broker.privileges.asking import MESSAGE_BYTES
from broker.privileges.kept import Kept

LOOK_S = 1.0
REQUEST_S = 0.5
"""Who connects and says nothing is hung up on."""
_ORDERS = {
    "open_socket": orders.open_socket,
    "open_tap": orders.open_tap,
    "dedicate": orders.dedicate,
    "release": orders.release,
    "rules_passed_by": orders.rules_passed_by,
}
_MAKES = ("open_socket", "open_tap", "find")  # a descriptor
_WORDS = ("name", "described")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m broker.privileges.opener")
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--keep", required=True, type=int, nargs="*", help="numbers of capabilities")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # those meant for the supervisor's terminal or group
    capabilities.keep(arguments.keep)
    capabilities.hide_memory()
    sandbox.enter("opener")
    serve(socket.socket(fileno=sys.stdin.fileno()))
    return 0


def serve(control: socket.socket) -> None:
    """Until told to end, or until nobody can reach it any more."""
    listener: socket.socket | None = None
    path, number = "", 0
    kept = Kept()
    while True:
        poller = select.poll()
        for one in (control, listener):
            if one is not None and one.fileno() >= 0:
                poller.register(one, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(LOOK_S * 1000)}
        if control.fileno() in ready:
            raw, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
            if fds:
                kept.drop_all()  # another pipeline of the name: its positions are not of those sockets
                listener = socket.socket(fileno=fds[0])
                listener.setblocking(False)
                path = unpack_map(raw, path=str)["path"]
                number = _number(path)
            elif raw or listener is None:
                return
            else:
                control.close()
        if listener is not None and listener.fileno() in ready:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(REQUEST_S)
                    answer(connection, kept)
        if control.fileno() < 0 and listener is not None and _number(path) != number:
            return


def _number(path: str) -> int:
    """Of the inode that it leads to; 0: to none."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def answer(connection: socket.socket, kept: Kept) -> None:
    """One order. What cannot be understood is refused with EINVAL."""
    fds: list[int] = []
    try:
        raw, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        request = unpack_map(raw, do=str)
        do = request.pop("do")
        if any(type(value) not in (int, str) or (type(value) is str) != (name in _WORDS) for name, value in request.items()):
            raise MessageError("all arguments are numbers but the name and how it is described")
        if do == "keep":
            request["fd"] = fds[0]
        value: Any = (_ORDERS[do] if do in _ORDERS else _of_kept(kept)[do])(**request)  # type: ignore[operator]
        if do in _MAKES:
            fds.append(value.detach() if isinstance(value, socket.socket) else value)
            socket.send_fds(connection, [msgpack.packb({"errno": 0})], fds[-1:])
        else:
            connection.send(msgpack.packb({"errno": 0, "value": value}))
    except OSError as error:
        _refuse(connection, error.errno or errno.EIO)
    except (MessageError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, struct.error):
        _refuse(connection, errno.EINVAL)
    finally:
        for fd in fds:
            os.close(fd)


def _of_kept(kept: Kept) -> dict[str, Any]:
    return {"keep": kept.keep, "find": kept.find, "drop": kept.drop, "list": kept.list}


def _refuse(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        connection.send(msgpack.packb({"errno": number}))


if __name__ == "__main__":
    sys.exit(main())
