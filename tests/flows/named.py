"""Names in packets: the question of a DNS message (RFC 1035), the server that a TLS ClientHello asks for (RFC 8446, RFC 6066)."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    kind: str  # dns, tls
    text: str
    dns_type: int = 0


def _plain(raw: bytes) -> str:
    return "".join(chr(b) if 32 < b < 127 else "?" for b in raw.lower())


def question_of_dns(message: bytes) -> Name | None:
    if len(message) < 12 or int.from_bytes(message[4:6], "big") == 0:
        return None
    labels, at = [], 12
    while True:
        if at >= len(message) or message[at] > 63 or at - 12 > 254:
            return None
        size = message[at]
        if size == 0:
            break
        if at + 1 + size > len(message):
            return None
        labels.append(message[at + 1 : at + 1 + size])
        at += 1 + size
    if len(message) < at + 3:
        return None
    return Name("dns", _plain(b".".join(labels)) or ".", int.from_bytes(message[at + 1 : at + 3], "big"))


def code_of_dns(message: bytes) -> int:
    """255: no answer."""
    return message[3] & 15 if len(message) >= 12 and message[2] & 0x80 else 255


def server_of_tls(payload: bytes) -> Name | None:
    """The ClientHello must be at the beginning, and its server name within `payload`."""
    try:
        if payload[0] != 22 or payload[1] != 3 or payload[5] != 1:
            return None
        at = 5 + 4 + 2 + 32
        at += 1 + payload[at]  # session
        at += 2 + struct.unpack_from("!H", payload, at)[0]  # cipher suites
        at += 1 + payload[at]  # compression methods
        end = at + 2 + struct.unpack_from("!H", payload, at)[0]
        at += 2
        while at + 4 <= end:
            kind, size = struct.unpack_from("!HH", payload, at)
            if kind == 0:
                name_type, n_bytes = struct.unpack_from("!xxBH", payload, at + 4)
                name = payload[at + 9 : at + 9 + n_bytes]
                return Name("tls", _plain(name)) if name_type == 0 and len(name) == n_bytes > 0 else None
            at += 4 + size
    except (IndexError, struct.error):
        pass
    return None
