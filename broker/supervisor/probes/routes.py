"""Which neighbour packets to an address go to first."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass

from broker.core import routes
from broker.core.model import Tunnel
from broker.supervisor.probes.probe import CannotAskError

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
    source = ipaddress.ip_address(tunnel.source).packed if tunnel.source else b""
    route = routes.route_to(remote, interface=tunnel.interface, source=source)
    values = route.values
    if route.kind == routes.LOCAL:
        raise CannotAskError("its address is of this host: there is no neighbour on the way")
    if route.kind != routes.UNICAST:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    hop = remote
    if routes.GATEWAY in values:
        hop = ipaddress.ip_address(values[routes.GATEWAY])
    elif routes.VIA in values:
        hop = ipaddress.ip_address(values[routes.VIA][2:])  # behind its family
    preferred = values.get(routes.PREFERRED_SOURCE)
    return Hop(hop, socket.if_indextoname(route.output), ipaddress.ip_address(preferred) if preferred else None)
