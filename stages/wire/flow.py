"""KEY.flow: symmetric: both directions of a conversation hash alike. IP: addresses, protocol and, for TCP, UDP and SCTP, ports. All
fragments, the first too, leave the ports out, so that no fragment overtakes another; a sender that fragments only some datagrams of a
flow thus has two flows. IPv6 extension headers are walked (8 of them, 256 bytes). All else, and what is cut off within the fixed IP
header: MAC addresses and ethertype.
"""

from __future__ import annotations

from stages.jit import kernel
from stages.memory import load_be16, load_be32, mix, shift_right
from stages.wire.headers import ETHERTYPE

_SEED_A, _SEED_B, _SEED_C = 0x2D358DCCAA6C78A5, 0x0BB67AE8584CAA73, 0x1B873593CC9E2D51


@kernel
def flow_hash(source_high: int, source_low: int, source_port: int, high: int, low: int, port: int, protocol: int) -> int:
    """32 bits; swapping both ends changes nothing."""
    one = mix(source_low ^ _SEED_A, source_high ^ _SEED_B ^ source_port << 40)
    two = mix(low ^ _SEED_A, high ^ _SEED_B ^ port << 40)
    return shift_right(mix((one ^ two) ^ _SEED_C, one + two + protocol), 16) & 0xFFFFFFFF


@kernel
def link_flow(at: int, caplen: int, ethertype: int) -> int:
    if caplen < ETHERTYPE:
        return 0
    destination = load_be32(at) << 16 | load_be16(at + 4)
    source = load_be32(at + 6) << 16 | load_be16(at + 10)
    return flow_hash(0, source, 0, 0, destination, 0, ethertype + 0x10000)
