"""ICMP: an echo request (RFC 792, RFC 4443 section 4.1), and the reply with the same words.

| socket | allowed | the kernel |
|---|---|---|
| SOCK_DGRAM | to the groups of net.ipv4.ping_group_range | chooses the identifier, gives us nothing but replies to it |
| SOCK_RAW | with CAP_NET_RAW | gives us every reply of the tool, behind its IPv4 header |
"""

from __future__ import annotations

import os
import select
import socket
import struct

from broker.core.model import Tool
from broker.privileges import asking
from broker.supervisor.probes.probe import ICMP_FILTER, CannotAskError, Probe, end, family_of, leave_as, only_type

_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
_REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}
_PROTOCOL = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}  # linux/in.h, linux/in6.h
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number


def ask(tool: Tool) -> Probe:
    """CannotAskError where neither socket is allowed; OSError as the kernel puts it."""
    assert tool.tunnel is not None
    family = family_of(tool.tunnel.remote)
    opened = _open(family)
    try:
        opened.setsockopt(*_RECVERR[family], 1)  # that there is no way there is told at once
        leave_as(opened, tool.tunnel)
        opened.connect(end(tool.tunnel.remote))
        words = os.urandom(16)
        opened.send(request(family, words))
    except OSError:
        opened.close()
        raise

    def answered() -> bool:
        packet = opened.recv(2048)
        if family == socket.AF_INET and opened.type == socket.SOCK_RAW:
            packet = packet[(packet[0] & 15) * 4 :]
        return packet[:1] == bytes([_REPLY[family]]) and packet[_HEADER.size :] == words

    return Probe(opened, select.POLLIN, answered)


def _open(family: socket.AddressFamily) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _PROTOCOL[family])
    except PermissionError:
        pass
    try:
        opened = asking.open_socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _PROTOCOL[family])
    except PermissionError:
        text = "ping sockets are not allowed to our group (net.ipv4.ping_group_range), and raw sockets need CAP_NET_RAW"
        raise CannotAskError(text) from None
    opened.setsockopt(*ICMP_FILTER[family], only_type(_REPLY[family], 1 if family == socket.AF_INET else 8))
    return opened


def request(family: int, words: bytes) -> bytes:
    """The message; over IPv6 the kernel fills in the checksum, which covers addresses."""
    identifier = int.from_bytes(words[:2])
    bare = _HEADER.pack(_REQUEST[family], 0, 0, identifier, 1) + words  # type: ignore[index]
    checksum = _checksum(bare) if family == socket.AF_INET else 0
    return bare[:2] + checksum.to_bytes(2) + bare[4:]


def _checksum(data: bytes) -> int:
    """RFC 1071; of an even number of bytes."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
