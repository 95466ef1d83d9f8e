"""What the kernel answers to single questions by netlink(7), and the news that it sends. Nothing here is asked per packet."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

Attributes = dict[int, bytes]
"""By type; of several the last."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR, _DONE = 2, 3  # linux/netlink.h
_REQUEST, _DUMP = 1, 0x300
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
_ANSWER_BYTES = 65_536
_ANSWER_S = 1.0  # the kernel answers at once, or not at all


def ask(protocol: int, kind: int, body: bytes, *, dump: bool = False) -> Iterator[tuple[int, bytes]]:
    """(type, what follows the header) of each message of the answer. OSError, as the kernel puts it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as asking:
        asking.settimeout(_ANSWER_S)
        asking.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | (_DUMP if dump else 0), 1, 0) + body)
        while True:
            answer = asking.recv(_ANSWER_BYTES)
            at = 0
            while at + _HEADER.size <= len(answer):
                length, found, *_ = _HEADER.unpack_from(answer, at)
                content = answer[at + _HEADER.size : at + length]
                at += -(-length // 4) * 4
                if found == _DONE:
                    return
                if found == _ERROR:
                    number = -int.from_bytes(content[:4], "little", signed=True)
                    raise OSError(number, os.strerror(number))
                yield found, content
            if not dump:
                return


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Attributes:
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4
    return found


class News:
    """Has anything changed? `groups`: a mask of RTMGRP_* (linux/rtnetlink.h)."""

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
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
