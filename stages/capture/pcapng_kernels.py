"""Blocks of a pcapng file (draft-ietf-opsawg-pcapng) -> a block of the ring. Headers of sections and interfaces are left to the glue."""

from __future__ import annotations

from broker.core.layout import MAX_FRAME_BYTES
from stages.capture import rows, walk
from stages.capture.rows import PACKET_BYTES, write_row
from stages.capture.walk import field, interface_field
from stages.jit import kernel
from stages.memory import add64, load16, load32, load64, load_be16, load_be32, shift_right, store64

_AT, _END, _LAST, _NEED, _REASON, _VALUE = field("at"), field("end"), field("last"), field("need"), field("reason"), field("value")
_N, _USED, _LOOKED = field("n_packets"), field("data_used"), field("looked")
_MAX_PACKETS, _DATA_BYTES = field("max_packets"), field("data_bytes")
_TS_LIMIT, _TS_NEXT, _INPUT, _BIG = field("ts_limit"), field("ts_next"), field("input"), field("big")
_INTERFACES_AT, _N_INTERFACES, _EMIT = field("interfaces_at"), field("n_interfaces"), field("emit")
_ETHERNET, _SNAPLEN, _UNIT = interface_field("ethernet"), interface_field("snaplen"), interface_field("unit")
_AMOUNT, _OFFSET_S, _INTERFACE_BYTES = interface_field("amount"), interface_field("offset_s"), walk.INTERFACE.itemsize

_FULL, _NEED_BYTES, _PACED, _BAD = walk.FULL, walk.NEED, walk.PACED, walk.BAD
_FOUND_SECTION, _FOUND_DESCRIPTION = walk.SECTION, walk.DESCRIPTION
_BAD_CAPLEN, _BAD_LEN, _BAD_TRAILER = walk.REASON_CAPLEN, walk.REASON_BLOCK_LEN, walk.REASON_TRAILER
_BAD_SHORT, _BAD_INTERFACE, _BAD_DATA = walk.REASON_SHORT, walk.REASON_INTERFACE, walk.REASON_DATA
_MULTIPLY, _DIVIDE = walk.UNIT_MULTIPLY, walk.UNIT_DIVIDE
_NS, _MAX_NS, _MAX_LOOKED, _MAX_BLOCK = walk.NS, walk.MAX_NS, walk.MAX_LOOKED, walk.MAX_BLOCK_BYTES
_MAX_S = _MAX_NS // _NS
_CAPTURED, _CAPTURED_BYTES = rows.CAPTURED, rows.CAPTURED_BYTES
_OVERSIZE, _LINKTYPE = rows.OVERSIZE, rows.LINKTYPE

_SECTION_HEADER, _INTERFACE_DESCRIPTION = 0x0A0D0D0A, 1
_PACKET, _SIMPLE, _ENHANCED = 2, 3, 6  # block types; PACKET is the obsolete one
_NO_REASON = -1


