"""Datagrams of sockets -> a block: received into it, checked, decapsulated where they lie, noted for their senders.

A datagram is received into a slot of the block, and what is longer than the slot into memory of its own; a long one is then put together
in the block. So short ones, which are nearly all, are never copied. A block may be full anywhere in a batch with long ones: then the slots
of the rest are kept aside, and copied into the next blocks.
"""

from __future__ import annotations

import socket
from typing import Any

import numpy as np

from broker.core.metrics import index
from broker.core.senders import MAX_SENDERS, NO_DELAY, NOTE
from stages.capture import rows
from stages.capture.libc import recvmmsg
from stages.capture.rows import PACKET_BYTES, write_row
from stages.capture.sender_kernels import add_sender, find_sender, session_of, write_note
from stages.jit import kernel
from stages.memory import add64, copy, load8, load32, load64, store32, store64, store_release
from stages.wire import decap
from stages.wire.decap import HEADROOM, INSIDE, NONE, decapsulate

VECTORS = 64  # datagrams a call
SLOT_BYTES = 2048  # of the block for each: an Ethernet frame of 1514 bytes in any tunnel fits
LONG_BYTES = 65_536
MMSGHDR_BYTES, _IOVEC_BYTES, _NAME_BYTES, _CONTROL_BYTES = 64, 16, 32, 64
_IOVECS = VECTORS * MMSGHDR_BYTES
_NAMES = _IOVECS + VECTORS * 2 * _IOVEC_BYTES
_CONTROLS = _NAMES + VECTORS * _NAME_BYTES
VECTORS_BYTES = _CONTROLS + VECTORS * _CONTROL_BYTES

SOCKET = np.dtype(
    [
        (name, "<i8")
        for name in (
            "fd",
            "is_ip6",
            "skip_ip",  # 1: an IPv4 header stands before the tunnel's (raw sockets)
            "vectors_at",  # mmsghdr[VECTORS], iovec[VECTORS][2], names, controls
            "long_at",  # uint8[VECTORS, LONG_BYTES]: of each datagram what is behind its slot
            "kept_at",  # uint8[VECTORS, SLOT_BYTES]: slots for which there was no room in the block
            "got", "done",  # datagrams in hand, and how many of them are dealt with
            "slots_at",  # where the first of them lies
            "received",  # datagrams, by all workers there were
            "before",  # what that was when a call began
            "receiving",  # 1: a call is under way: `received` lacks the messages that the kernel has given a length since
        )
    ]
)  # fmt: skip
"""In shared memory, with the vectors: the last three tell the next worker what this one had taken."""
ENDPOINT = np.dtype(
    [
        (name, "<i8")
        for name in (
            "sockets_at", "n_sockets",
            "first",  # the socket to begin with
            "listen",  # LISTEN_* of decap
            "key", "session",  # what is taken; NONE: any
            "nets_at", "n_nets",  # NET rows
            "senders_at", "notes_at",
            "now_ns",  # for a datagram without a time
            "n_packets", "data_used", "max_packets", "data_bytes", "input",
        )
    ]
)  # fmt: skip
"""*Written* by the kernel: n_packets, data_used; of SOCKET got, done, slots_at, received, before, receiving."""
NET = np.dtype([("value", "<i8", (2,)), ("mask", "<i8", (2,))])
"""Of 16 bytes as they stand in memory; IPv4 is mapped."""


def _offset(dtype: np.dtype[Any], name: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[name][1])


