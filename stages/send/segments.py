"""Tunnels over UDP in runs: frames of one length are handed over at once, and cut into datagrams as far down as can be.

The network card does the cutting (UDP_SEGMENT, udp(7)), or the kernel right before it: what a datagram costs on its way through the IP
layer and the queue is paid once for a run. Which frames make one says `runs`; the order within a flow stays.

A socket has one source port, so there are `runs.SOCKETS` of them, and a flow belongs to one: ports 49152, 51200 ... 63488, that is the port
that its frames would have in files and on raw sockets, its low bits zero. A port that somebody else has is replaced by the next free one.
With `source_port` there is one socket. No capability is needed.

**Checksums.** Who cuts writes the UDP checksum, so there always is one (udp_send_skb, net/ipv4/udp.c: a socket without refuses
UDP_SEGMENT), over IPv4 too, whatever `udp_checksum` says. Receivers must take it (RFC 7348 section 4.1.1, RFC 8926 section 3.3).

**What cannot be a run** goes one by one, as on the sockets of `sockets`, by the same sockets: frames longer than the path's MTU, which the
kernel has to fragment; the frames of a run that was refused. A refusal for another reason than the MTU ends it for as long as the sockets
are open (`tool_not_segmented`): the device, or a policy of IPsec, does not allow it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from dataclasses import replace
from typing import Any

import numpy as np

from broker.core.model import Tool, Tunnel
from broker.core.stage import Context
from stages.send.datagrams import SEND_BUFFER_BYTES
from stages.send.egress import UDP_SEGMENT, Scratch
from stages.send.next_hop import keeps_runs
from stages.send.runs import MOST_BYTES, SOCKETS
from stages.send.sockets import UDP_HEADER, OpenSocket, SocketEgress, ip_header_bytes, open_socket

FIRST_PORT, PORTS_EACH = 49_152, 2048  # RFC 7348 section 5: 49152..65535, shared by SOCKETS
LOOK_EVERY_NS, ROUTE_EVERY_NS = 200_000_000, 5_000_000_000
PORT_BUFFER_BYTES = SEND_BUFFER_BYTES // 4
"""Of each of several sockets: a card that stands still would else pin all of what one socket may, for every one."""
_TRIES = 16
_IP_MTU, _IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h


def knows_segments() -> bool:
    """The kernel has UDP_SEGMENT (Linux 4.18)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
        return True
    return False


def open_ports(tunnel: Tunnel, opening: OpenSocket) -> list[socket.socket]:
    """A socket for each source port. OSError, as the kernel puts it."""
    if tunnel.source_port:
        return [opening(tunnel, SEND_BUFFER_BYTES)]
    with contextlib.ExitStack() as closing:
        ports = range(FIRST_PORT, FIRST_PORT + SOCKETS * PORTS_EACH, PORTS_EACH)
        opened = [closing.enter_context(_open_near(tunnel, port, opening)) for port in ports]
        closing.pop_all()
    return opened


def _open_near(tunnel: Tunnel, port: int, opening: OpenSocket) -> socket.socket:
    for near in range(port, port + _TRIES):
        try:
            return opening(replace(tunnel, source_port=near), PORT_BUFFER_BYTES)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class SegmentEgress(SocketEgress):
    """One tool behind a tunnel over UDP."""

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any, open_socket: OpenSocket = open_socket) -> None:
        self._ports: list[socket.socket] = []
        self._fds = np.zeros(SOCKETS, np.int64)
        self._may_segment = True
        self._kept = ""
        self._longest = 0
        self._due_ns = self._route_due_ns = 0
        super().__init__(tool, context, scratch, log, open_socket)

    def _open_socket(self) -> socket.socket:
        self._ports = open_ports(replace(self._tunnel, udp_checksum=True), self._opening)
        self._fds[: len(self._ports)] = [opened.fileno() for opened in self._ports]
        self._may_segment, self._due_ns = True, 0
        return self._ports[0]

    def _all(self) -> list[socket.socket]:
        return self._ports

    def _arrange(self, scratch: Scratch) -> None:
        now = time.monotonic_ns()
        if now >= self._route_due_ns:
            self._route_due_ns, self._due_ns = now + ROUTE_EVERY_NS, 0
            self._kept = keeps_runs(self._tunnel) if self.tool.backend == "auto" else ""
        if now >= self._due_ns:
            self._due_ns = now + LOOK_EVERY_NS
            self._longest = self._look()
        scratch.runs.group(scratch.job, scratch.job_at, int(self._fds.ctypes.data), len(self._ports), self._longest)

    def _look(self) -> int:
        """The longest datagram that the path takes whole; 0: none may be in a run."""
        v4 = self._ports[0].family == socket.AF_INET
        try:
            mtu = self._ports[0].getsockopt(*((socket.IPPROTO_IP, _IP_MTU) if v4 else (socket.IPPROTO_IPV6, _IPV6_MTU)))
        except OSError:  # there is no route at present: what is sent says so
            return 0
        return min(mtu - ip_header_bytes(self._tunnel) - UDP_HEADER, MOST_BYTES) if self._may_segment and not self._kept else 0

    def _handed_over(self, refusal: int) -> None:
        if not self._ports:  # it has failed since
            return
        # The path has become narrower: of that Linux before 6.14 says EINVAL (udp_send_skb, net/ipv4/udp.c).
        if refusal == errno.EMSGSIZE or self._look() < self._longest:
            self._due_ns = 0
        elif refusal in (errno.EINVAL, errno.EIO, errno.EOPNOTSUPP):
            self._may_segment, self._due_ns = False, 0
            self._notices.warn("tool_not_segmented", os.strerror(refusal), **self._where)

    def _shut(self) -> None:
        for opened in self._ports:
            opened.close()
        self._ports = []
        super()._shut()
