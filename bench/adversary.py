"""Packets of an adversary who wants the filter slow: no two are alike, and nothing like them has been seen before."""

from __future__ import annotations

import random
import struct

import numpy as np

from bench.rulesets import TCP, Headers, Ints, Rules, frames, headers

_MACS = bytes(range(2, 14))


def kinds(rules: Rules, n: int, seed: int) -> dict[str, list[bytes]]:
    """n packets of each kind, by its name; all around the rules."""
    around = headers(rules, n, seed, edges=0.4, strays=0.4)
    whole = _whole(around)
    chosen = random.Random(seed)
    return {
        "random headers": whole,
        "port scan": _whole(_tcp(around.src[:1].repeat(n), around.dst[:1].repeat(n), 40_000 + np.arange(n), np.arange(n) % 65536)),
        "SYN flood": _whole(
            _tcp(np.random.default_rng(seed).integers(1 << 32, size=n), around.dst[:1].repeat(n), around.sport, around.dport)
        ),
        "runts": [data[: chosen.randrange(30, 54)] for data in whole],
        "fragments": [_fragment(data, chosen) for data in whole],
        "deep headers": [(_options if i % 2 else _chain)(data, chosen) for i, data in enumerate(whole)],
    }


def _whole(of: Headers) -> list[bytes]:
    return [bytes(row) for row in frames(of, np.full(len(of), 60))]


def _tcp(src: Ints, dst: Ints, sport: Ints, dport: Ints) -> Headers:
    n = len(src)
    return Headers(src, dst, sport, dport, np.full(n, TCP), np.full(n, 2))


def _fragment(data: bytes, chosen: random.Random) -> bytes:
    """First ones and later ones, of datagrams of their own."""
    offset = chosen.choice((0, chosen.randrange(1, 8190)))
    return data[:18] + struct.pack("!HH", chosen.randrange(65536), 0x2000 | offset) + data[22:]


def _options(data: bytes, chosen: random.Random) -> bytes:
    """Four tags, and an IPv4 header of the largest size."""
    tags = b"".join(struct.pack("!HH", 0x8100, chosen.randrange(4096)) for _ in range(4))
    header = b"\x4f" + data[15:16] + struct.pack("!H", 86) + data[18:34] + bytes(chosen.choice((0, 1)) for _ in range(40))
    return _MACS + tags + data[12:14] + header + data[34:]


def _chain(data: bytes, chosen: random.Random) -> bytes:
    """IPv6 with as many extension headers as fit into a small packet, and TCP behind them."""
    types = [0, *(chosen.choice((43, 60)) for _ in range(chosen.randrange(6, 12))), data[23]]
    extensions = b"".join(bytes([follows, 0]) + chosen.randbytes(6) for follows in types[1:])
    payload = extensions + data[34:]
    address = struct.pack("!IQ", 0x20010DB8, 0)
    fixed = struct.pack("!IHBB", 6 << 28, len(payload), types[0], 64) + address + data[26:30] + address + data[30:34]
    return _MACS + b"\x86\xdd" + fixed + payload
