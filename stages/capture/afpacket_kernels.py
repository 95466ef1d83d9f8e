"""Packets of a TPACKET_V3 ring -> a block: walk, check, copy, put stripped VLAN tags back (linux/if_packet.h, packet_mmap.rst)."""

from __future__ import annotations

import numpy as np

from broker.core.layout import PACKET_TAG_RESTORED
from broker.core.metrics import index
from stages.capture import rows
from stages.capture.own_kernels import ALIKE, FOREIGN, OWN, whose
from stages.capture.rows import PACKET_BYTES, write_row
from stages.capture.socket_filter import MARK_FILTERED, MARK_SHED
from stages.jit import kernel
from stages.memory import add64, copy, load16, load32, load64, load_acquire, shift_right, store64, store_be16, store_release

RING = np.dtype(
    [
        (name, "<i8")
        for name in (
            "ring_at", "block_bytes", "n_blocks",  # of the kernel's ring
            "blocks",  # kernel blocks walked to their end since the ring was opened: the next is that modulo n_blocks
            "offset", "left",  # in the next one: of its next packet; packets left in it; 0 and 0: not begun
            "held",  # of the blocks walked to their end, those that are not yet given back
            "taken",  # packets walked since the ring was opened
            "n_packets", "data_used", "max_packets", "data_bytes", "input",
            "own_at",  # the table of our own tunnels, see `own_kernels`; 0: nothing is our own
            "alike",  # packets that looked like our own at other addresses, since the ring was opened
            "drop_alike",  # 1: they are dropped
        )
    ]
)  # fmt: skip
"""The state of the walk, private to the process. *Written* by the kernel: blocks, offset, left, held, taken, alike, n_packets,
data_used."""

assert RING.fields is not None
_RING_AT, _BLOCK_BYTES, _N_BLOCKS = RING.fields["ring_at"][1], RING.fields["block_bytes"][1], RING.fields["n_blocks"][1]
_BLOCKS, _OFFSET, _LEFT = RING.fields["blocks"][1], RING.fields["offset"][1], RING.fields["left"][1]
_HELD, _TAKEN, _INPUT = RING.fields["held"][1], RING.fields["taken"][1], RING.fields["input"][1]
_N, _USED = RING.fields["n_packets"][1], RING.fields["data_used"][1]
_MAX_PACKETS, _DATA_BYTES = RING.fields["max_packets"][1], RING.fields["data_bytes"][1]
_OWN_AT, _ALIKE, _DROP_ALIKE = RING.fields["own_at"][1], RING.fields["alike"][1], RING.fields["drop_alike"][1]

# struct tpacket_block_desc: block_status (32 bits) and num_pkts (32 bits) share the aligned word at 8
_STATUS_WORD, _FIRST = 8, 16
_USER = 1
# struct tpacket3_hdr
_NEXT, _SEC, _NSEC, _SNAPLEN, _LEN, _STATUS, _MAC, _TCI, _TPID = 0, 4, 8, 12, 16, 20, 24, 32, 36
_HEADER_BYTES, _DESCRIPTOR_BYTES = 48, 48
_VLAN_VALID, _TPID_VALID = 0x10, 0x40
_DOT1Q, _ADDRESSES_BYTES, _TAG_BYTES = 0x8100, 12, 4

# what a socket filter has left of a packet that it does not let through, in bytes: see `socket_filter.py`
_MARK_FILTERED, _MARK_SHED, _SHORTEST = MARK_FILTERED, MARK_SHED, 14

_ALIGN = 16  # of every packet in the block: it is copied faster
_NS = 1_000_000_000
_CAPTURED, _CAPTURED_BYTES, _RESTORED = rows.CAPTURED, rows.CAPTURED_BYTES, rows.RESTORED
_OVERSIZE, _MALFORMED = rows.OVERSIZE, rows.MALFORMED
_FILTERED, _SHED = 8 * index("capture", "filtered_in_kernel_packets"), 8 * index("capture", "dropped_shed_in_kernel")
_DROPPED_OWN, _DROPPED_LOOP = 8 * index("capture", "dropped_own"), 8 * index("capture", "dropped_loop")


@kernel
def give_back(state_at: int) -> None:
    """Return every held kernel block. To be called when the batch that has their packets is published."""
    held, blocks = load64(state_at + _HELD), load64(state_at + _BLOCKS)
    n_blocks, ring_at = load64(state_at + _N_BLOCKS), load64(state_at + _RING_AT)
    block_bytes = load64(state_at + _BLOCK_BYTES)
    for i in range(held):
        block = (blocks - held + i) % n_blocks
        # The packet count beside the status is zeroed with it: the kernel sets it anew when it opens the block.
        store_release(ring_at + block * block_bytes + _STATUS_WORD, 0)
    store64(state_at + _HELD, 0)


