"""Duplicates are found, and nothing else: against a dictionary of packets normalised by hand, bit by bit, and in captures played twice."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest

from broker.core import layout
from stages import memory
from stages.encapsulate.dedup import (
    DIGEST,
    IGNORE_CHECKSUM,
    IGNORE_MACS,
    IGNORE_TAGS,
    IGNORE_TOS,
    IGNORE_TTL,
    MAX_WINDOW_PACKETS,
    ROWS,
    Duplicates,
    digest_packet,
    find_duplicates,
    is_duplicate,
)
from stages.jit import PLAIN
from tests import corpus, libpcap
from tests import packets as p
from tests.again import run_plain
from tests.stages.encapsulate.guarded import Guarded
from tests.stages.filter import traffic, tunnel_traffic

IN = Guarded()
SECOND_NS = 1_000_000_000
EVERYTHING = IGNORE_MACS | IGNORE_TAGS | IGNORE_TTL | IGNORE_TOS | IGNORE_CHECKSUM
ENDS4, ENDS6 = ("10.0.0.1", "10.0.0.2"), ("fe80::1", "fe80::2")


class Table:
    """Packets one by one, each at the next position unless told otherwise."""

    def __init__(self, ignore: int = 0, *, packets: int = 1000, ns: int = SECOND_NS, seed: bytes = b"test") -> None:
        self.duplicates = Duplicates(packets, ns, ignore, seed)
        self.digest = np.zeros(1, DIGEST)
        self.position = -1

    def __call__(
        self, frame: bytes, ts_ns: int = 0, *, position: int | None = None, wirelen: int | None = None, at_end: bool = True
    ) -> int:
        self.position = self.position + 1 if position is None else position
        memory.forbid_all()
        memory.allow(int(self.duplicates.memory.ctypes.data), self.duplicates.memory.nbytes)
        digest = int(self.digest.ctypes.data)
        memory.allow(digest, DIGEST.itemsize)
        at = IN.put(frame, at_end=at_end)
        digest_packet(self.duplicates.at, at, len(frame), len(frame) if wirelen is None else wirelen, digest)
        return is_duplicate(self.duplicates.at, digest, ts_ns, self.position)


def normalised(frame: bytes, ignore: int) -> tuple[bytes, int]:
    """What has to be the same, by the slow way; and how many bytes of tags are left out."""
    if len(frame) < 14:
        return frame, 0
    macs, at, tags = frame[:12], 12, b""
    while len(tags) < 16 and frame[at : at + 2] in (b"\x81\0", b"\x88\xa8", b"\x91\0") and len(frame) >= at + 6:
        tags += frame[at : at + 4]
        at += 4
    type_, rest = frame[at : at + 2], bytearray(frame[at + 2 :])
    if type_ == b"\x08\0" and len(rest) >= 20 and rest[0] >> 4 == 4:
        if ignore & IGNORE_TOS:
            rest[1] = 0
        if ignore & IGNORE_TTL:
            rest[8] = 0
        if ignore & (IGNORE_TOS | IGNORE_TTL | IGNORE_CHECKSUM):
            rest[10:12] = b"\0\0"
    if type_ == b"\x86\xdd" and len(rest) >= 40 and rest[0] >> 4 == 6:
        if ignore & IGNORE_TOS:
            rest[0], rest[1] = rest[0] & 0xF0, rest[1] & 0x0F
        if ignore & IGNORE_TTL:
            rest[7] = 0
    kept = b"" if ignore & IGNORE_TAGS else tags
    return (b"" if ignore & IGNORE_MACS else macs) + bytes([len(kept)]) + kept + type_ + bytes(rest), len(tags) - len(kept)


class Reference:
    def __init__(self, ignore: int, packets: int, ns: int) -> None:
        self.ignore, self.packets, self.ns = ignore, packets, ns
        self.first: dict[tuple[bytes, int], tuple[int, int]] = {}
        self.n = 0

    def __call__(self, frame: bytes, ts_ns: int, wirelen: int) -> int:
        self.n += 1
        what, n_skipped = normalised(frame, self.ignore)
        key = what, wirelen - n_skipped
        number, then = self.first.get(key, (-(1 << 60), 0))
        if self.n - number <= self.packets and abs(ts_ns - then) <= self.ns:
            return 1
        self.first[key] = self.n, ts_ns
        return 0


BASES = [
    p.tcp_frame(*ENDS4[:1], 1, ENDS4[1], 2, bytes(range(90))),
    p.ip_frame(*ENDS6, p.TCP, p.tcp(1, 2, bytes(range(50)))),
    p.udp_frame(*ENDS4[:1], 1, ENDS4[1], 2, b"", vlans=(5,)),
    p.ethernet(p.ipv6(*ENDS6, p.UDP, p.udp(1, 2, b"abc")), type=p.ETH_IP6, vlans=(5, 6)),
    p.ethernet(p.arp(1, (p.MAC_A, "10.0.0.1"), (p.MAC_B, "10.0.0.2")), type=p.ETH_ARP),
    p.ethernet(b"", type=0x88B5),
    b"runt",
]


@pytest.mark.parametrize("ignore", [0, IGNORE_MACS, IGNORE_TAGS, IGNORE_TTL, IGNORE_TOS, IGNORE_CHECKSUM, EVERYTHING])
@pytest.mark.parametrize("base", range(len(BASES)))
def test_packets_that_differ_in_one_bit_are_merged_only_where_it_is_ignored(base: int, ignore: int) -> None:
    frame = BASES[base]
    table = Table(ignore, packets=10_000)
    assert table(frame) == 0
    assert table(frame) == 1
    for bit in range(0, 8 * len(frame), 3 if PLAIN else 1):
        other = bytearray(frame)
        other[bit // 8] ^= 1 << bit % 8
        same = normalised(bytes(other), ignore) == normalised(frame, ignore)
        assert table(bytes(other)) == same, f"bit {bit}"


@pytest.mark.parametrize("n", range(0, 150, 1))
def test_every_bit_and_every_length_counts_whatever_the_tail(n: int) -> None:
    frame = p.ip_frame(*ENDS4, p.UDP, bytes(n))
    table = Table(EVERYTHING, packets=10_000)
    assert table(frame) == 0
    assert table(frame + b"\0") == 0
    assert table(frame, wirelen=len(frame) + 1) == 0
    for at in range(n):
        other = bytearray(frame)
        other[34 + at] ^= 0x80
        assert table(bytes(other)) == 0, at
    assert table(frame) == 1


def test_words_that_change_places_are_another_packet() -> None:
    """Sums do not see an order, unless keys do."""
    chosen = random.Random(1)
    table = Table(packets=100_000)
    words = [chosen.randbytes(8) for _ in range(24)]
    assert table(p.ip_frame(*ENDS4, p.UDP, b"".join(words))) == 0
    for i in range(24):
        for j in range(i):
            moved = list(words)
            moved[i], moved[j] = moved[j], moved[i]
            assert table(p.ip_frame(*ENDS4, p.UDP, b"".join(moved))) == 0


def test_what_a_tap_and_a_span_port_change_is_ignored_as_asked() -> None:
    def seen(ignore: int, **change: object) -> int:
        made = {"ttl": 64, "tos": 0, "vlans": (), "source": p.MAC_A, **change}
        table = Table(ignore)
        first = p.ethernet(p.ipv4(*ENDS4, p.TCP, p.tcp(1, 2, b"data")))
        assert table(first) == 0
        packet = p.ipv4(*ENDS4, p.TCP, p.tcp(1, 2, b"data"), ttl=made["ttl"], tos=made["tos"])  # type: ignore[arg-type]
        return table(p.ethernet(packet, vlans=made["vlans"], source=made["source"]))  # type: ignore[arg-type]

    for flags, change in (
        (IGNORE_TTL, {"ttl": 63}), (IGNORE_TOS, {"tos": 0xB8}), (IGNORE_TAGS, {"vlans": (5, 6)}), (IGNORE_MACS, {"source": p.MAC_B}),
    ):  # fmt: skip
        assert seen(0, **change) == 0
        assert seen(EVERYTHING & ~flags & ~IGNORE_CHECKSUM, **change) == 0
        assert seen(flags, **change) == 1
        assert seen(EVERYTHING, **change) == 1


def test_the_window_ends_by_number_and_by_time_in_either_direction_and_counts_from_the_first() -> None:
    frames = [p.udp_frame("10.0.0.1", n, "10.0.0.2", 2) for n in range(50)]
    table = Table(packets=10, ns=100)
    assert [table(f) for f in frames[:10]] == [0] * 10
    assert table(frames[0]) == 1
    assert table(frames[0]) == 0, "11 packets after the first, whatever was between"
    table = Table(packets=1000, ns=100)
    assert [table(frames[0], ts_ns) for ts_ns in (1000, 1100, 1100, 1101, 1001, 1000, 900)] == [0, 1, 1, 0, 1, 0, 1]


def test_a_block_done_again_gives_the_same() -> None:
    frames = [p.udp_frame("10.0.0.1", n % 7, "10.0.0.2", 2) for n in range(20)]
    table = Table()
    once = [table(f, position=n) for n, f in enumerate(frames)]
    assert once == [0] * 7 + [1] * 13
    number = int(table.duplicates.head["number"][0])
    assert [table(f, position=n) for n, f in enumerate(frames)] == once
    assert int(table.duplicates.head["number"][0]) == number
    assert [table(f, position=100 + n) for n, f in enumerate(frames)] == [1] * 20


def test_a_full_bucket_gives_up_its_oldest_and_says_so() -> None:
    table = Table(packets=1)
    assert len(table.duplicates.rows) == ROWS
    table.duplicates.head["window_packets"] = 1000
    frames = [p.udp_frame("10.0.0.1", n, "10.0.0.2", 2) for n in range(6)]
    assert [table(f) for f in frames[:4]] == [0] * 4
    assert table.duplicates.evicted == 0
    assert [table(f) for f in frames[4:]] == [0, 0]
    assert table.duplicates.evicted == 2
    assert [table(f) for f in frames[2:]] == [1] * 4
    assert table(frames[0]) == 0, "forgotten"


def test_each_table_has_a_key_of_its_own_and_a_stated_size() -> None:
    keys = {Duplicates(10, 1, 0).head["keys"].tobytes() for _ in range(5)}
    assert len(keys) == 5
    largest = Duplicates(MAX_WINDOW_PACKETS, 1, 0)
    assert len(largest.rows) == ROWS * MAX_WINDOW_PACKETS
    assert largest.memory.nbytes < 26_000_000
    for packets in (0, MAX_WINDOW_PACKETS + 1):
        with pytest.raises(ValueError, match="window_packets"):
            Duplicates(packets, 1, 0)


def in_block(table: Duplicates, frames: Sequence[bytes], position: int, marks: Sequence[int]) -> list[int]:
    data = np.frombuffer(b"".join(frames), np.uint8)
    rows, found, digests = np.zeros(len(frames), layout.PACKET), np.array(marks, np.int64), np.zeros(len(frames), DIGEST)
    rows["caplen"] = rows["wirelen"] = [len(f) for f in frames]
    rows["data_at"] = np.cumsum(rows["caplen"]) - rows["caplen"]
    rows["caplen"][-1] += 1  # damaged: beyond the data
    memory.forbid_all()
    for array in (data, rows, found, digests, table.memory):
        memory.allow(int(array.ctypes.data), array.nbytes)
    at = [int(array.ctypes.data) for array in (digests, rows, data, found)]
    find_duplicates(table.at, at[0], at[1], len(frames), at[2], data.nbytes, position, at[3])
    return found.tolist()


def test_a_block_is_looked_at_where_it_is_marked() -> None:
    table = Duplicates(100, SECOND_NS, 0)
    frames = [p.udp_frame("10.0.0.1", n % 3, "10.0.0.2", 2) for n in range(9)]
    assert in_block(table, frames, 0, [0, 1, 1, 0, 1, 0, 1, 1, 1]) == [0, 0, 0, 0, 1, 0, 0, 1, 0]
    assert in_block(table, frames, 9, [1] * 9) == [1] * 8 + [0]


def compare(frames: Sequence[bytes], ignore: int, packets: int, seed: int) -> int:
    chosen = random.Random(seed)
    table, reference, n_found = Table(ignore, packets=10_000, ns=1000), Reference(ignore, packets, 1000), 0
    table.duplicates.head["window_packets"] = packets  # in a table so large that nothing is given up
    for n, frame in enumerate(frames):
        ts_ns, wirelen = n // 4 + chosen.choice((0, 0, 0, 5, -5)), len(frame) + chosen.choice((0, 0, 1))
        got = table(frame, ts_ns, wirelen=wirelen, at_end=chosen.random() < 0.5)
        assert got == reference(frame, ts_ns, wirelen)
        n_found += got
    assert table.duplicates.evicted == 0
    return n_found


def test_hostile_frames_and_their_near_copies_agree_with_a_dictionary() -> None:
    chosen = random.Random(2)
    n = 60 if PLAIN else 600
    made = [f.data for f in traffic.some(n, 5) + tunnel_traffic.some(n, 6) + traffic.every_cut(7, n=1)]
    stream = []
    for i in range(3 * len(made)):
        frame = bytearray(chosen.choice(made[max(i // 3 - 40, 0) : i // 3 + 1]))
        fate = chosen.randrange(5)
        if fate == 0 and frame:
            frame[chosen.randrange(min(len(frame), 40))] ^= 1 << chosen.randrange(8)
        elif fate == 1 and len(frame) > 14:
            frame[12:12] = struct.pack("!HH", 0x8100, chosen.randrange(3))
        stream.append(bytes(frame))
    for ignore in (0, EVERYTHING, IGNORE_TAGS, IGNORE_TTL):
        assert compare(stream, ignore, 300, ignore) > len(stream) // 20


@corpus.needs_corpus
@pytest.mark.skipif(PLAIN, reason="captures are for compiled kernels")
def test_captures_played_twice_agree_with_a_dictionary() -> None:
    n_frames = n_found = 0
    for capture in corpus.sample(4):
        frames = [r.data for r in libpcap.read_ethernet(capture.path, 200)]
        doubled = [frame for frame in frames for _ in range(2)]
        n_frames += len(frames)
        n_found += compare(doubled, EVERYTHING, 500, 1)
    assert n_frames > 1000
    assert n_found > n_frames // 2


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_kernels_do_the_same_within_bounds() -> None:
    run_plain(__file__)
