"""What ports and protocols are called."""

from __future__ import annotations

import functools
import socket

from broker.config.policy.names import PROTOCOLS

_WITH_PORTS = {6: "tcp", 17: "udp", 132: "sctp", 33: "dccp", 136: "udplite"}
_SHOWN = {1: "icmp", 58: "icmp6", 4: "ipip", 41: "ip6ip"}
_NAMES = {**{number: name for name, number in reversed(PROTOCOLS.items())}, **_SHOWN}


def protocol_name(number: int) -> str:
    return _WITH_PORTS.get(number) or _NAMES.get(number) or f"proto {number}"


@functools.cache
def service_name(port: int, protocol: int) -> str:
    """As the system's table of services has it; empty: none. The table is a file, nothing is asked over the network."""
    if protocol not in (6, 17, 132):
        return ""
    try:
        return socket.getservbyport(port, _WITH_PORTS[protocol])
    except (OSError, OverflowError):
        return ""


def service(port: int, protocol: int) -> str:
    """`https (443/tcp)`, `8443/tcp`, `icmp 8`."""
    if protocol not in _WITH_PORTS:
        return f"{protocol_name(protocol)} {port}" if protocol in (1, 58) else protocol_name(protocol)
    plain = f"{port}/{_WITH_PORTS[protocol]}"
    name = service_name(port, protocol)
    return f"{name} ({plain})" if name else plain
