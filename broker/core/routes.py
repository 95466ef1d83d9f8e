"""Which way packets to an address go: the kernel's answer (rtnetlink(7), RTM_GETROUTE)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from broker.core import netlink

UNICAST, LOCAL = 1, 2
"""Kinds of a route (RTN_*, linux/rtnetlink.h)."""
OUTPUT, GATEWAY, PREFERRED_SOURCE, METRICS, MULTIPATH, VIA, ENCAPSULATION = 4, 5, 7, 8, 9, 18, 22
"""What a route may say (RTA_*)."""

_GETROUTE = 26
_DESTINATION, _SOURCE, _IP_PROTOCOL = 1, 2, 27
_ROUTE = struct.Struct("=8BI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type; flags


@dataclass(frozen=True, slots=True)
class Route:
    kind: int
    values: dict[int, bytes]

    @property
    def output(self) -> int:
        """Number of the interface; 0: none is named."""
        return int.from_bytes(self.values.get(OUTPUT, b""), "little")


def route_to(
    remote: ipaddress.IPv4Address | ipaddress.IPv6Address, *, interface: str = "", source: bytes = b"", dscp: int = 0, udp: bool = False
) -> Route:
    """OSError as the kernel puts it (ENETUNREACH), also for an interface that is not there.

    `source`: packed; empty: any. `udp`: for UDP. Of other protocols the kernel will not hear (rtm_getroute_parse_ip_proto).
    """
    asked = netlink.attribute(_DESTINATION, remote.packed)
    asked += netlink.attribute(_IP_PROTOCOL, bytes([socket.IPPROTO_UDP])) if udp else b""
    asked += netlink.attribute(_SOURCE, source) if source else b""
    asked += netlink.attribute(OUTPUT, struct.pack("=I", socket.if_nametoindex(interface))) if interface else b""
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    bits = 8 * len(remote.packed)
    ((_, answer),) = netlink.ask(_GETROUTE, _ROUTE.pack(family, bits, bits if source else 0, dscp << 2, 0, 0, 0, 0, 0) + asked)
    return Route(_ROUTE.unpack_from(answer)[7], netlink.attributes(answer, _ROUTE.size))
