"""Packets that were seen before: a table of fixed size of what the last ones were, in memory of one worker.

| name | does |
|---|---|
| Duplicates | the table: its memory, window and key |
| find_duplicates | the packets of a block: 1 where one like it was first seen within the window, 0 where it is a first one itself |
| digest_packet, is_duplicate | the two steps of it, for one packet |

**Alike** are packets whose bytes are the same but for what IGNORE_* names, with the same `caplen` and `wirelen` (both without the tags
that are ignored). Of each packet the table has a digest of 128 bits and the lengths, and all of them are compared. The digest adds up
128-bit products, folded, of pairs of words under secret keys that change along the packet: three of every 32 bytes, of the first pair of
words, of the second, and of the two xored. The first goes into one half, the second into the other, the third into both (an erasure code,
as in HalftimeHash, arXiv 2104.08865): what differs changes two products at least, so two accidents of about 2^-64 each have to meet for two
different packets to be taken for one. That is how a multiplication with an unknown key behaves, not a theorem; nobody can look for two
such packets, for each process draws its key anew. At 10 million packets a second, each compared with 4 others: once in 10^23 years.

| ignored | where it is looked for |
|---|---|
| IGNORE_MACS | the first 12 bytes |
| IGNORE_TAGS | up to MAX_TAGS VLAN tags (0x8100, 0x88a8, 0x9100) |
| IGNORE_TTL, IGNORE_TOS | the IPv4 or IPv6 header behind the tags: TTL and hop limit; DSCP and ECN. With either the IPv4 header checksum |
| IGNORE_CHECKSUM | the IPv4 header checksum alone |

What stands behind labels or in a tunnel is compared as it is. A frame of less than 14 bytes, or with less than the IP header, too.

The **window** is at most `packets` packets and at most `ns` nanoseconds long, in either direction of time, and counts from the first of
those that are alike: after it, the next one is a first one. A bucket of the table has ROWS entries; where all are within the window the
oldest is given up and `evicted` counts: its duplicates will not be found, nothing else is lost.

An entry has the `position` of its packet: meeting itself, a packet is no duplicate, so a block that is done again gives the same as long as
the table has not forgotten it. Positions rise with the order of packets: block sequence number * packets of a block + row. Only a new
highest one counts as a packet of the window.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from numpy.typing import NDArray

from broker.core import layout
from stages.encapsulate.layers import tag_bytes
from stages.jit import kernel
from stages.memory import add64, load8, load32, load64, load_be16, mix, prefetch, store64
from stages.wire.headers import ETH_IP, ETH_IP6, ETHERNET_BYTES, ETHERTYPE, IP6_BYTES, IP_BYTES, MAC_SOURCE, MAX_TAGS, TAG_BYTES

IGNORE_MACS, IGNORE_TAGS, IGNORE_TTL, IGNORE_TOS, IGNORE_CHECKSUM = (1 << bit for bit in range(5))
ROWS = 4
MAX_WINDOW_PACKETS = 1 << 17  # 25 MB

_N_KEYS = 9
HEAD = np.dtype(
    [
        ("buckets_less_one", "<i8"), ("window_packets", "<i8"), ("window_ns", "<i8"),
        ("number", "<i8"),  # packets so far
        ("position", "<i8"),  # the highest so far
        ("evicted", "<i8"),
        ("skip_tags", "<i8"), ("mac_mask", "<i8"), ("ip_mask", "<i8"), ("ip_mask8", "<i8"), ("ip6_mask", "<i8"),  # bits that are compared
        ("keys", "<i8", (_N_KEYS,)),
    ]
)  # fmt: skip
DIGEST = np.dtype([("low", "<i8"), ("high", "<i8"), ("lengths", "<i8")])
ROW = np.dtype(
    [
        ("low", "<i8"), ("high", "<i8"),  # a DIGEST
        ("lengths", "<i8"),  # 0: no entry
        ("ts_ns", "<i8"), ("position", "<i8"), ("number", "<i8"),
    ]
)  # fmt: skip
assert HEAD.fields is not None
assert DIGEST.fields is not None
assert layout.PACKET.fields is not None
assert ROW.fields is not None
_BUCKETS, _WINDOW_PACKETS, _WINDOW_NS, _NUMBER, _POSITION, _EVICTED = (
    HEAD.fields[name][1] for name in ("buckets_less_one", "window_packets", "window_ns", "number", "position", "evicted")
)
_SKIP_TAGS, _MAC_MASK, _IP_MASK, _IP_MASK8, _IP6_MASK, _KEYS = (
    HEAD.fields[name][1] for name in ("skip_tags", "mac_mask", "ip_mask", "ip_mask8", "ip6_mask", "keys")
)
_ROW_LOW, _ROW_HIGH, _ROW_LENGTHS, _ROW_TS, _ROW_POSITION, _ROW_NUMBER = (ROW.fields[name][1] for name in ROW.fields)
_DIGEST_LOW, _DIGEST_HIGH, _DIGEST_LENGTHS = (DIGEST.fields[name][1] for name in DIGEST.fields)
_DIGEST_BYTES = DIGEST.itemsize
_PACKET_BYTES = layout.PACKET.itemsize
_PACKET_TS, _PACKET_DATA_AT, _PACKET_CAPLEN, _PACKET_WIRELEN = (
    layout.PACKET.fields[name][1] for name in ("ts_ns", "data_at", "caplen", "wirelen")
)
_HEAD_BYTES, _ROW_BYTES = -(-HEAD.itemsize // 64) * 64, ROW.itemsize
_NEVER = -(1 << 61)  # number of a row without entry: outside of every window
_MAC_BITS = (1 << 48) - 1
_TAGS_AT, _WIRELEN_AT, _THERE = 24, 28, 1 << 62  # of `lengths`; caplen is below 2^24, wirelen below 2^32


class Duplicates:
    """`window_packets` at most MAX_WINDOW_PACKETS; `ignore` is IGNORE_*; `seed` only where the same key is wanted twice."""

    def __init__(self, window_packets: int, window_ns: int, ignore: int, seed: bytes | None = None) -> None:
        if not 0 < window_packets <= MAX_WINDOW_PACKETS:
            raise ValueError(f"window_packets: {window_packets} is not 1..{MAX_WINDOW_PACKETS}")
        n_rows = ROWS << (window_packets - 1).bit_length()  # one packet a bucket, on average and at most: one bucket in 270 overflows
        self.memory: NDArray[np.uint8] = np.zeros(_HEAD_BYTES + n_rows * _ROW_BYTES + 63, np.uint8)
        self.at = -(-int(self.memory.ctypes.data) // 64) * 64
        first = self.at - int(self.memory.ctypes.data)
        self.head = self.memory[first : first + HEAD.itemsize].view(HEAD)
        self.rows = self.memory[first + _HEAD_BYTES : first + _HEAD_BYTES + n_rows * _ROW_BYTES].view(ROW)
        self.rows["number"] = _NEVER
        head = self.head
        head["buckets_less_one"], head["window_packets"], head["window_ns"] = n_rows // ROWS - 1, window_packets, window_ns
        head["position"] = -1
        checksum = ignore & (IGNORE_CHECKSUM | IGNORE_TTL | IGNORE_TOS)
        head["skip_tags"] = 1 if ignore & IGNORE_TAGS else 0
        head["mac_mask"] = 0 if ignore & IGNORE_MACS else _MAC_BITS
        # bytes of the header in the order of a little-endian load
        head["ip_mask"] = ~(0xFF << 8 if ignore & IGNORE_TOS else 0)
        head["ip_mask8"] = ~((0xFF if ignore & IGNORE_TTL else 0) | (0xFFFF << 16 if checksum else 0))
        head["ip6_mask"] = ~(0xF00F if ignore & IGNORE_TOS else 0) & (0xFF_FFFF_FFFF_FFFF if ignore & IGNORE_TTL else -1)
        keys = hashlib.shake_256(os.urandom(32) if seed is None else seed).digest(8 * _N_KEYS)
        head["keys"] = np.frombuffer(keys, np.int64) | 1

    @property
    def evicted(self) -> int:
        """Entries given up within their window, since the beginning."""
        return int(self.head["evicted"][0])


@kernel
def _bucket_of(table: int, low: int) -> int:
    return table + _HEAD_BYTES + (low & load64(table + _BUCKETS)) * (ROWS * _ROW_BYTES)


@kernel
def _tail_low(at: int, n_bytes: int) -> int:
    """The first word of fewer than 16 bytes; with `_tail_high` and their number it says them all."""
    if n_bytes >= 8:
        return load64(at)
    if n_bytes >= 4:
        return load32(at) | load32(at + n_bytes - 4) << 32
    if n_bytes > 0:
        return load8(at) | load8(at + n_bytes // 2) << 8 | load8(at + n_bytes - 1) << 16
    return 0


@kernel
def _tail_high(at: int, n_bytes: int) -> int:
    return load64(at + n_bytes - 8) if n_bytes >= 8 else 0


@kernel
def digest_packet(table: int, frame: int, caplen: int, wirelen: int, digest: int) -> None:
    """Writes a DIGEST and fetches the bucket that `is_duplicate` will look into. Reads nothing outside of the frame."""
    keys = table + _KEYS
    place, step = load64(keys), load64(keys + 8)  # the key that changes along the packet
    key_low, key_high, key_both = load64(keys + 16), load64(keys + 24), load64(keys + 32)
    low = high = one = two = three = four = at = 0
    lengths = _THERE | wirelen << _WIRELEN_AT | caplen
    if caplen >= ETHERNET_BYTES:
        at, type_, left = ETHERTYPE, load_be16(frame + ETHERTYPE), MAX_TAGS
        while left > 0 and tag_bytes(type_) == TAG_BYTES and caplen >= at + TAG_BYTES + 2:
            if load64(table + _SKIP_TAGS):
                lengths -= TAG_BYTES << _WIRELEN_AT | TAG_BYTES
            else:
                tag = load32(frame + at)
                lengths += 1 << _TAGS_AT
                low += mix(tag ^ place, left ^ key_low)
                high += mix(tag ^ key_high, left ^ place)
                place += step
            left -= 1
            at += TAG_BYTES
            type_ = load_be16(frame + at)
        at += 2
        macs = load64(table + _MAC_MASK)
        one, two = load64(frame) & macs | type_ << 48, load64(frame + MAC_SOURCE) & macs
        if type_ == ETH_IP and caplen >= at + IP_BYTES and load8(frame + at) >> 4 == 4:
            three, four = load64(frame + at) & load64(table + _IP_MASK), load64(frame + at + 8) & load64(table + _IP_MASK8)
            at += 16
        elif type_ == ETH_IP6 and caplen >= at + IP6_BYTES and load8(frame + at) >> 4 == 6:
            three, four = load64(frame + at) & load64(table + _IP6_MASK), load64(frame + at + 8)
            at += 16
    at += frame
    end = frame + caplen
    while True:
        both = mix(one ^ three ^ place, two ^ four ^ key_both)
        low += mix(one ^ place, two ^ key_low) + both
        high += mix(three ^ key_high, four ^ place) + both
        place += step
        if at + 32 <= end:
            one, two, three, four = load64(at), load64(at + 8), load64(at + 16), load64(at + 24)
            at += 32
        elif at + 16 <= end:  # the rest, some of it twice: the length says how much
            one, two, three, four = load64(at), load64(at + 8), load64(end - 16), load64(end - 8)
            at = end
        elif at < end:
            one, two, three, four = _tail_low(at, end - at), _tail_high(at, end - at), 0, 0
            at = end
        else:
            break
    low, high = mix(low ^ load64(keys + 40), lengths ^ load64(keys + 48)), mix(high ^ load64(keys + 56), lengths ^ load64(keys + 64))
    store64(digest + _DIGEST_LOW, low)
    store64(digest + _DIGEST_HIGH, high)
    store64(digest + _DIGEST_LENGTHS, lengths)
    bucket = _bucket_of(table, low)
    for line in range(0, ROWS * _ROW_BYTES, 64):
        prefetch(bucket + line)


@kernel
def _is_within(table: int, row: int, number: int, ts_ns: int) -> bool:
    passed_ns = abs(ts_ns - load64(row + _ROW_TS))
    return number - load64(row + _ROW_NUMBER) <= load64(table + _WINDOW_PACKETS) and passed_ns <= load64(table + _WINDOW_NS)


@kernel
def is_duplicate(table: int, digest: int, ts_ns: int, position: int) -> int:
    """1 or 0; a first one is entered. `digest`: of `digest_packet`; `ts_ns`: when the packet was captured."""
    low, high, lengths = load64(digest + _DIGEST_LOW), load64(digest + _DIGEST_HIGH), load64(digest + _DIGEST_LENGTHS)
    number = load64(table + _NUMBER)
    if position > load64(table + _POSITION):
        number += 1
        store64(table + _NUMBER, number)
        store64(table + _POSITION, position)
    bucket = _bucket_of(table, low)
    oldest = bucket
    for i in range(ROWS):
        row = bucket + i * _ROW_BYTES
        if load64(row + _ROW_LOW) == low and load64(row + _ROW_HIGH) == high and load64(row + _ROW_LENGTHS) == lengths:
            if load64(row + _ROW_POSITION) == position:
                return 0
            if _is_within(table, row, number, ts_ns):
                return 1
            oldest = row
            break
        if load64(row + _ROW_NUMBER) < load64(oldest + _ROW_NUMBER):
            oldest = row
    if load64(oldest + _ROW_LENGTHS) != 0 and _is_within(table, oldest, number, ts_ns):
        add64(table + _EVICTED, 1)
    store64(oldest + _ROW_LOW, low)
    store64(oldest + _ROW_HIGH, high)
    store64(oldest + _ROW_LENGTHS, lengths)
    store64(oldest + _ROW_TS, ts_ns)
    store64(oldest + _ROW_POSITION, position)
    store64(oldest + _ROW_NUMBER, number)
    return 0


@kernel
def find_duplicates(
    table: int, digests: int, packets_at: int, n_packets: int, data_at: int, data_bytes: int, position: int, marks_at: int
) -> None:
    """`marks`, int64[n_packets]: not 0 where the packet is to be looked at; gets 1 where it is a duplicate, 0 elsewhere.

    `digests`, DIGEST[n_packets], is scratch; `packets`: PACKET rows; `position`: that of row 0. All digests are made first, so that the
    table's memory is on its way when it is asked. A packet that lies outside of the block's data is no duplicate.
    """
    for i in range(n_packets):
        packet = packets_at + i * _PACKET_BYTES
        offset, caplen = load32(packet + _PACKET_DATA_AT), load32(packet + _PACKET_CAPLEN)
        if offset + caplen > data_bytes:
            store64(marks_at + 8 * i, 0)
        if load64(marks_at + 8 * i):
            digest_packet(table, data_at + offset, caplen, load32(packet + _PACKET_WIRELEN), digests + i * _DIGEST_BYTES)
    for i in range(n_packets):
        if load64(marks_at + 8 * i):
            ts_ns = load64(packets_at + i * _PACKET_BYTES + _PACKET_TS)
            store64(marks_at + 8 * i, is_duplicate(table, digests + i * _DIGEST_BYTES, ts_ns, position + i))
