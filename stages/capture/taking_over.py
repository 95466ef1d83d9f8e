"""Where in a kernel ring that another worker has walked the next one goes on: after what that one has published, and no packet later.

The kernel fills its blocks in turn and numbers them from 1 (linux/if_packet.h, tpacket_hdr_v1 seq_num); a block that it has handed over
stays as it is until it is given back. So how many blocks were walked to their end, and how many packets are left in the next, tells the
place.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

_STATUS, _PACKETS, _FIRST, _NUMBER = 8, 12, 16, 24  # struct tpacket_block_desc with tpacket_hdr_v1
_USER = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Fields of RING. `held`: blocks before it whose packets are published and that are still to be given back."""

    blocks: int
    offset: int
    left: int
    held: int


def place_in(ring: mmap.mmap, block_bytes: int, n_blocks: int, blocks: int, left: int) -> Place | None:
    """`blocks` walked to their end, and `left` packets of the next one to come (0: it was not begun) are published. None: the ring does not
    look like that."""
    held = 0
    for at in range(n_blocks):
        status, _, _, number = _describe(ring, at * block_bytes)
        if not status & _USER:
            continue
        if (number - 1) % n_blocks != at or not blocks - n_blocks < number <= blocks + n_blocks:
            return None
        held += number <= blocks
    if not left:
        return Place(blocks, 0, 0, held)
    start = blocks % n_blocks * block_bytes
    status, n_packets, offset, number = _describe(ring, start)
    if not status & _USER or number != blocks + 1 or left > n_packets:
        return None
    for _ in range(n_packets - left):
        (step,) = struct.unpack_from("<I", ring, start + offset)
        offset += step
        if not step or offset + 4 > block_bytes:
            return None
    return Place(blocks, offset, left, held)


def _describe(ring: mmap.mmap, start: int) -> tuple[int, int, int, int]:
    """(status, packets, offset of the first, number)"""
    status, n_packets, first = struct.unpack_from("<III", ring, start + _STATUS)
    (number,) = struct.unpack_from("<Q", ring, start + _NUMBER)
    return status, n_packets, first, number