_SOCKET_BYTES, _NET_BYTES, _NOTE_BYTES, _INSIDE_BYTES = SOCKET.itemsize, NET.itemsize, NOTE.itemsize, INSIDE.itemsize
_FD, _IS_IP6, _SKIP_IP = _offset(SOCKET, "fd"), _offset(SOCKET, "is_ip6"), _offset(SOCKET, "skip_ip")
_VECTORS_AT, _LONG_AT, _GOT = _offset(SOCKET, "vectors_at"), _offset(SOCKET, "long_at"), _offset(SOCKET, "got")
_DONE, _SLOTS_AT, _KEPT_AT = _offset(SOCKET, "done"), _offset(SOCKET, "slots_at"), _offset(SOCKET, "kept_at")
_RECEIVED, _BEFORE, _RECEIVING = _offset(SOCKET, "received"), _offset(SOCKET, "before"), _offset(SOCKET, "receiving")
_SOCKETS_AT, _N_SOCKETS, _FIRST = _offset(ENDPOINT, "sockets_at"), _offset(ENDPOINT, "n_sockets"), _offset(ENDPOINT, "first")
_LISTEN, _KEY, _SESSION = _offset(ENDPOINT, "listen"), _offset(ENDPOINT, "key"), _offset(ENDPOINT, "session")
_NETS_AT, _N_NETS = _offset(ENDPOINT, "nets_at"), _offset(ENDPOINT, "n_nets")
_SENDERS_AT, _NOTES_AT, _NOW_NS = _offset(ENDPOINT, "senders_at"), _offset(ENDPOINT, "notes_at"), _offset(ENDPOINT, "now_ns")
_N, _USED, _INPUT = _offset(ENDPOINT, "n_packets"), _offset(ENDPOINT, "data_used"), _offset(ENDPOINT, "input")
_MAX_PACKETS, _DATA_BYTES = _offset(ENDPOINT, "max_packets"), _offset(ENDPOINT, "data_bytes")
_I_AT, _I_KIND, _I_KEY, _I_SESSION, _I_SEQUENCE, _I_STAMP, _I_STAMP_NS = (_offset(INSIDE, name) for name in INSIDE.names or ())

# struct msghdr in mmsghdr (bits/socket.h), struct cmsghdr with a struct timespec
_NAME, _NAMELEN, _IOV, _IOVLEN, _CONTROL, _CONTROLLEN, _FLAGS, LEN = 0, 8, 16, 24, 32, 40, 48, 56
NO_MESSAGE = 0xFFFF_FFFF  # as the length of one that was not received
_SOL_SOCKET, SO_TIMESTAMPNS, _STAMP_BYTES = int(socket.SOL_SOCKET), 35, 32
_IP_AT, _IP6_AT = 4, 8  # in sockaddr_in and sockaddr_in6
_MAPPED = 0xFFFF_0000  # bytes 00 00 ff ff
_DONTWAIT, _TRUNC = int(socket.MSG_DONTWAIT), int(socket.MSG_TRUNC)
_ROOM = SLOT_BYTES - HEADROOM
_NS, _ALIGN = 1_000_000_000, 16
_BITS32 = 0xFFFF_FFFF

_CAPTURED, _CAPTURED_BYTES, _MALFORMED = rows.CAPTURED, rows.CAPTURED_BYTES, rows.MALFORMED
_BAD_SOURCE, _BAD_KEY = 8 * index("capture", "dropped_source"), 8 * index("capture", "dropped_key")
_BAD_PROTOCOL, _BAD_CHECKSUM = 8 * index("capture", "dropped_protocol"), 8 * index("capture", "dropped_checksum")
_TAKEN, _OF_PROTOCOL, _OF_CHECKSUM = decap.TAKEN, decap.PROTOCOL, decap.CHECKSUM


@kernel
def _receive(sock: int, slots: int, n: int) -> int:
    """Up to n datagrams into the slots from address `slots` on."""
    vectors, long_at = load64(sock + _VECTORS_AT), load64(sock + _LONG_AT)
    for i in range(n):
        header, iovec = vectors + i * MMSGHDR_BYTES, vectors + _IOVECS + i * 2 * _IOVEC_BYTES
        store64(header + _NAME, vectors + _NAMES + i * _NAME_BYTES)
        store64(header + _NAMELEN, _NAME_BYTES)
        store64(header + _IOV, iovec)
        store64(header + _IOVLEN, 2)
        store64(header + _CONTROL, vectors + _CONTROLS + i * _CONTROL_BYTES)
        store64(header + _CONTROLLEN, _CONTROL_BYTES)
        store64(header + _FLAGS, 0)
        store32(header + LEN, NO_MESSAGE)
        store64(iovec, slots + i * SLOT_BYTES + HEADROOM)
        store64(iovec + 8, _ROOM)
        store64(iovec + 16, long_at + i * LONG_BYTES)
        store64(iovec + 24, LONG_BYTES)
    received = load64(sock + _RECEIVED)
    store64(sock + _BEFORE, received)
    store_release(sock + _RECEIVING, 1)
    got = max(int(recvmmsg(load64(sock + _FD), vectors, n, _DONTWAIT, 0)), 0)
    store64(sock + _RECEIVED, received + got)
    store_release(sock + _RECEIVING, 0)
    return got


