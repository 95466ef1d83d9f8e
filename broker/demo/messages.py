"""What the hosts of the example say to each other: small, well-formed messages of the protocols they speak."""

from __future__ import annotations

import random
import struct


def tls(size: int, rng: random.Random) -> bytes:
    """Records of application data, as long as TLS allows (RFC 8446 section 5.2)."""
    records = []
    while size > 0:
        part = min(size, 16_384)
        records.append(struct.pack("!BHH", 23, 0x0303, part) + rng.randbytes(part))
        size -= part
    return b"".join(records)


def table(size: int) -> bytes:
    """Lines of a table, so that an analyser takes it for no protocol."""
    return (b"4006381333931;pencil;0.85\n" * (size // 26 + 1))[:size]


def http_request(till: int) -> bytes:
    return f"GET /prices?till={till} HTTP/1.1\r\nHost: pos.example\r\nConnection: keep-alive\r\n\r\n".encode()


def http_response(size: int) -> bytes:
    body = table(size)
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nContent-Length: {size}\r\n\r\n".encode() + body


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


def database_start() -> bytes:
    """PostgreSQL's StartupMessage, protocol 3.0."""
    return _message(b"", struct.pack("!I", 3 << 16) + b"user\0pos\0database\0sales\0\0")


def database_ready() -> bytes:
    return _message(b"R", struct.pack("!I", 0)) + _message(b"Z", b"I")


def database_query(number: int) -> bytes:
    return _message(b"Q", b"select article, price from stock where shelf = %d\0" % number)


def database_rows(count: int) -> bytes:
    row = b"".join(struct.pack("!I", len(column)) + column for column in (b"4006381333931 pencil", b"0.85"))
    rows = _message(b"D", struct.pack("!H", 2) + row) * count
    return rows + _message(b"C", f"SELECT {count}".encode() + b"\0") + _message(b"Z", b"I")


def _dns_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def dns_question(number: int, name: str) -> bytes:
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + _dns_name(name) + struct.pack("!HH", 1, 1)


def dns_answer(number: int, name: str, address: bytes) -> bytes:
    question = _dns_name(name) + struct.pack("!HH", 1, 1)
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 300, len(address)) + address
    return struct.pack("!HHHHHH", number, 0x8180, 1, 1, 0, 0) + question + record
