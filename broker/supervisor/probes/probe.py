"""One question to a tool, and how its answer is recognized. Every probe has a socket of its own: what comes late for one is no answer to
the next, and an error that the kernel reports is about this one."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.core.model import Tunnel

SO_BINDTODEVICE = 25  # asm-generic/socket.h
ICMP_FILTER = {socket.AF_INET: (255, 1), socket.AF_INET6: (socket.IPPROTO_ICMPV6, 1)}  # level, option: linux/icmp.h, linux/icmpv6.h
_OURS = (errno.EPERM, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


class CannotAskError(Exception):
    """It is for us that it does not work: nothing is known of the tool."""


@dataclass(frozen=True, slots=True)
class Probe:
    """`answered` is called when poll says one of `events`, again until it is True or raises. False: that was something else;
    BlockingIOError: no more has come yet; any other OSError: no answer will come."""

    socket: socket.socket
    events: int
    answered: Callable[[], bool]

    def close(self) -> None:
        self.socket.close()


def refused_by_us(error: OSError) -> bool:
    """This host does not let us ask; else the way to the tool is what is wrong, or the tool."""
    return error.errno in _OURS


def in_words(error: OSError) -> str:
    if error.errno == errno.ENOBUFS:  # Linux says so with IP_RECVERR, also of a queue that takes nothing because there is no carrier
        return "our own queue drops it: the interface has no link, or is full"
    return error.strerror or str(error)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6


def end(address: str, port: int = 0) -> Any:
    """The socket address."""
    return (address, port) if family_of(address) == socket.AF_INET else (address, port, 0, 0)


def only_type(kind: int, n_words: int) -> bytes:
    """A filter of ICMP (`n_words` 1) or ICMPv6 (8) messages that lets one type pass: a bit that is set blocks its type (linux/icmp.h)."""
    words = [0xFFFF_FFFF] * n_words
    words[kind >> 5] ^= 1 << (kind & 31)
    return struct.pack(f"={n_words}I", *words)


def leave_as(opened: socket.socket, tunnel: Tunnel) -> None:
    """By the way that the tunnel's packets take."""
    if tunnel.interface:
        opened.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, tunnel.interface.encode())
    if tunnel.source:
        opened.bind(end(tunnel.source))
