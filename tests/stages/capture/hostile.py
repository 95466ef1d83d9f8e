"""Damaged files and rings for all three kernels. ``python -m tests.stages.capture.hostile`` prints what they make of them, a line each.

With NUMBA_DISABLE_JIT=1 every byte that a kernel touches must lie in what it was given: what of the file is in the block, the rows of the
block, the interfaces of the section, the kernel's ring. Anything else ends the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import random
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from broker.core.layout import PACKET, Geometry
from broker.core.metrics import N_COUNTERS
from stages import memory
from stages.capture import pcap, pcapng
from stages.capture.afpacket_kernels import RING, copy_packets, give_back
from stages.capture.errors import SourceError
from stages.capture.walk import INTERFACE, Walk
from stages.jit import PLAIN
from tests.stages.capture.support import Worker, files
from tests.stages.capture.writers import Pcapng, frame, numbered, pcap_header, pcap_record

SMALL = Geometry(max_packets=7, data_bytes=4096)
WORDS = (
    0,
    1,
    2,
    3,
    4,
    8,
    11,
    12,
    13,
    16,
    28,
    32,
    60,
    63,
    64,
    4096,
    4097,
    65_535,
    262_144,
    262_145,
    2**24,
    2**24 + 4,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def pcap_files(n: int) -> Iterator[bytes]:
    """Record headers and the snapshot length overwritten, or the file cut."""
    for seed in range(n):
        chance = random.Random(seed)
        order, magic = chance.choice("<>"), chance.choice((0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34))
        extra = bytes(8) if magic == 0xA1B2CD34 else b""
        content, heads = bytearray(pcap_header(order, magic, version=(2, chance.choice((2, 3, 4))))), [16]
        for record in numbered(12, length=chance.choice((0, 1, 60, 500))):
            heads += range(len(content), len(content) + 16, 4)
            content += pcap_record(record, order, extra=extra)
        yield _damaged(content, heads, order, chance)


def pcapng_files(n: int) -> Iterator[bytes]:
    """Any word overwritten, or the file cut."""
    for seed in range(n):
        chance = random.Random(seed)
        content = bytearray()
        for order in chance.choice(("<", ">", "<>")):
            section = Pcapng(order).section().interface(tsresol=chance.choice((None, 9, 12, 0x80 | 20)))
            section.interface(linktype=chance.choice((1, 113)), snaplen=50)
            for i in range(6):
                section.enhanced(frame(i), interface=i % 2, units=chance.getrandbits(64)).simple(frame(i)).obsolete(frame(i, 61), 61)
                section.block(0x0BAD, bytes(chance.randrange(40)))
            content += section.bytes()
        yield _damaged(content, list(range(28, len(content) - 3, 4)), order, chance)


def _damaged(content: bytearray, words: list[int], order: str, chance: random.Random) -> bytes:
    for _ in range(chance.randrange(1, 4)):
        at = chance.choice(words)
        if chance.random() < 0.5:
            struct.pack_into(f"{order}I", content, at, chance.choice(WORDS))
        else:
            content[at + chance.randrange(4)] ^= 1 << chance.randrange(8)
    return bytes(content[: chance.randrange(24, len(content))] if chance.random() < 0.3 else content)


def _rings(n: int, block_bytes: int = 8192, n_blocks: int = 3) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """TPACKET_V3 blocks as the kernel lays them out (linux/if_packet.h), with words overwritten."""
    for seed in range(n):
        chance = random.Random(seed)
        ring = np.zeros(block_bytes * n_blocks, np.uint8)
        for block in range(n_blocks):
            content, n_packets = bytearray(block_bytes), chance.randrange(12)
            struct.pack_into("6I", content, 0, 1, 48, chance.choice((1, 1, 1, 0)), n_packets, 48, block_bytes)
            heads, at = [12, 16], 48
            for i in range(n_packets):
                length = chance.choice((14, 60, 400))
                step = (48 + 34 + length + 15) & ~15
                status = chance.choice((1, 0x11, 0x51))
                struct.pack_into("6IHHIIH", content, at, step, 1_700_000_000, i, length, length, status, 82, 96, 0, 100, 0x88A8)
                content[at + 82 : at + 82 + length] = frame(i, length)
                heads += range(at, at + 40, 4)
                at += step
            for _ in range(chance.randrange(4)):
                struct.pack_into("I", content, chance.choice(heads), chance.choice((*WORDS, block_bytes - 48, block_bytes - 47, 82)))
            ring[block * block_bytes : (block + 1) * block_bytes] = np.frombuffer(bytes(content), np.uint8)
        yield ring


def _guarded(kernel: Callable[..., int]) -> Callable[..., int]:
    """Allow exactly what the kernel is given."""

    def call(walk_at: int, packets_at: int, data_at: int, counters_at: int) -> int:
        row = Walk.from_address(walk_at)
        memory.forbid_all()
        memory.allow(walk_at, ctypes.sizeof(Walk))
        memory.allow(packets_at, PACKET.itemsize * max(row.max_packets, 0))
        memory.allow(data_at, min(row.end, row.data_bytes))
        memory.allow(counters_at, 8 * N_COUNTERS)
        memory.allow(row.interfaces_at, INTERFACE.itemsize * row.n_interfaces)
        return kernel(walk_at, packets_at, data_at, counters_at)

    return call if PLAIN else kernel


def read_all(directory: Path, contents: Iterator[bytes]) -> Iterator[Worker]:
    for n, content in enumerate(contents):
        here = directory / str(n)
        here.mkdir()
        path = here / "file"
        path.write_bytes(content)
        worker = Worker(here, files(path), geometry=SMALL)
        with contextlib.suppress(SourceError):  # the report has it
            worker.start().run()
        yield worker


def _walk_ring(ring: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> str:
    state, counters = np.zeros(1, RING), np.zeros(N_COUNTERS, np.int64)
    packets, data = np.zeros(SMALL.max_packets, PACKET), np.zeros(SMALL.data_bytes, np.uint8)
    row = state[0]
    row["ring_at"], row["block_bytes"], row["n_blocks"] = ring.ctypes.data, 8192, 3
    row["max_packets"], row["data_bytes"] = SMALL.max_packets, SMALL.data_bytes
    memory.forbid_all()
    for array in (ring, state, counters, packets, data):
        memory.allow(array.ctypes.data, array.nbytes)
    seen = hashlib.sha256()
    for _ in range(40):
        give_back(state.ctypes.data)
        looked = copy_packets(state.ctypes.data, packets.ctypes.data, data.ctypes.data, counters.ctypes.data)
        n = int(row["n_packets"])
        for p in packets[:n]:
            seen.update(repr(p).encode() + data[int(p["data_at"]) :][: int(p["caplen"])].tobytes())
        if not looked and not row["held"]:
            break
    return f"{seen.hexdigest()[:16]} {int(row['taken'])} {counters.sum()}"


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def main() -> None:
    pcap.walk_records, pcapng.walk_blocks = _guarded(pcap.walk_records), _guarded(pcapng.walk_blocks)
    for make in (pcap_files, pcapng_files):
        with tempfile.TemporaryDirectory() as directory:
            for n, worker in enumerate(read_all(Path(directory), make(400))):
                digest = hashlib.sha256(repr(worker.records).encode()).hexdigest()[:16]
                _say(make.__name__, n, len(worker.records), digest, worker.report.replace(directory, "").strip())
    for n, ring in enumerate(_rings(400)):
        _say("ring", n, _walk_ring(ring))


if __name__ == "__main__":
    main()
