"""Run by test_plain.py with NUMBA_DISABLE_JIT=1: parsing and following as plain Python, every access checked, one packet at a time.

Allowed is the packet, its two rows, the table and the counters. Prints the KEY rows, without the address of the frame, and the counters.
"""

from __future__ import annotations

import json
import random
import sys

from stages import memory
from stages.jit import PLAIN
from tests import packets as p
from tests.stages.filter import traffic
from tests.stages.wire.reading import START_NS, Packet, Reader


def hostile(seed: int) -> list[Packet]:
    """Fragments of few datagrams in a small table, cut anywhere, at any time; and traffic of all kinds."""
    chosen = random.Random(seed)
    found = [Packet(f.data) for f in traffic.some(150, seed) + traffic.every_cut(seed, n=2)]
    for _ in range(400):
        payload = p.tcp(7, chosen.choice((8, 9)), bytes(64))[: chosen.choice((0, 4, 8, 8, 16, 16, 24))]
        at, more, name = 8 * chosen.choice((0, 0, 1, 2, 3, 4, 8)), chosen.random() < 0.9, chosen.randrange(8)
        if chosen.random() < 0.5:
            packet = p.ipv4("10.0.0.1", "10.0.0.2", p.TCP, payload, identification=name, offset=at, more_fragments=more)
            frame = p.ethernet(packet, vlans=(5,) * chosen.choice((0, 0, 1, 3)))
        else:
            protocol, payload = p.FRAGMENT, p.fragment_header(p.TCP, payload, offset=at, more=more, identification=name)
            for _ in range(chosen.choice((0, 0, 1, 9))):
                protocol, payload = p.DSTOPTS, p.destination_options(protocol, payload)
            frame = p.ethernet(p.ipv6("fe80::1", "fe80::2", protocol, payload), type=p.ETH_IP6)
        ts_ns = chosen.choice((0, (1 << 63) - 1, -(1 << 63))) if chosen.random() < 0.02 else START_NS + chosen.choice((0, 0, 1_500_000_000))
        found.append(Packet(frame[: chosen.choice((len(frame), len(frame), chosen.randrange(len(frame) + 1)))], ts_ns))
    return found


def found_by(seed: int) -> tuple[list[str], dict[str, int]]:
    reader = Reader(seed, buckets=4, allow=memory.allow if PLAIN else None)
    rows = []
    for packet in hostile(seed):
        memory.forbid_all()
        (row,) = reader.read(packet)
        row["at"] = 0
        rows.append(row.tobytes().hex())
    return rows, reader.counts()


if __name__ == "__main__":
    assert PLAIN
    json.dump([found_by(seed) for seed in range(3)], sys.stdout)
