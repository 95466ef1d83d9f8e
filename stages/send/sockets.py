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

States: `datagrams`.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from broker.core.batch import Batch
from broker.core.model import Tool, Tunnel
from broker.core.stage import Context
from broker.privileges import asking
from stages.send import datagrams
from stages.send.datagrams import DatagramEgress
from stages.send.egress import UNHEARD, Scratch

REPORT_BUFFER_BYTES = 8192  # a few ICMP messages: what they say is the same
MOST_REPORTS = 8  # read after a block

_IPPROTO_GRE = 47
# linux/in.h, linux/in6.h, asm-generic/socket.h: names that Python lacks
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT, _PMTUDISC_DO = 10, 23, 0, 2
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IPV6_CHECKSUM, _IPV6_AUTOFLOWLABEL = 7, 70
_SO_NO_CHECK, _SO_BINDTODEVICE, _SO_ATTACH_FILTER = 11, 25, 26
_MSG_ERRQUEUE = 0x2000
_ORIGIN_LOCAL = 1  # linux/errqueue.h: our own host refused it, which the send has said
_BPF_RETURN = 0x06  # linux/filter.h BPF_RET | BPF_K

_IP_HEADER = {socket.AF_INET: 20, socket.AF_INET6: 40}
UDP_HEADER = 8
_UDP_CHECKSUM_AT = 6

OpenSocket = Callable[[Tunnel, int], socket.socket]
"""Of a tunnel and the bytes of the send buffer."""


def open_socket(tunnel: Tunnel, send_buffer: int) -> socket.socket:
    """A connected socket that takes what follows the headers which the kernel writes. OSError, as the kernel puts it."""
    family = _family(tunnel)
    opened = _made(family, tunnel, send_buffer)
    raw = opened.type == socket.SOCK_RAW
    try:
        _take_nothing(opened)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, REPORT_BUFFER_BYTES)
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


def ip_header_bytes(tunnel: Tunnel) -> int:
    """Of the outer IP header."""
    return _IP_HEADER[_family(tunnel)]


def _made(family: socket.AddressFamily, tunnel: Tunnel, send_buffer: int) -> socket.socket:
    raw = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    if not tunnel.udp_port:
        return asking.open_socket(family, raw, _IPPROTO_GRE, send_buffer=send_buffer)
    if not tunnel.source_port:
        with contextlib.suppress(PermissionError):
            return asking.open_socket(family, raw, socket.IPPROTO_UDP, send_buffer=send_buffer)
    return asking.open_socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, send_buffer=send_buffer)


def _family(tunnel: Tunnel) -> socket.AddressFamily:
    return socket.AF_INET if ipaddress.ip_address(tunnel.remote).version == 4 else socket.AF_INET6


def _end(address: str, port: int) -> Any:
    """The socket address; knows scopes (fe80::1%eth0)."""
    return socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4]


def _take_nothing(opened: socket.socket) -> None:
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


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


class SocketEgress(DatagramEgress):
    """One tool behind a tunnel."""

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any, open_socket: OpenSocket = open_socket) -> None:
        assert tool.tunnel is not None
        super().__init__(tool, context, scratch, log, remote=tool.tunnel.remote)
        self._tunnel = replace(tool.tunnel, df=tool.whole)
        self._raw = False
        self._opening = open_socket
        self._open()

    def _open_socket(self) -> socket.socket:
        return self._opening(self._tunnel, datagrams.SEND_BUFFER_BYTES)

    def _opened(self, opened: socket.socket) -> None:
        self._raw = opened.type == socket.SOCK_RAW
        one_port = not self._raw and bool(self._tunnel.udp_port)
        self._skip = ip_header_bytes(self._tunnel) + (UDP_HEADER if one_port else 0)
        self._notices.info("tool_opened", kind=self._tunnel.kind, **self._where)
        if one_port and not self._tunnel.source_port and len(self._all()) == 1:
            self._notices.warn("tool_one_port", "raw sockets need CAP_NET_RAW", **self._where)

    @property
    def source(self) -> bytes:
        """The outer source address, packed; empty while no socket is open."""
        if self._socket is None:
            return b""
        return ipaddress.ip_address(self._socket.getsockname()[0]).packed

    @property
    def priority(self) -> int:
        """What queues and VLAN devices go by (`egress-qos-map`): Linux makes it of the DSCP when that is set."""
        return 0 if self._socket is None else self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        unheard = int(self._counters[UNHEARD])
        super().send(batch, rows_at, n_rows, progress)
        if self._raw:
            self.hear()
        elif self._counters[UNHEARD] != unheard:  # the send has counted it
            self._read_reports()

    def hear(self) -> None:
        """Count, once a block, and tell what ICMP says of frames to this end, whoever of this host has sent them."""
        if self._read_reports():
            self._counters[UNHEARD] += 1

    def _before_waiting(self) -> None:
        self._read_reports()  # poll would return at once as long as there is one

    def _read_reports(self) -> int:
        """Empty the queue of ICMP messages, and tell what they say (struct sock_extended_err, linux/errqueue.h). How many."""
        return sum(self._read_reports_of(opened) for opened in self._all())

    def _all(self) -> list[socket.socket]:
        """Those that are open."""
        return [self._socket] if self._socket is not None else []

    def _read_reports_of(self, opened: socket.socket) -> int:
        heard = 0
        for _ in range(MOST_REPORTS):
            try:
                quoted, ancillary, _, _ = opened.recvmsg(512, 512, _MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            except OSError:  # no more; or the pending error itself, which this call has taken
                break
            for _, _, report in ancillary:
                if report[4] != _ORIGIN_LOCAL and self._is_ours(quoted):
                    heard += 1
                    self._notices.warn("tool_unheard", os.strerror(int.from_bytes(report[:4], "little")), **self._where)
        return heard

    def _is_ours(self, quoted: bytes) -> bool:
        """`quoted`: the packet that a message is about, from its UDP or GRE header on."""
        return not (self._raw and self._tunnel.udp_port) or quoted[2:4] == self._tunnel.udp_port.to_bytes(2, "big")
