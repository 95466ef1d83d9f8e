"""Questions to the kernel about routes, links, addresses, traffic control and rules, orders to it, and its news (netlink(7), rtnetlink(7)).

Nothing here is asked per packet.
"""

from __future__ import annotations

import os
import socket
import struct

ROUTE, XFRM, NETFILTER = 0, 6, 12
"""Protocols (linux/netlink.h)."""
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
CREATE, EXCLUSIVE = 0x400, 0x200
"""Flags of an order: make it; refuse (EEXIST) if it is there."""

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_NESTED_AND_ORDER = 0xC000  # flags in the type
_MOST_BYTES = 32 * 1024  # of one answer


def attribute(kind: int, value: bytes) -> bytes:
    """One rtattr, filled up to a multiple of 4 bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(body: bytes, at: int = 0) -> dict[int, bytes]:
    """Type -> value, of the rtattrs from `at` on."""
    values: dict[int, bytes] = {}
    while at + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, at)
        values[kind & ~_NESTED_AND_ORDER] = body[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3 or _ATTRIBUTE.size
    return values


def ask(message: int, body: bytes) -> list[tuple[int, bytes]]:
    """One question; (type, body) of what the kernel answers. OSError as it puts it."""
    return _talk(ROUTE, message, _ACK, body)


def dump(message: int, body: bytes, protocol: int = ROUTE) -> list[bytes]:
    """The bodies of all there are."""
    return [answer for _, answer in _talk(protocol, message, _DUMP, body)]


def order(message: int, body: bytes, flags: int = 0) -> None:
    """OSError as the kernel puts it when it refuses."""
    _talk(ROUTE, message, _ACK | flags, body)


def _talk(protocol: int, message: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """The kernel answers before `send` returns, and each `recv` of a long answer has it write the next part: this does not wait."""
    found: list[tuple[int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol) as asking:
        asking.send(_HEADER.pack(_HEADER.size + len(body), message, _REQUEST | flags, 1, 0) + body)
        while True:
            part, at = asking.recv(_MOST_BYTES), 0
            while at + _HEADER.size <= len(part):
                length, kind, *_ = _HEADER.unpack_from(part, at)
                answer = part[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if kind == _ERROR:
                    (number,) = struct.unpack_from("=i", answer)
                    if number:
                        raise OSError(-number, os.strerror(-number))
                    return found
                if kind == _DONE:
                    return found
                found.append((kind, answer))


class News:
    """Has anything changed? `groups`: a mask of RTMGRP_* (linux/rtnetlink.h)."""

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, ROUTE)
        self._socket.bind((0, groups))

    def came(self) -> bool:
        """Since it was asked last. What it was does not matter: who asks looks again."""
        some = False
        try:
            while True:
                self._socket.recv(1)  # the rest of a message is thrown away
                some = True
        except BlockingIOError:
            return some
        except OSError:  # ENOBUFS: more has come than fits
            return True

    def close(self) -> None:
        self._socket.close()
