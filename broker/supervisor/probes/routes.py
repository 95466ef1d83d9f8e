"""Which neighbour packets to an address go to first: the kernel's answer (rtnetlink(7), RTM_GETROUTE)."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
from dataclasses import dataclass

from broker.core.model import Tunnel
from broker.supervisor.probes.probe import CannotAskError, family_of

_NETLINK_ROUTE = 0
_GETROUTE, _NEWROUTE, _ERROR = 26, 24, 2
_REQUEST = 1
_DST, _SRC, _OIF, _GATEWAY, _PREFSRC, _VIA = 1, 2, 4, 5, 7, 18
_UNICAST, _LOCAL = 1, 2
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ROUTE = struct.Struct("=8BI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type; flags
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Hop:
    """`address`: of the tool itself, or of the router that it is behind. `source`: ours; None where the kernel does not say."""

    address: Address
    interface: str
    source: Address | None


def first_hop(tunnel: Tunnel) -> Hop:
    """OSError as the kernel puts it (ENETUNREACH), also for an interface that is not there; CannotAskError for our own address."""
    remote = ipaddress.ip_address(tunnel.remote)
    attributes = _attribute(_DST, remote.packed)
    if tunnel.interface:
        attributes += _attribute(_OIF, struct.pack("=i", socket.if_nametoindex(tunnel.interface)))
    if tunnel.source:
        attributes += _attribute(_SRC, ipaddress.ip_address(tunnel.source).packed)
    kind, values = _asked(family_of(tunnel.remote), attributes, 8 * len(remote.packed))
    if kind == _LOCAL:
        raise CannotAskError("its address is of this host: there is no neighbour on the way")
    if kind != _UNICAST:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    hop = remote
    if _GATEWAY in values:
        hop = ipaddress.ip_address(values[_GATEWAY])
    elif _VIA in values:
        hop = ipaddress.ip_address(values[_VIA][2:])  # behind its family
    source = ipaddress.ip_address(values[_PREFSRC]) if _PREFSRC in values else None
    return Hop(hop, socket.if_indextoname(int.from_bytes(values[_OIF], sys.byteorder)), source)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value  # addresses and numbers: a multiple of 4 bytes


def _asked(family: int, attributes: bytes, prefix_bits: int) -> tuple[int, dict[int, bytes]]:
    """Type of the route, and its attributes. The kernel answers before `send` returns: this does not wait."""
    body = _ROUTE.pack(family, prefix_bits, 0, 0, 0, 0, 0, 0, 0) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE) as asking:
        asking.send(_HEADER.pack(_HEADER.size + len(body), _GETROUTE, _REQUEST, 1, 0) + body)
        answer = asking.recv(8192)
    length, message, *_ = _HEADER.unpack_from(answer)
    if message == _ERROR:
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        raise OSError(-number, os.strerror(-number))
    assert message == _NEWROUTE
    kind = _ROUTE.unpack_from(answer, _HEADER.size)[7]
    values: dict[int, bytes] = {}
    at = _HEADER.size + _ROUTE.size
    while at + _ATTRIBUTE.size <= length:
        size, name = _ATTRIBUTE.unpack_from(answer, at)
        values[name] = answer[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3 or _ATTRIBUTE.size
    return kind, values
