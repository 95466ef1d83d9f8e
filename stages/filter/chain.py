"""libpcap's `protochain`: a protocol anywhere in the chain of IPv4 AH or IPv6 extension headers.

Its walk is kept as it is, where it differs from RFC 4302 too: behind AH it goes on at (length + 2) * 4 from the start of the IP header,
not from that of AH. So a chain can come back to where it was; libpcap then never ends, here the answer is UNDETERMINED.
"""

from __future__ import annotations

from broker.config.policy.image import FALSE, TRUE, UNDETERMINED
from broker.config.policy.tree import IP
from stages.jit import kernel
from stages.memory import load8
from stages.wire.headers import AUTHENTICATION, DSTOPTS, FRAGMENT, HOPOPTS, IP6_BYTES, IP6_NEXT, IP_PROTOCOL, NO_NEXT, ROUTING

MAX_HEADERS = 256


@kernel
def _extends(protocol: int) -> bool:
    """An IPv6 header with a length behind the next header; libpcap takes a fragment header for one of 8 bytes by its reserved byte."""
    if protocol == HOPOPTS or protocol == DSTOPTS:  # noqa: SIM109 - two compares
        return True
    if protocol == ROUTING:
        return True
    return protocol == FRAGMENT


@kernel
def chain_has(wanted: int, kind: int, frame: int, caplen: int, l3: int) -> int:
    at = IP6_BYTES
    if kind == IP:
        if caplen < l3 + IP_PROTOCOL + 1:
            return UNDETERMINED
        protocol, at = load8(frame + l3 + IP_PROTOCOL), 4 * (load8(frame + l3) & 15)
    else:
        if caplen < l3 + IP6_NEXT + 1:
            return UNDETERMINED
        protocol = load8(frame + l3 + IP6_NEXT)
    for _ in range(MAX_HEADERS):
        if protocol == wanted:
            return TRUE
        if protocol == NO_NEXT or (protocol != AUTHENTICATION and (kind == IP or not _extends(protocol))):
            return FALSE
        if caplen < l3 + at + 2:
            return UNDETERMINED
        header = frame + l3 + at
        at = 4 * (load8(header + 1) + 2) if protocol == AUTHENTICATION else at + 8 * (load8(header + 1) + 1)
        protocol = load8(header)
    return UNDETERMINED
