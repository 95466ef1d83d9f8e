"""Which packets of too many are kept: some flows, or one packet in so many.

| kernel | keeps |
|---|---|
| sample_flow | one flow in n, whole: by a keyed hash of KEY.flow (stages/wire/flow.py), alike in both directions and on every agent |
| sample_packet | exactly one of each n packets that follow each other, at a place that the key draws anew each time |

Agents with the same key keep the same flows, and one that samples 1 in 10 keeps all that another keeps at 1 in 1000: the hash is a number
in [0, 1), and a flow is kept where it is below 1/n. KEY.flow leaves ports out in fragments, so a flow that is fragmented now and then
counts as two. Who does not know the key cannot say what will be kept. The rate to export is 1/n.
"""

from __future__ import annotations

import hashlib

from stages.jit import kernel
from stages.memory import mix, shift_right

MAX_ONE_IN = 1 << 30

COMMON_KEY = 0x5C5A_94D0_E0F1_6F2B  # of all agents that were given none
_MIX_A, _MIX_B = 0x2D358DCCAA6C78A5, 0x0BB67AE8584CAA73  # odd, and far from each other


def sampling_key(text: str) -> int:
    """The 63-bit key that agents with the same text share."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@kernel
def _keyed_hash(value: int, key: int) -> int:
    """32 bits."""
    return shift_right(mix(mix(value ^ key, _MIX_A) ^ key, _MIX_B), 32)


@kernel
def sample_flow(flow: int, key: int, n: int) -> int:
    """1: kept. `flow`: 32 bits, of KEY or VERDICT; `key`: `sampling_key`; `n`: 1..MAX_ONE_IN."""
    return 1 if _keyed_hash(flow, key) * n < 1 << 32 else 0


@kernel
def sample_packet(number: int, key: int, n: int) -> int:
    """1: kept. `number`: of the packet, from 0, without gaps; the same number always gives the same. `n`: 1..MAX_ONE_IN."""
    return 1 if number % n == _keyed_hash(number // n, key) * n >> 32 else 0
