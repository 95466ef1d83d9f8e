"""IPFIX as a collector that knows nothing but lengths, sets and sequence numbers reads it."""

from __future__ import annotations

import contextlib
import socket
import struct


def messages_of(data: bytes) -> list[bytes]:
    """Whole messages; a half one at the end is left out."""
    made, at = [], 0
    while at + 4 <= len(data):
        version, length = struct.unpack_from(">HH", data, at)
        assert version == 10
        if at + length > len(data):
            break
        made.append(bytes(data[at : at + length]))
        at += length
    return made


def n_flows(messages: list[bytes]) -> int:
    """Data records of flows; and sequence numbers without gaps, the first 0, templates before records."""
    assert struct.unpack_from(">HH", messages[0], 16)[0] == 2
    n = sequence = 0
    for message in messages:
        assert struct.unpack_from(">I", message, 8)[0] == sequence
        at = 16
        while at < len(message):
            set_id, length = struct.unpack_from(">HH", message, at)
            if set_id in (256, 257):
                records = (length - 4) // (92 if set_id == 256 else 116)
                n += records
                sequence += records
            elif set_id > 257:
                sequence += 1
            at += length
    return n


def received(receiver: socket.socket) -> list[bytes]:
    """The datagrams that are there."""
    made = []
    with contextlib.suppress(BlockingIOError):
        while True:
            made.append(receiver.recv(65_536, socket.MSG_DONTWAIT))
    return made
