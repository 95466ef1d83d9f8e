"""Tunnels to the wire over sockets. The kernel writes the outer IP header.

| tunnel | socket | sent from | needs |
|---|---|---|---|
| over GRE: gre, nvgre, gre-ip, erspan1-3 | SOCK_RAW, IPPROTO_GRE | the GRE header on | CAP_NET_RAW |
| over UDP: gre-udp, vxlan, geneve | SOCK_RAW, IPPROTO_UDP | the UDP header on, its source port by flow hash | CAP_NET_RAW |
| the same with `source_port`, or without CAP_NET_RAW | SOCK_DGRAM | what follows the UDP header | - |

A UDP socket has one port of its own, so a receiver that spreads by ports gets everything on one core: without CAP_NET_RAW that is told once
(`tool_one_port`). All are connected, so that a send needs no route lookup by address and ICMP errors find their way back. Frames longer
than the path's MTU are fragmented by the kernel (IP_PMTUDISC_DONT). With `df`, and where encapsulate slices or drops them, they are refused
(EMSGSIZE), also by what ICMP has taught about the path: only where DF is set does a router say that its link takes less. IPv6 flow labels
are zero, as in files. Nothing is received: a filter that takes no packet keeps answers from piling up.

IP_RECVERR is on, because without it Linux takes a frame that its own queue has dropped for sent (udp_send_skb, raw_sendmsg: ENOBUFS becomes
0). The price is a queue of ICMP reports, which is emptied. A UDP socket hands out what came last at its next send (`kernels.send_frames`),
so its queue is read after a block that had such a send; a raw socket never does, so its queue is looked into after each block. A raw UDP
socket also gets the reports about whatever else this host sends to the same address over UDP: those that quote another port are not
counted. What a queue like fq_codel drops *later*, to make room, is told to nobody; ``tc -s qdisc`` shows it.

| state | becomes | when |
|---|---|---|
| open | waiting | the socket is full: at most PATIENCE_NS a block, and none at all in the blocks after one that was in vain |
| waiting | open | it has room again |
| open | down | GIVE_UP_AFTER frames in a row were refused for reasons that are not theirs (`Retry` says when to open again) |
| down | open | opening worked |
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace
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
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT, _PMTUDISC_DO = 10, 23, 0, 2
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IPV6_CHECKSUM, _IPV6_AUTOFLOWLABEL = 7, 70
_SO_NO_CHECK, _SO_BINDTODEVICE, _SO_ATTACH_FILTER, _SO_SNDBUFFORCE = 11, 25, 26, 32
_MSG_ERRQUEUE = 0x2000
_ORIGIN_LOCAL = 1  # linux/errqueue.h: our own host refused it, which the send has said
_BPF_RETURN = 0x06  # linux/filter.h BPF_RET | BPF_K

_IP_HEADER = {socket.AF_INET: 20, socket.AF_INET6: 40}
_UDP_HEADER = 8
_UDP_CHECKSUM_AT = 6
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)

OpenSocket = Callable[[Tunnel], socket.socket]


def open_socket(tunnel: Tunnel) -> socket.socket:
    """A connected socket that takes what follows the headers which the kernel writes. OSError, as the kernel puts it."""
    family = _family(tunnel)
    opened = _made(family, tunnel)
    raw = opened.type == socket.SOCK_RAW
    try:
        _take_nothing(opened)
        _set_buffers(opened)
        _set_header(opened, family, tunnel)
        if tunnel.interface:
            opened.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, tunnel.interface.encode())
        if tunnel.source or tunnel.source_port:
            if tunnel.source_port:  # every worker of every lane sends from this port
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            opened.bind(_end(tunnel.source or ("0.0.0.0" if family == socket.AF_INET else "::"), 0 if raw else tunnel.source_port))
        opened.connect(_end(tunnel.remote, 0 if raw else tunnel.udp_port))
    except OSError:
        opened.close()
        raise
    return opened


def _made(family: socket.AddressFamily, tunnel: Tunnel) -> socket.socket:
    raw = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    if not tunnel.udp_port:
        return socket.socket(family, raw, _IPPROTO_GRE)
    if not tunnel.source_port:
        with contextlib.suppress(PermissionError):
            return socket.socket(family, raw, socket.IPPROTO_UDP)
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


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
    v4, raw = family == socket.AF_INET, opened.type == socket.SOCK_RAW
    fragment = _PMTUDISC_DO if tunnel.df else _PMTUDISC_DONT
    if v4:
        options = [
            (socket.IP_TTL, tunnel.ttl),
            (socket.IP_MULTICAST_TTL, tunnel.ttl),
            (socket.IP_TOS, tunnel.dscp << 2),
            (_IP_MTU_DISCOVER, fragment),
            (_IP_RECVERR, 1),
        ]
    else:
        options = [
            (socket.IPV6_UNICAST_HOPS, tunnel.ttl),
            (socket.IPV6_MULTICAST_HOPS, tunnel.ttl),
            (socket.IPV6_TCLASS, tunnel.dscp << 2),
            (_IPV6_MTU_DISCOVER, fragment),
            (_IPV6_RECVERR, 1),
            (_IPV6_AUTOFLOWLABEL, 0),
        ]
        if raw and tunnel.udp_port:  # the kernel computes it: it knows the addresses
            options.append((_IPV6_CHECKSUM, _UDP_CHECKSUM_AT))
    for option, value in options:
        opened.setsockopt(socket.IPPROTO_IP if v4 else socket.IPPROTO_IPV6, option, value)
    if v4 and not raw and not tunnel.udp_checksum:
        opened.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)


class SocketEgress:
    """One tool behind a socket."""

    repeats = True

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any, open_socket: OpenSocket = open_socket) -> None:
        assert tool.tunnel is not None
        self.tool = tool
        self._tunnel = replace(tool.tunnel, df=tool.whole)
        self._raw = False
        self._skip = 0  # bytes of each header that the kernel writes
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
        self._raw = self._socket.type == socket.SOCK_RAW
        one_port = not self._raw and bool(self._tunnel.udp_port)
        self._skip = _IP_HEADER[_family(self._tunnel)] + (_UDP_HEADER if one_port else 0)
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLOUT)
        self._notices.info("tool_opened", remote=self._tunnel.remote, kind=self._tunnel.kind)
        if one_port and not self._tunnel.source_port:
            self._notices.warn("tool_one_port", "raw sockets need CAP_NET_RAW", remote=self._tunnel.remote)
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
        if self._raw or self._counters[UNHEARD] != unheard:
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
        heard = 0
        for _ in range(MOST_REPORTS):
            try:
                quoted, ancillary, _, _ = self._socket.recvmsg(512, 512, _MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            except OSError:  # no more; or the pending error itself, which this call has taken
                break
            for _, _, report in ancillary:
                if report[4] != _ORIGIN_LOCAL and self._is_ours(quoted):
                    heard += 1
                    self._notices.warn("tool_unheard", os.strerror(int.from_bytes(report[:4], "little")), remote=self._tunnel.remote)
        if self._raw and heard:
            self._counters[UNHEARD] += 1

    def _is_ours(self, quoted: bytes) -> bool:
        """`quoted`: the packet that a message is about, from its UDP or GRE header on."""
        return not (self._raw and self._tunnel.udp_port) or quoted[2:4] == self._tunnel.udp_port.to_bytes(2, "big")

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
