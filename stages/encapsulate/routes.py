"""Which source address an outer header carries."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

from broker.core.model import Tunnel

Address = IPv4Address | IPv6Address

_DISCARD_PORT = 9  # connecting a datagram socket sends nothing, but it wants a port


def addresses(tunnel: Tunnel, *, ask_routes: bool) -> tuple[Address, Address]:
    """(source, remote). The source is the configured one, else what the machine's route to the remote says.

    It is the unspecified address (0.0.0.0 or ::) when there is no route, or when routes must not be asked: what is written into files
    depends on nothing but the configuration and the packets. Sockets do not use it: there the kernel writes the outer IP header.
    """
    remote = ipaddress.ip_address(tunnel.remote)
    if tunnel.source:
        return ipaddress.ip_address(tunnel.source), remote
    return (_routed_source(remote) if ask_routes else None) or type(remote)(0), remote


def _routed_source(remote: Address) -> Address | None:
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        [(_, _, _, _, end)] = socket.getaddrinfo(str(remote), _DISCARD_PORT, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        probe.connect(end)
        return ipaddress.ip_address(probe.getsockname()[0])
    return None