@kernel
def _write_source(header: int, is_ip6: int, address: int) -> None:
    """The 16 bytes of the sender's address."""
    name = load64(header + _NAME)
    if is_ip6:
        store64(address, load64(name + _IP6_AT))
        store64(address + 8, load64(name + _IP6_AT + 8))
    else:
        store64(address, 0)
        store32(address + 8, _MAPPED)
        store32(address + 12, load32(name + _IP_AT))


@kernel
def _time_of(header: int, now_ns: int) -> int:
    control = load64(header + _CONTROL)
    if load64(header + _CONTROLLEN) >= _STAMP_BYTES and load32(control + 8) == _SOL_SOCKET and load32(control + 12) == SO_TIMESTAMPNS:
        return load64(control + 16) * _NS + load64(control + 24)
    return now_ns


@kernel
def _is_listed(nets: int, n_nets: int, address: int) -> bool:
    high, low = load64(address), load64(address + 8)
    for i in range(n_nets):
        net = nets + i * _NET_BYTES
        if high & load64(net + 16) == load64(net) and low & load64(net + 24) == load64(net + 8):
            return True
    return False


@kernel
def _delay_of(inside: int, ts_ns: int) -> int:
    """From the sender's stamp, which wraps, to `ts_ns`; negative if its clock is ahead."""
    if load64(inside + _I_STAMP) == NONE:
        return NO_DELAY
    unit = load64(inside + _I_STAMP_NS)
    units = (ts_ns // unit - load64(inside + _I_STAMP)) & _BITS32
    return (units - _BITS32 - 1 if units > _BITS32 >> 1 else units) * unit


@kernel
def receive_packets(endpoint: int, packets_at: int, data_at: int, counters_at: int, scratch: int) -> int:
    """Take what the sockets hold until they are empty or the block is full; returns the datagrams looked at.

    | address | what lies there |
    |---|---|
    | endpoint | ENDPOINT[1] |
    | packets_at | PACKET[max_packets], *written* from row 0 on |
    | data_at | uint8[data_bytes], *written* |
    | counters_at | int64[N_COUNTERS], *added to* |
    | scratch | INSIDE[1] and 16 bytes, *written* |

    Of n_packets rows written there are as many notes. A sender gets its row when its first packet is taken.
    """
    slot, listen, now_ns = load64(endpoint + _INPUT), load64(endpoint + _LISTEN), load64(endpoint + _NOW_NS)
    key, session = load64(endpoint + _KEY), load64(endpoint + _SESSION)
    nets, n_nets, senders, notes = (
        load64(endpoint + _NETS_AT), load64(endpoint + _N_NETS), load64(endpoint + _SENDERS_AT), load64(endpoint + _NOTES_AT),
    )  # fmt: skip
    max_packets, data_bytes, n_sockets = load64(endpoint + _MAX_PACKETS), load64(endpoint + _DATA_BYTES), load64(endpoint + _N_SOCKETS)
    inside, address = scratch, scratch + _INSIDE_BYTES
    n, used, looked, wire_bytes, malformed, bad_source, bad_key, bad_protocol, bad_checksum = 0, 0, 0, 0, 0, 0, 0, 0, 0
    for turn in range(n_sockets):
        sock = load64(endpoint + _SOCKETS_AT) + (load64(endpoint + _FIRST) + turn) % n_sockets * _SOCKET_BYTES
        is_ip6, skip_ip, vectors, long_at = (
            load64(sock + _IS_IP6),
            load64(sock + _SKIP_IP),
            load64(sock + _VECTORS_AT),
            load64(sock + _LONG_AT),
        )
        got, done, slots = load64(sock + _GOT), load64(sock + _DONE), load64(sock + _SLOTS_AT)
        is_here = 0  # the slots in hand lie in this block
        more = 1
        while more:
            if done == got:
                room = min(VECTORS, max_packets - n, (data_bytes - used) // SLOT_BYTES)
                got, done = 0, 0
                if room <= 0:
                    break
                slots, is_here = data_at + used, 1
                got = _receive(sock, slots, room)
                used += got * SLOT_BYTES
                more = int(got == room)
            while done < got:
                header, at = vectors + done * MMSGHDR_BYTES, slots + done * SLOT_BYTES + HEADROOM
                n_bytes = load32(header + LEN)
                if is_here == 0 or n_bytes > _ROOM:
                    if n == max_packets or used + HEADROOM + n_bytes > data_bytes:
                        more = 0
                        break
                    to = data_at + used + HEADROOM
                    copy(to, at, min(n_bytes, _ROOM))
                    copy(to + _ROOM, long_at + done * LONG_BYTES, max(n_bytes - _ROOM, 0))
                    at, used = to, (used + HEADROOM + n_bytes + _ALIGN - 1) & -_ALIGN
                done += 1
                looked += 1
                _write_source(header, is_ip6, address)
                if not _is_listed(nets, n_nets, address):
                    bad_source += 1
                    continue
                if skip_ip:
                    ip_bytes = 4 * (load8(at) & 15)
                    at += ip_bytes
                    n_bytes -= ip_bytes
                answer = decapsulate(listen, at, n_bytes, inside)
                if answer != _TAKEN:
                    bad_protocol += int(answer == _OF_PROTOCOL)
                    bad_checksum += int(answer == _OF_CHECKSUM)
                    malformed += int(answer != _OF_PROTOCOL and answer != _OF_CHECKSUM)
                    continue
                found_key, found_session = load64(inside + _I_KEY), load64(inside + _I_SESSION)
                if (key != NONE and found_key != key) or (session != NONE and found_session != session):
                    bad_key += 1
                    continue
                number = session_of(load64(inside + _I_KIND), found_session if found_session != NONE else found_key)
                sender = find_sender(senders, address, number)
                if sender < 0 and sender > -1 - MAX_SENDERS:
                    sender = -1 - sender
                    add_sender(senders, sender, address, number)
                start, ts_ns = load64(inside + _I_AT), _time_of(header, now_ns)
                length = n_bytes - start
                write_row(packets_at + n * PACKET_BYTES, ts_ns, at + start - data_at, length, length, slot, 0)
                write_note(notes + n * _NOTE_BYTES, sender, load64(inside + _I_SEQUENCE), ts_ns, length, _delay_of(inside, ts_ns))
                n += 1
                wire_bytes += length
        if is_here and done < got:
            kept = load64(sock + _KEPT_AT)
            copy(kept + done * SLOT_BYTES, slots + done * SLOT_BYTES, (got - done) * SLOT_BYTES)
            slots = kept
        store64(sock + _GOT, got)
        store64(sock + _DONE, done)
        store64(sock + _SLOTS_AT, slots)
    store64(endpoint + _FIRST, (load64(endpoint + _FIRST) + 1) % n_sockets)
    store64(endpoint + _N, n)
    store64(endpoint + _USED, used)
    add64(counters_at + _CAPTURED + 8 * slot, n)
    add64(counters_at + _CAPTURED_BYTES + 8 * slot, wire_bytes)
    add64(counters_at + _MALFORMED + 8 * slot, malformed)
    add64(counters_at + _BAD_SOURCE + 8 * slot, bad_source)
    add64(counters_at + _BAD_KEY + 8 * slot, bad_key)
    add64(counters_at + _BAD_PROTOCOL + 8 * slot, bad_protocol)
    add64(counters_at + _BAD_CHECKSUM + 8 * slot, bad_checksum)
    return looked
