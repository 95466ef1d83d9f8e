"""Hostile frames in bulk, a matrix of them at a time: frames of all kinds, cut anywhere, with bits flipped, bytes and lengths that lie,
moved and spliced; and datagrams in pieces that belong together. The same seed makes the same frames.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests import libpcap
from tests import packets as p
from tests.corpus import sample
from tests.stages.filter import rare, traffic, tunnel_traffic

WIDTH = 400  # bytes of the longest frame: more than any chain of IPv6 extension headers that is walked
BLOCK = 4000  # frames at a time
BLOCK_NS = 70_000_000_000  # from one block to the next: what it had in pieces is forgotten by then
_SOURCES = 4000
_DATAGRAMS = 300
_PIECES = 5  # of a datagram at most: more of them need not be remembered
_RUNS = 80  # datagrams of a block

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

# where headers keep what decides: ethertype, length, fragment, protocol, ports, flags, next headers and their lengths
_DECIDING = np.array((12, 13, 14, 16, 17, 20, 21, 22, 23, 34, 36, 37, 42, 43, 46, 47, 54, 55, 56, 57, 62, 63, 66, 67))
_MOVED_BY = np.array((0, 0, 0, 0, 4, 4, 8, 12, 20, 36, 50))  # tags, labels, an outer header
_VALUES = np.array(
    (0, 1, 2, 4, 5, 6, 8, 0x0F, 17, 0x20, 41, 43, 44, 0x45, 0x46, 0x40, 0x4F, 47, 50, 51, 53, 58, 59, 60, 0x60, 0x65, 80, 0x7F, 0x80,
     0x81, 0x86, 0x88, 0xA8, 0xAA, 0xDD, 132, 135, 0xE0, 0xFE, 0xFF)
)  # fmt: skip
_WORDS = np.array(
    (0, 1, 7, 8, 20, 28, 40, 0x0064, 0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8, 0x9100, 0x8847, 0x8863, 0x8864, 0x6558, 0x88BE, 0x22EB, 0x0021,
     0x0057, 0x0281, 0x2000, 0x2001, 0x1FFF, 0x0001, 0x0009, 0x4000, 0x3FFF, 0x8000, 0x7FFF, 0xFFFF, 0xFFFE, 0x05DC, 0x05DD, 0xAAAA, 80, 53,
     6081, 4789, 2152, 6635, 4754)
)  # fmt: skip


@dataclass(frozen=True)
class Frames:
    """Frame i is data[i, :lengths[i]]; what follows is rubbish. `wirelens` go up to 32 bits."""

    data: Bytes
    lengths: Numbers
    wirelens: Numbers
    inputs: Numbers
    times_ns: Numbers

    def __len__(self) -> int:
        return len(self.lengths)

    def first(self, n: int) -> Frames:
        return Frames(self.data[:n], self.lengths[:n], self.wirelens[:n], self.inputs[:n], self.times_ns[:n])

    def bytes_of(self, i: int) -> bytes:
        return self.data[i, : int(self.lengths[i])].tobytes()


@dataclass(frozen=True)
class _Pool:
    """`names`: where a fragment has the low half of its identification."""

    data: Bytes
    lengths: Numbers
    names: Numbers


def _pool(frames: list[bytes], names: list[int] | None = None) -> _Pool:
    data = np.zeros((len(frames), WIDTH), np.uint8)
    for row, one in zip(data, frames, strict=True):
        row[: min(len(one), WIDTH)] = np.frombuffer(one[:WIDTH], np.uint8)
    return _Pool(data, np.array([min(len(one), WIDTH) for one in frames]), np.array(names or [0] * len(frames)))


@functools.cache
def _sources() -> _Pool:
    """Whole frames of all kinds; captured ones where the corpus is."""
    chosen = random.Random(1)
    found = [traffic.whole(chosen) for _ in range(_SOURCES // 4)] + [f.data for f in tunnel_traffic.some(_SOURCES // 2, seed=2)]
    found += [_long_chain(chosen) for _ in range(_SOURCES // 40)] + [_rare(chosen) for _ in range(_SOURCES // 8)]
    captured = [record.data for capture in sample(3) for record in libpcap.read_ethernet(capture.path, 40)]
    return _pool([one for one in found + chosen.sample(captured, min(len(captured), _SOURCES // 4)) if one])


def _rare(chosen: random.Random) -> bytes:
    def plain() -> rare.Payload:
        ports = chosen.choice(traffic.PORTS), chosen.choice(traffic.PORTS)
        segment = chosen.choice(((p.TCP, p.tcp(*ports)), (p.UDP, p.udp(*ports))))
        if chosen.random() < 0.5:
            return p.ETH_IP, p.ipv4("10.0.0.1", "192.168.1.1", *segment)
        return p.ETH_IP6, p.ipv6("fe80::1", "2001:db8::1", *segment)

    kind, payload = rare.payload(chosen, plain, lambda: traffic.whole(chosen))
    return p.ethernet(payload, type=kind)


def _long_chain(chosen: random.Random) -> bytes:
    """Extension headers about as many and as long as are walked at most."""
    protocol, payload = p.TCP, p.tcp(80, 22)
    for _ in range(chosen.randrange(1, 11)):
        number = chosen.choice((p.HOPOPTS, p.DSTOPTS, p.ROUTING, p.AH, p.FRAGMENT, 135))
        if number == p.AH:
            payload = p.authentication(protocol, payload)
        elif number == p.FRAGMENT:
            payload = p.fragment_header(protocol, payload, more=chosen.random() < 0.3)
        elif number == p.ROUTING:
            payload = p.routing(protocol, payload)
        else:
            payload = p.hop_by_hop(protocol, payload, bytes(6 + 8 * chosen.choice((0, 0, 1, 12, 30))))
        protocol = number
    return p.ethernet(p.ipv6("fe80::1", "2001:db8::1", protocol, payload), type=p.ETH_IP6)


@functools.cache
def _datagrams() -> tuple[_Pool, NDArray[np.int64]]:
    """Pieces, those of a datagram one behind the other, the fragment header of some behind another one; and where each datagram begins."""
    chosen = random.Random(3)
    frames: list[bytes] = []
    names: list[int] = []
    starts = [0]
    for _ in range(_DATAGRAMS):
        size = chosen.choice((8, 16, 24, 48))
        ports = chosen.choice(traffic.PORTS), chosen.choice(traffic.PORTS)
        protocol = chosen.choice((p.TCP, p.TCP, p.UDP, p.ICMP))
        whole = p.icmp()
        if protocol != p.ICMP:
            whole = p.tcp(*ports, bytes(60), flags=chosen.choice((2, 16, 18))) if protocol == p.TCP else p.udp(*ports, bytes(70))
        pieces = list(range(0, len(whole), size))[: chosen.randrange(2, _PIECES + 1)]
        vlans = (10,) if chosen.random() < 0.2 else ()
        for at in chosen.sample(pieces, len(pieces)) if chosen.random() < 0.3 else pieces:
            part, more = whole[at : at + size], at + size < len(whole)
            if chosen.random() < 0.6:
                packet = p.ipv4("10.0.0.1", "10.0.0.2", protocol, part, offset=at, more_fragments=more)
                frames.append(p.ethernet(packet, vlans=vlans))
                names.append(14 + 4 * len(vlans) + 4)
            else:
                deep, number, part = chosen.random() < 0.2, p.FRAGMENT, p.fragment_header(protocol, part, offset=at, more=more)
                if deep:
                    number, part = p.DSTOPTS, p.destination_options(p.FRAGMENT, part)
                frames.append(p.ethernet(p.ipv6("fe80::1", "2001:db8::1", number, part), type=p.ETH_IP6, vlans=vlans))
                names.append(14 + 4 * len(vlans) + 47 + 8 * deep)
        starts.append(len(frames))
    return _pool(frames, names), np.array(starts)


def _positions(chosen: np.random.Generator, lengths: Numbers) -> Numbers:
    """Most of them in headers."""
    n = len(lengths)
    deciding = chosen.choice(_DECIDING, n) + chosen.choice(_MOVED_BY, n)
    anywhere = (chosen.random(n) * lengths).astype(np.int64)
    early = chosen.integers(0, 80, n)
    which = chosen.random(n)
    return np.minimum(np.where(which < 0.6, deciding, np.where(which < 0.8, early, anywhere)), WIDTH - 2)


def _some(chosen: np.random.Generator, n: int, share: float) -> Numbers:
    return np.nonzero(chosen.random(n) < share)[0]


def _lie(chosen: np.random.Generator, data: Bytes, lengths: Numbers) -> None:
    """Bits, bytes and words."""
    n = len(lengths)
    for share in (0.25, 0.1, 0.05):
        rows = _some(chosen, n, share)
        data[rows, _positions(chosen, lengths[rows])] ^= (1 << chosen.integers(0, 8, len(rows))).astype(np.uint8)
        rows = _some(chosen, n, share)
        data[rows, _positions(chosen, lengths[rows])] = chosen.choice(_VALUES, len(rows))
        rows = _some(chosen, n, share)
        at, word = _positions(chosen, lengths[rows]), chosen.choice(_WORDS, len(rows))
        data[rows, at], data[rows, at + 1] = word >> 8, word & 255


def _move(chosen: np.random.Generator, data: Bytes, lengths: Numbers) -> None:
    """From somewhere on, bytes left out or put in (a repetition of those before)."""
    rows = _some(chosen, len(lengths), 0.12)
    at, by = _positions(chosen, lengths[rows]), chosen.choice((-8, -4, -2, -1, 1, 2, 4, 4, 8, 20, 40), len(rows))
    columns = np.arange(WIDTH)
    columns = np.clip(np.where(columns < at[:, None], columns, columns - by[:, None]), 0, WIDTH - 1)
    data[rows] = np.take_along_axis(data[rows], columns, axis=1)
    lengths[rows] = np.clip(lengths[rows] + by, 0, WIDTH)


def _splice(chosen: np.random.Generator, data: Bytes, lengths: Numbers) -> None:
    """The head of one, the tail of another, at like or unlike places."""
    rows, tails = _some(chosen, len(lengths), 0.12), _some(chosen, len(lengths), 0.12)
    rows, tails = rows[: len(tails)], tails[: len(rows)]
    at = _positions(chosen, lengths[rows])
    skipped = np.where(chosen.random(len(rows)) < 0.5, 0, chosen.choice((-12, -4, 4, 12, 14, 20, 34, 36, 40), len(rows)))
    columns = np.arange(WIDTH)
    taken = np.take_along_axis(data[tails], np.clip(columns + skipped[:, None], 0, WIDTH - 1), axis=1)
    data[rows] = np.where(columns < at[:, None], data[rows], taken)
    lengths[rows] = np.clip(np.maximum(at, lengths[tails] - skipped), 0, WIDTH)


def _cut(chosen: np.random.Generator, lengths: Numbers) -> Numbers:
    """Shortens some; returns the bytes on the wire, which do not always say so."""
    n = len(lengths)
    wirelens = lengths.copy()
    rows = _some(chosen, n, 0.35)
    early = np.minimum(chosen.integers(0, 90, len(rows)), lengths[rows])
    lengths[rows] = np.where(chosen.random(len(rows)) < 0.6, early, (chosen.random(len(rows)) * (lengths[rows] + 1)).astype(np.int64))
    runts = _some(chosen, n, 0.3)
    wirelens[runts] = lengths[runts]
    strange = _some(chosen, n, 0.02)
    wirelens[strange] = chosen.choice((0, 1, 59, 60, 64, 99, 100, 1500, 1518, 65535, 1 << 31, (1 << 32) - 1), len(strange))
    return wirelens


def _put_datagrams(chosen: np.random.Generator, data: Bytes, lengths: Numbers, names: range) -> None:
    """All pieces of some, near each other; `names`: their identifications."""
    pieces, starts = _datagrams()
    for name, datagram in zip(names, chosen.integers(0, _DATAGRAMS, len(names)), strict=True):
        first, last = starts[datagram], starts[datagram + 1]
        rows = name * (BLOCK // _RUNS) + np.sort(chosen.choice(BLOCK // _RUNS, last - first, replace=False))
        data[rows], lengths[rows] = pieces.data[first:last], pieces.lengths[first:last]
        data[rows, pieces.names[first:last]] = name


def block(seed: int, number: int) -> Frames:
    chosen = np.random.default_rng((seed, number))
    pool = _sources()
    rows = chosen.integers(0, len(pool.lengths), BLOCK)
    data, lengths = pool.data[rows], pool.lengths[rows]
    _put_datagrams(chosen, data, lengths, range(_RUNS // 2))
    _splice(chosen, data, lengths)
    _move(chosen, data, lengths)
    _lie(chosen, data, lengths)
    wirelens = _cut(chosen, lengths)
    _put_datagrams(chosen, data, lengths, range(_RUNS // 2, _RUNS))  # whole, except that their bytes on the wire may be those of others
    inputs = np.repeat(chosen.choice((0, 0, 0, 1, 63, 64, 65535), _RUNS), BLOCK // _RUNS)  # one for all pieces of a datagram
    return Frames(data, lengths, wirelens, inputs, number * BLOCK_NS + np.arange(BLOCK) * 1_000_000)


def blocks(seed: int, n_frames: int) -> Iterator[Frames]:
    assert n_frames % BLOCK == 0
    for number in range(n_frames // BLOCK):
        yield block(seed, number)
