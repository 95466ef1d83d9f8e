"""Tunnels to the wire over sockets: raw IP for GRE, UDP for GRE-in-UDP. The kernel writes the outer IP header (and the UDP header).

| kind | socket | sent from | needs |
|---|---|---|---|
| gre | SOCK_RAW, IPPROTO_GRE | the GRE header on | CAP_NET_RAW |
| gre-udp | SOCK_DGRAM | the GRE header on | - |

Both are connected, so that a send needs no route lookup by address and ICMP errors find their way back. Frames longer than the path's MTU
are fragmented by the kernel (IP_PMTUDISC_DONT). Nothing is received: a filter that takes no packet keeps answers from piling up.

IP_RECVERR is on, because without it Linux takes a frame that its own queue has dropped for sent (udp_send_skb, raw_sendmsg: ENOBUFS becomes
0). The price is a queue of ICMP reports, which is emptied after each block that had some. What a queue like fq_codel drops *later*, to
make room, is told to nobody; ``tc -s qdisc`` shows it.

| state | becomes | when |
|---|---|---|
| open | waiting | the socket is full: at most PATIENCE_NS a block, and none at all in the blocks after one that was in vain |
| waiting | open | it has room again |
| open | down | GIVE_UP_AFTER frames in a row were refused for reasons that are not theirs (`Retry` says when to open again) |
| down | open | opening worked |
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from broker.core.batch import Batch
from broker.core.model import Tool, Tunnel
from broker.core.stage import Context
from stages.send import kernels
from stages.send.egress import FULL, OPENING, SENDING, UNHEARD, Notices, Retry, Scratch

PATIENCE_NS = 2_000_000
SEND_BUFFER_BYTES = 4 * 1024 * 1024
REPORT_BUFFER_BYTES = 8192  # a few ICMP messages: what they say is the same
MOST_REPORTS = 8  # read after a block

_IPPROTO_GRE = 47
# linux/in.h, linux/in6.h, asm-generic/socket.h: names that Python lacks
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_SO_ATTACH_FILTER, _SO_SNDBUFFORCE = 26, 32
_MSG_ERRQUEUE = 0x2000
_BPF_RETURN = 0x06  # linux/filter.h BPF_RET | BPF_K

_IP_HEADER = {socket.AF_INET: 20, socket.AF_INET6: 40}
_UDP_HEADER = 8
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)

OpenSocket = Callable[[Tunnel], socket.socket]


def open_socket(tunnel: Tunnel) -> socket.socket:
    """A connected socket that takes what follows the outer headers. OSError, as the kernel puts it."""
    family = _family(tunnel)
    raw = tunnel.kind == "gre"
    opened = (
        socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _IPPROTO_GRE)
        if raw
        else socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    )
    try:
        _take_nothing(opened)
        _set_buffers(opened)
        _set_header(opened, family, tunnel)
        if tunnel.source or tunnel.source_port:
            if tunnel.source_port:  # every worker of every lane sends from this port
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            opened.bind(_end(tunnel.source or ("0.0.0.0" if family == socket.AF_INET else "::"), 0 if raw else tunnel.source_port))
        opened.connect(_end(tunnel.remote, 0 if raw else tunnel.port))
    except OSError:
        opened.close()
        raise
    return opened


def _family(tunnel: Tunnel) -> socket.AddressFamily:
    return socket.AF_INET if ipaddress.ip_address(tunnel.remote).version == 4 else socket.AF_INET6


def _end(address: str, port: int) -> Any:
    """The socket address; knows scopes (fe80::1%eth0)."""
    return socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4]


def _take_nothing(opened: socket.socket) -> None:
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _set_buffers(opened: socket.socket) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
    except PermissionError:  # needs CAP_NET_ADMIN; else net.core.wmem_max is the limit
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, REPORT_BUFFER_BYTES)


def _set_header(opened: socket.socket, family: int, tunnel: Tunnel) -> None:
    if family == socket.AF_INET:
        level, options = (
            socket.IPPROTO_IP,
            (
                (socket.IP_TTL, tunnel.ttl),
                (socket.IP_MULTICAST_TTL, tunnel.ttl),
                (socket.IP_TOS, tunnel.dscp << 2),
                (_IP_MTU_DISCOVER, _PMTUDISC_DONT),
                (_IP_RECVERR, 1),
            ),
        )
    else:
        level, options = (
            socket.IPPROTO_IPV6,
            (
                (socket.IPV6_UNICAST_HOPS, tunnel.ttl),
                (socket.IPV6_MULTICAST_HOPS, tunnel.ttl),
                (socket.IPV6_TCLASS, tunnel.dscp << 2),
                (_IPV6_MTU_DISCOVER, _PMTUDISC_DONT),
                (_IPV6_RECVERR, 1),
            ),
        )
    for option, value in options:
        opened.setsockopt(level, option, value)


class SocketEgress:
    """One tool behind a socket."""

    repeats = True

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any, open_socket: OpenSocket = open_socket) -> None:
        assert tool.tunnel is not None
        self.tool = tool
        self._tunnel = tool.tunnel
        self._skip = _IP_HEADER[_family(tool.tunnel)] + (_UDP_HEADER if tool.tunnel.kind == "gre-udp" else 0)
        self._counters = context.counters[tool.slot :]
        self._counters_at = context.counters_at + 8 * tool.slot
        self._scratch = scratch
        self._notices = Notices(log, tool)
        self._retry = Retry()
        self._open_socket = open_socket
        self._socket: socket.socket | None = None
        self._down = 0  # the counter of frames that come while it is not open
        self._patience_ns = PATIENCE_NS
        self._failures = 0
        self._open()

    def _open(self) -> bool:
        try:
            self._socket = self._open_socket(self._tunnel)
        except OSError as error:
            self._fail(error.errno or 0, OPENING, "tool_down")
            return False
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLOUT)
        self._notices.info("tool_opened", remote=self._tunnel.remote, kind=self._tunnel.kind)
        return True

    def _fail(self, number: int, reasons: Any, event: str) -> None:
        self._down = int(reasons[number]) if 0 <= number < kernels.N_REASONS else int(reasons[0])
        self.close()
        self._retry.failed()
        self._notices.warn(event, os.strerror(number), remote=self._tunnel.remote, errno=errno.errorcode.get(number, str(number)))

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        if self._socket is None and not (self._retry.due() and self._open()):
            self._counters[self._down] += n_rows
            return
        assert self._socket is not None
        scratch = self._scratch
        scratch.job[0] = (
            self._socket.fileno(), self._skip, self._counters_at, scratch.reasons_at, scratch.vectors_at, scratch.progress_at, progress,
            rows_at, n_rows, 0, self._failures, batch.frames_at, batch.headers_at, batch.data_at,
        )  # fmt: skip
        unheard = int(self._counters[UNHEARD])
        self._hand_over(n_rows)
        self._failures = int(scratch.job["failures"][0])
        if self._counters[UNHEARD] != unheard:
            self._read_reports()

    def _hand_over(self, n_rows: int) -> None:
        job, job_at = self._scratch.job, self._scratch.job_at
        was_full = False
        until = 0
        while number := kernels.send_frames(job_at):
            done = int(job["done"][0])
            if number not in _FULL:
                self._fail(number, SENDING, "tool_refused")
                self._counters[self._down] += n_rows - done
                return
            now = time.monotonic_ns()
            until = until or now + self._patience_ns
            was_full = True
            if now < until:
                self._wait(number, until - now)
                continue
            # One call's worth, and then another try: what has drained meanwhile is used, and a dead socket costs few calls.
            dropped = min(kernels.VECTORS, n_rows - done)
            self._counters[FULL] += dropped
            job["done"] = done + dropped
            self._patience_ns = 0
            self._notices.warn("tool_full", os.strerror(number), remote=self._tunnel.remote)
        if not was_full:
            self._patience_ns = PATIENCE_NS
        if not job["failures"][0]:
            self._retry.worked()

    def _read_reports(self) -> None:
        """Empty the queue of ICMP messages, and tell what they say (struct sock_extended_err, linux/errqueue.h)."""
        if self._socket is None:
            return
        for _ in range(MOST_REPORTS):
            try:
                _, ancillary, _, _ = self._socket.recvmsg(0, 512, _MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            except OSError:  # no more; or the pending error itself, which this call has taken
                return
            for _, _, report in ancillary:
                self._notices.warn("tool_unheard", os.strerror(int.from_bytes(report[:4], "little")), remote=self._tunnel.remote)

    def _wait(self, number: int, limit_ns: int) -> None:
        self._read_reports()  # poll would return at once as long as there is one
        if number == errno.EAGAIN:
            self._poller.poll(max(1, limit_ns // 1_000_000))
        else:  # a queue further down is full, or memory short: nothing announces the end of that
            time.sleep(min(limit_ns, 200_000) / 1e9)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
