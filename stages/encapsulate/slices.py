"""How much of a packet a slice keeps."""

from __future__ import annotations

from stages.encapsulate.layers import NETWORK_AT, network_of
from stages.jit import kernel
from stages.wire.headers import ETH_IP, ETH_IP6
from stages.wire.transport import offset_in, payload_of, transport_of

AFTER_L2, AFTER_L3, AFTER_L4 = 1, 2, 3


@kernel
def kept_by_slice(frame: int, caplen: int, after: int, n_bytes: int) -> int:
    """Bytes from the start of the frame, at most `caplen`. `after`: 0 for `n_bytes` (of them all: 0), else AFTER_*.

    A header that is not there, or that the packet does not show, is taken to end where the one before it does: what is kept is less, so
    that no payload leaves that was to stay.
    """
    if after == 0:
        return caplen if n_bytes == 0 else min(caplen, n_bytes)
    network = network_of(frame, caplen)
    if network < 0:
        return min(caplen, n_bytes)
    ethertype, end = network & (1 << NETWORK_AT) - 1, network >> NETWORK_AT
    if after > AFTER_L2 and ethertype in (ETH_IP, ETH_IP6):
        is_ip6 = 1 if ethertype == ETH_IP6 else 0
        found = transport_of(frame, caplen, end, is_ip6)
        if found >= 0:
            payload = payload_of(frame, caplen, end, is_ip6) if after == AFTER_L4 else -1
            end = max(offset_in(payload if payload >= 0 else found), end)
    return min(caplen, end + n_bytes)
