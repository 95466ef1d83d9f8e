"""What two token buckets, of packets and of bits, have room for.

| kernel | does |
|---|---|
| admit_packet | takes room in both for a packet, or in neither |

**A bucket** is a leak: what was admitted and has not yet leaked out. It leaks `rate` units a second, and a packet is admitted where its own
units still fit below `burst`. All is counted in units * 10^9, so one nanosecond leaks exactly `rate`: nothing is rounded, nothing drifts.
Time that stands still or goes back leaks nothing; where it goes back further than a full bucket takes to leak, as when another capture is
played, the bucket goes on from there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.jit import kernel
from stages.memory import load64, store64

MAX_RATE = 1 << 40  # a terabit, in bits/s
MAX_BURST = 1 << 32  # 4 Gbit: with the 10^9 it fits 63 bits

_SECOND_NS = 1_000_000_000
_LONGEST_BITS = 8 * (65_536 + 128)  # of IP, in a frame with tags, in the longest outer header

BUCKET = np.dtype(
    [
        ("rate", "<i8"),  # units/s; 0: no limit
        ("burst", "<i8"),  # units
        ("level", "<i8"),  # units * 10^9
        ("ts_ns", "<i8"),  # when it was that
    ]
)
assert BUCKET.fields is not None
_RATE, _BURST, _LEVEL, _TS = (BUCKET.fields[name][1] for name in BUCKET.fields)
_BUCKET_BYTES = BUCKET.itemsize


def limiter_for(packets_per_s: int, bits_per_s: int, burst_ns: int) -> NDArray[np.void]:
    """One whose bursts are what the rates give in `burst_ns`: at least one frame with the longest IP packet, at most MAX_BURST."""
    packets, bits = (max(rate * burst_ns // _SECOND_NS, least) for rate, least in ((packets_per_s, 1), (bits_per_s, _LONGEST_BITS)))
    return make_limiter(packets_per_s, min(packets, MAX_BURST), bits_per_s, min(bits, MAX_BURST))


def make_limiter(packets_per_s: int = 0, burst_packets: int = 1, bits_per_s: int = 0, burst_bits: int = 1) -> NDArray[np.void]:
    """BUCKET[2], of packets and of bits, empty; a rate of 0 is no limit. A packet larger than `burst_bits` is never admitted."""
    for name, value, lowest, highest in (
        ("packets_per_s", packets_per_s, 0, MAX_RATE), ("burst_packets", burst_packets, 1, MAX_BURST),
        ("bits_per_s", bits_per_s, 0, MAX_RATE), ("burst_bits", burst_bits, 1, MAX_BURST),
    ):  # fmt: skip
        if not lowest <= value <= highest:
            raise ValueError(f"{name}: {value} is not {lowest}..{highest}")
    limiter = np.zeros(2, BUCKET)
    limiter["rate"], limiter["burst"] = (packets_per_s, bits_per_s), (burst_packets, burst_bits)
    return limiter


@kernel
def _leak(bucket: int, now_ns: int) -> int:
    """The level now, which is stored."""
    level, rate, passed_ns = load64(bucket + _LEVEL), load64(bucket + _RATE), now_ns - load64(bucket + _TS)
    full_ns = load64(bucket + _BURST) * _SECOND_NS // rate + 1
    if -full_ns <= passed_ns <= 0:
        return level
    if passed_ns > full_ns:
        level = 0
    elif passed_ns > 0:
        level = max(level - passed_ns * rate, 0)
    store64(bucket + _LEVEL, level)
    store64(bucket + _TS, now_ns)
    return level


@kernel
def _has_room(bucket: int, now_ns: int, units: int) -> bool:
    if load64(bucket + _RATE) == 0:
        return True
    return _leak(bucket, now_ns) <= (load64(bucket + _BURST) - units) * _SECOND_NS


@kernel
def _pour(bucket: int, units: int) -> None:
    if load64(bucket + _RATE):
        store64(bucket + _LEVEL, load64(bucket + _LEVEL) + units * _SECOND_NS)


@kernel
def admit_packet(limiter: int, now_ns: int, n_bits: int) -> int:
    """1: both buckets of `limiter`, BUCKET[2], had room for it, and have it now; 0: neither has changed."""
    if not _has_room(limiter, now_ns, 1) or not _has_room(limiter + _BUCKET_BYTES, now_ns, n_bits):
        return 0
    _pour(limiter, 1)
    _pour(limiter + _BUCKET_BYTES, n_bits)
    return 1
