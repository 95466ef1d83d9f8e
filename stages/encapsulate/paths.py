"""How long a packet may be on the way to each tool: what the configuration says, else the kernel's word.

The kernel knows the MTU of the route, and less than that once a router on the way has said so (ICMP "fragmentation needed", ICMPv6 "packet
too big", RFC 1191, RFC 8201). It is asked now and then, by a socket that sends nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator

from broker.core.model import Tool, Tunnel

LOOK_EVERY_NS = 500_000_000
_IP_MTU, _IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_WANT = 10, 23, 1
_SO_BINDTODEVICE = 25  # asm-generic/socket.h
_DISCARD_PORT = 9  # connecting a datagram socket sends nothing, but it wants a port


class Paths:
    """Of the tools that slice or drop what is too long."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._asked = [t for t in tools if t.tunnel is not None and t.oversize != "fragment"]
        self._known: dict[int, int] = {}
        self._due_ns = 0

    def changed(self) -> Iterator[tuple[int, int]]:
        """(slot, MTU) of the tools whose MTU is another than last time; looks at most every LOOK_EVERY_NS."""
        if not self._asked or time.monotonic_ns() < self._due_ns:
            return
        self._due_ns = time.monotonic_ns() + LOOK_EVERY_NS
        for tool in self._asked:
            assert tool.tunnel is not None
            mtu = tool.mtu_bytes or (0 if tool.file else path_mtu(tool.tunnel))
            if self._known.get(tool.slot) != mtu:
                self._known[tool.slot] = mtu
                yield tool.slot, mtu


def path_mtu(tunnel: Tunnel) -> int:
    """Of the route to the tunnel's end; 0 when there is none."""
    family, level, option, discover, wanted = (
        (socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_MTU, _IPV6_MTU_DISCOVER, _PMTUDISC_WANT)
        if ":" in tunnel.remote
        else (socket.AF_INET, socket.IPPROTO_IP, _IP_MTU, _IP_MTU_DISCOVER, _PMTUDISC_WANT)
    )
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        [(_, _, _, _, end)] = socket.getaddrinfo(tunnel.remote, _DISCARD_PORT, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        probe.setsockopt(level, discover, wanted)
        if tunnel.interface:
            probe.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, tunnel.interface.encode())
        if tunnel.source:
            probe.bind((tunnel.source, 0))
        probe.connect(end)
        return probe.getsockopt(level, option)
    return 0