@kernel
def copy_packets(state_at: int, packets_at: int, data_at: int, counters_at: int) -> int:
    """Copy what the kernel has handed over until it has no more or the block is full; returns the packets looked at.

    | address | what lies there |
    |---|---|
    | state_at | RING[1] |
    | packets_at | PACKET[max_packets], *written* from row 0 on |
    | data_at | uint8[data_bytes], *written* |
    | counters_at | int64[N_COUNTERS], *added to* |

    The ring is memory that another writes: every offset and length is checked against its kernel block. A packet that contradicts itself
    is counted as malformed; if the way to the next one is lost, the rest of its kernel block is.
    """
    ring_at, block_bytes, n_blocks = load64(state_at + _RING_AT), load64(state_at + _BLOCK_BYTES), load64(state_at + _N_BLOCKS)
    blocks, offset, left = load64(state_at + _BLOCKS), load64(state_at + _OFFSET), load64(state_at + _LEFT)
    held, slot = load64(state_at + _HELD), load64(state_at + _INPUT)
    max_packets, data_bytes = load64(state_at + _MAX_PACKETS), load64(state_at + _DATA_BYTES)
    own_at, drop_alike = load64(state_at + _OWN_AT), load64(state_at + _DROP_ALIKE)
    n, used, looked, wire_bytes, restored, oversize, malformed, own, alike = 0, 0, 0, 0, 0, 0, 0, 0, 0
    filtered, shed = 0, 0
    full = 0
    while not full and held < n_blocks:
        block_at = ring_at + blocks % n_blocks * block_bytes
        if offset == 0:
            word = load_acquire(block_at + _STATUS_WORD)
            if not word & _USER:
                break
            left, offset = shift_right(word, 32), load32(block_at + _FIRST)
        while left > 0:
            if offset < _DESCRIPTOR_BYTES or offset + _HEADER_BYTES > block_bytes:
                malformed += left
                looked += left
                left = 0
                break
            p = block_at + offset
            caplen, wirelen, mac, status = load32(p + _SNAPLEN), load32(p + _LEN), load16(p + _MAC), load32(p + _STATUS)
            tag = _TAG_BYTES if status & _VLAN_VALID else 0
            if caplen == _MARK_FILTERED and wirelen >= _SHORTEST:
                filtered += 1
            elif caplen == _MARK_SHED and wirelen >= _SHORTEST:
                shed += 1
            elif mac < _HEADER_BYTES or offset + mac + caplen > block_bytes or (tag and caplen < _ADDRESSES_BYTES):
                malformed += 1
            elif caplen + tag > data_bytes:
                oversize += 1
            elif (maker := whose(own_at, p + mac, caplen) if own_at else FOREIGN) == OWN:
                own += 1
            elif maker == ALIKE and drop_alike:
                alike += 1
            else:
                start = (used + _ALIGN - 1) & -_ALIGN
                if n == max_packets or start + caplen + tag > data_bytes:
                    full = 1
                    break
                to, frame = data_at + start, p + mac
                flags = 0
                if tag:
                    copy(to, frame, _ADDRESSES_BYTES)
                    tpid = load16(p + _TPID) if status & _TPID_VALID else _DOT1Q
                    store_be16(to + _ADDRESSES_BYTES, tpid)
                    store_be16(to + _ADDRESSES_BYTES + 2, load32(p + _TCI))
                    copy(to + _ADDRESSES_BYTES + _TAG_BYTES, frame + _ADDRESSES_BYTES, caplen - _ADDRESSES_BYTES)
                    flags = PACKET_TAG_RESTORED
                    restored += 1
                else:
                    copy(to, frame, caplen)
                ts_ns = load32(p + _SEC) * _NS + load32(p + _NSEC)
                write_row(packets_at + n * PACKET_BYTES, ts_ns, start, caplen + tag, wirelen + tag, slot, flags)
                used = start + caplen + tag
                wire_bytes += wirelen + tag
                n += 1
                alike += int(maker == ALIKE)
            looked += 1
            left -= 1
            if left:
                step = load32(p + _NEXT)
                offset = offset + step if step >= _HEADER_BYTES else 0  # 0 is refused above
        if not full:
            blocks, offset, held = blocks + 1, 0, held + 1
    store64(state_at + _BLOCKS, blocks)
    store64(state_at + _OFFSET, offset)
    store64(state_at + _LEFT, left)
    store64(state_at + _HELD, held)
    add64(state_at + _TAKEN, looked)
    add64(state_at + _ALIKE, alike)
    store64(state_at + _N, n)
    store64(state_at + _USED, used)
    add64(counters_at + _CAPTURED + 8 * slot, n)
    add64(counters_at + _CAPTURED_BYTES + 8 * slot, wire_bytes)
    add64(counters_at + _RESTORED + 8 * slot, restored)
    add64(counters_at + _FILTERED + 8 * slot, filtered)
    add64(counters_at + _SHED + 8 * slot, shed)
    add64(counters_at + _OVERSIZE + 8 * slot, oversize)
    add64(counters_at + _MALFORMED + 8 * slot, malformed)
    add64(counters_at + _DROPPED_OWN + 8 * slot, own)
    if drop_alike:
        add64(counters_at + _DROPPED_LOOP + 8 * slot, alike)
    return looked
