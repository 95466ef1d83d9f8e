"""Which neighbour packets to an address go to first: the kernel's answer (rtnetlink(7), RTM_GETROUTE)."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
from dataclasses import dataclass

from broker.core import netlink
from broker.core.model import Tunnel
from broker.supervisor.probes.probe import CannotAskError, family_of

_GETROUTE, _NEWROUTE = 26, 24
_DST, _SRC, _OIF, _GATEWAY, _PREFSRC, _VIA = 1, 2, 4, 5, 7, 18
_UNICAST, _LOCAL = 1, 2
_ROUTE = struct.Struct("=8BI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type; flags

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
    attributes = netlink.attribute(_DST, remote.packed)
    if tunnel.interface:
        attributes += netlink.attribute(_OIF, struct.pack("=i", socket.if_nametoindex(tunnel.interface)))
    if tunnel.source:
        attributes += netlink.attribute(_SRC, ipaddress.ip_address(tunnel.source).packed)
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


def _asked(family: int, attributes: bytes, prefix_bits: int) -> tuple[int, dict[int, bytes]]:
    """Type of the route, and its attributes."""
    ((message, route),) = netlink.ask(_GETROUTE, _ROUTE.pack(family, prefix_bits, 0, 0, 0, 0, 0, 0, 0) + attributes)
    assert message == _NEWROUTE
    return _ROUTE.unpack_from(route)[7], netlink.attributes(route, _ROUTE.size)
