"""Bare frames out of a network interface (packet(7)): raw mirroring. Needs CAP_NET_RAW.

A frame leaves as it was captured, VLAN tags and source address included. It is the wire behind
the interface that has to be meant for that: a switch that gets these frames learns their addresses.

Frames longer than the interface's MTU (and Ethernet header, and a VLAN tag) are counted in dropped_too_big; shorter than an Ethernet
header in dropped_other. With `qdisc_bypass` they go to the driver past the queueing discipline: faster, but what the driver's queue cannot
take is dropped at once (dropped_full), and ``tc`` neither shapes nor counts them.

States: `datagrams`. Frames that are refused because the interface is down or gone are counted in dropped_unreachable, else
dropped_tool_down; the one that is there and up again may be another of the same name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Any

from broker.core.model import Tool
from broker.core.stage import Context
from broker.privileges import asking
from stages.send import datagrams
from stages.send.datagrams import DatagramEgress
from stages.send.egress import Scratch

# linux/if_packet.h, linux/sockios.h: names that Python lacks
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1


def open_interface(name: str, *, qdisc_bypass: bool) -> socket.socket:
    """A packet socket that sends on `name` and receives nothing. OSError, as the kernel puts it; ENETDOWN when the interface is down."""
    opened = asking.open_socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, send_buffer=datagrams.SEND_BUFFER_BYTES)
    try:
        if qdisc_bypass:
            opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        opened.bind((name, 0))  # protocol 0: no frame comes in
        answer = fcntl.ioctl(opened, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
        if not struct.unpack_from("H", answer, 16)[0] & _IFF_UP:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
    except OSError:
        opened.close()
        raise
    return opened


class InterfaceEgress(DatagramEgress):
    """One tool behind an interface."""

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any) -> None:
        super().__init__(tool, context, scratch, log, interface=tool.interface)
        self._open()

    def _open_socket(self) -> socket.socket:
        return open_interface(self.tool.interface, qdisc_bypass=self.tool.qdisc_bypass)
