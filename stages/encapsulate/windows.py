"""Which part of a packet a frame carries."""

from __future__ import annotations

from stages.jit import kernel
from stages.memory import load8, load_be16
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETH_QINQ,
    ETH_QINQ_OLD,
    ETH_VLAN,
    ETHERTYPE,
    MAX_TAGS,
    TAG_BYTES,
)


@kernel
def find_ip(at: int, n_bytes: int) -> int:
    """Where the IP header of the Ethernet frame [at, at + n_bytes) begins, behind at most MAX_TAGS VLAN tags; -1: it has none."""
    type_at = ETHERTYPE
    for _ in range(MAX_TAGS + 1):
        if type_at + 2 >= n_bytes:  # the first byte of what follows must be there too
            return -1
        ethertype = load_be16(at + type_at)
        version = load8(at + type_at + 2) >> 4
        if ethertype == ETH_IP:
            return type_at + 2 if version == 4 else -1
        if ethertype == ETH_IP6:
            return type_at + 2 if version == 6 else -1
        if ethertype not in (ETH_VLAN, ETH_QINQ, ETH_QINQ_OLD):
            return -1
        type_at += TAG_BYTES
    return -1
