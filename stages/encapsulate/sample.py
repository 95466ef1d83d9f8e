"""Some of the packets only: of whole flows, and no more than so many a second.

| kernel | does |
|---|---|
| take_flow | whether a flow is one of the one in N that are taken: the same on every broker, for both directions |
| take_tokens | whether a frame is within a limit of packets and bits; takes its part if it is |

A BUCKET fills with time, as packets tell it, up to its burst. Levels are kept in units in which nothing is rounded: a packet is worth
1 000 000 000, and the bucket gets `packets_per_s` of them a nanosecond; a bit likewise. Time that goes backwards fills nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.jit import kernel
from stages.memory import load64, mix, shift_right, store64

_NS = 1_000_000_000
MAX_BURST = 1 << 61  # of a level

BUCKET = np.dtype([(name, "<i8") for name in ("packets_per_s", "bits_per_s", "most_packets", "most_bits", "packets", "bits", "ts_ns")])
assert BUCKET.fields is not None
_PACKETS_PER_S, _BITS_PER_S, _MOST_PACKETS, _MOST_BITS, _PACKETS, _BITS, _TS = (
    BUCKET.fields[f][1] for f in ("packets_per_s", "bits_per_s", "most_packets", "most_bits", "packets", "bits", "ts_ns")
)

_SAMPLE_KEY = 0x5C5A_94D0_E0F1_6F2B  # one for all brokers, and another than those by which flows are shared


def new_bucket(packets_per_s: int, bits_per_s: int, burst_ns: int) -> NDArray[np.void]:
    """BUCKET[1], full; a limit of 0 is none. A burst is one packet of the greatest length at least."""
    bucket = np.zeros(1, BUCKET)
    for name, rate, least in (("packets", packets_per_s, 1), ("bits", bits_per_s, 8 * 65_536)):
        most = min(max(rate * burst_ns, least * _NS), MAX_BURST) if rate else 0
        bucket[f"{name}_per_s"], bucket[f"most_{name}"], bucket[name] = rate, most, most
    return bucket


@kernel
def take_flow(flow: int, one_in: int) -> int:
    """1 or 0. `flow`: 32 bits, symmetric (VERDICT.flow)."""
    spread = shift_right(mix(flow ^ _SAMPLE_KEY, _SAMPLE_KEY), 32)
    return 1 if shift_right(spread * one_in, 32) == 0 else 0


@kernel
def _filled(level: int, rate: int, most: int, passed_ns: int) -> int:
    """The level after so long; what would overflow is full."""
    if passed_ns <= 0:
        return level
    return most if passed_ns >= (most - level) // rate + 1 else min(most, level + rate * passed_ns)


@kernel
def take_tokens(bucket: int, ts_ns: int, n_bytes: int) -> int:
    """1: the frame may go, and has been taken off; 0: not, and nothing was."""
    last = load64(bucket + _TS)
    passed = ts_ns - last if last else 0
    if passed > 0 or last == 0:
        store64(bucket + _TS, ts_ns)
    packets_per_s, bits_per_s = load64(bucket + _PACKETS_PER_S), load64(bucket + _BITS_PER_S)
    packets, bits = load64(bucket + _PACKETS), load64(bucket + _BITS)
    if packets_per_s:
        packets = _filled(packets, packets_per_s, load64(bucket + _MOST_PACKETS), passed)
    if bits_per_s:
        bits = _filled(bits, bits_per_s, load64(bucket + _MOST_BITS), passed)
    needed = 8 * n_bytes * _NS
    goes = (packets_per_s == 0 or packets >= _NS) and (bits_per_s == 0 or bits >= needed)
    store64(bucket + _PACKETS, packets - _NS if goes and packets_per_s else packets)
    store64(bucket + _BITS, bits - needed if goes and bits_per_s else bits)
    return 1 if goes else 0