@kernel
def nanoseconds(units: int, unit: int, amount: int, offset_s: int) -> int:
    """A 64-bit unsigned time of the file -> ns since the epoch, rounded down as libpcap does, at most MAX_NS."""
    if unit == _MULTIPLY:
        ts_ns = units * amount if 0 <= units <= _MAX_NS // amount else _MAX_NS
    elif unit == _DIVIDE:
        half = shift_right(units, 1)  # because int64 division of a time above 2**63 would be signed
        ts_ns = 2 * (half // amount) + (2 * (half % amount) + (units & 1)) // amount
    else:
        seconds = shift_right(units, amount)
        if seconds < 0 or seconds >= _MAX_S:
            ts_ns = _MAX_NS
        else:
            fraction = units & ((1 << amount) - 1)
            if amount < 32:
                ts_ns = seconds * _NS + shift_right(fraction * _NS, amount)
            else:  # in two parts, because their product has up to 93 bits
                high, low = shift_right(fraction, 32), fraction & 0xFFFFFFFF
                ts_ns = seconds * _NS + shift_right(high * _NS + shift_right(low * _NS, 32), amount - 32)
    if offset_s > _MAX_S or (offset_s > 0 and ts_ns > _MAX_NS - offset_s * _NS):
        return _MAX_NS
    return ts_ns + max(offset_s, -_MAX_S) * _NS


@kernel
def walk_blocks(walk_at: int, packets_at: int, data_at: int, counters_at: int) -> int:
    """Write a row for each packet in the block's data until something stops it: FULL, NEED, PACED, BAD, SECTION or DESCRIPTION.

    The arguments are those of `kernels.walk_records`; interfaces_at is INTERFACE[n_interfaces]. A Simple Packet Block has no time (0, as
    in libpcap) and belongs to interface 0. Packets of interfaces that are not Ethernet are counted and dropped; blocks that carry no
    packets are walked over.
    """
    at, end = load64(walk_at + _AT), load64(walk_at + _END)
    n, used, looked = load64(walk_at + _N), load64(walk_at + _USED), load64(walk_at + _LOOKED)
    max_packets, data_bytes = load64(walk_at + _MAX_PACKETS), load64(walk_at + _DATA_BYTES)
    ts_limit, slot, big = load64(walk_at + _TS_LIMIT), load64(walk_at + _INPUT), load64(walk_at + _BIG)
    interfaces_at, n_interfaces = load64(walk_at + _INTERFACES_AT), load64(walk_at + _N_INTERFACES)
    emit = load64(walk_at + _EMIT)
    first, wire_bytes, oversize, foreign = n, 0, 0, 0
    status, reason, value = _FULL, _NO_REASON, 0
    while n < max_packets and looked < _MAX_LOOKED:
        if end - at < 12:
            store64(walk_at + _NEED, 12)
            status = _NEED_BYTES
            break
        p = data_at + at
        if load32(p) == _SECTION_HEADER:  # reads the same in both byte orders
            status = _FOUND_SECTION
            break
        if big:
            kind, block_len = load_be32(p), load_be32(p + 4)
        else:
            kind, block_len = load32(p), load32(p + 4)
        if block_len < 12 or block_len & 3 or block_len > _MAX_BLOCK:
            reason, value = _BAD_LEN, block_len
            break
        if end - at < block_len:
            store64(walk_at + _NEED, block_len)
            status = _NEED_BYTES
            break
        last = p + block_len - 4 if at + block_len <= data_bytes else walk_at + _LAST
        trailer = load_be32(last) if big else load32(last)
        if trailer != block_len:
            reason, value = _BAD_TRAILER, trailer
            break
        if kind == _INTERFACE_DESCRIPTION:
            status = _FOUND_DESCRIPTION
            break
        if kind != _ENHANCED and kind != _SIMPLE and kind != _PACKET:
            at += block_len
            continue

        interface, units, body = 0, 0, 28
        if kind == _SIMPLE:
            body = 12
        if block_len < body + 4:
            reason, value = _BAD_SHORT, block_len
            break
        if kind == _SIMPLE:
            wirelen = load_be32(p + 8) if big else load32(p + 8)
            caplen = wirelen
        elif big:
            interface = load_be32(p + 8) if kind == _ENHANCED else load_be16(p + 8)
            units = (load_be32(p + 12) << 32) | load_be32(p + 16)
            caplen, wirelen = load_be32(p + 20), load_be32(p + 24)
        else:
            interface = load32(p + 8) if kind == _ENHANCED else load16(p + 8)
            units = (load32(p + 12) << 32) | load32(p + 16)
            caplen, wirelen = load32(p + 20), load32(p + 24)
        if interface >= n_interfaces:
            reason, value = _BAD_INTERFACE, interface
            break
        row_at = interfaces_at + interface * _INTERFACE_BYTES
        if kind == _SIMPLE:
            snaplen = load64(row_at + _SNAPLEN)
            if snaplen:
                caplen = min(caplen, snaplen)
        if caplen > MAX_FRAME_BYTES:
            reason, value = _BAD_CAPLEN, caplen
            break
        if caplen > block_len - body - 4:
            reason, value = _BAD_DATA, caplen
            break
        if not emit:
            at += block_len
            continue
        if load64(row_at + _ETHERNET) == 0:
            foreign += 1
        else:
            ts_ns = 0
            if kind != _SIMPLE:
                ts_ns = nanoseconds(units, load64(row_at + _UNIT), load64(row_at + _AMOUNT), load64(row_at + _OFFSET_S))
            if ts_ns > ts_limit:
                store64(walk_at + _TS_NEXT, ts_ns)
                status = _PACED
                break
            if at + body + caplen > data_bytes:
                oversize += 1
            else:
                write_row(packets_at + n * PACKET_BYTES, ts_ns, at + body, caplen, wirelen, slot, 0)
                used = at + body + caplen
                n += 1
                wire_bytes += wirelen
        looked += 1
        at += block_len
    if reason != _NO_REASON:
        status = _BAD
        store64(walk_at + _REASON, reason)
        store64(walk_at + _VALUE, value)
    store64(walk_at + _AT, at)
    store64(walk_at + _N, n)
    store64(walk_at + _USED, used)
    store64(walk_at + _LOOKED, looked)
    add64(counters_at + _CAPTURED + 8 * slot, n - first)
    add64(counters_at + _CAPTURED_BYTES + 8 * slot, wire_bytes)
    add64(counters_at + _OVERSIZE + 8 * slot, oversize)
    add64(counters_at + _LINKTYPE + 8 * slot, foreign)
    return status
