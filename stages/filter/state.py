"""What a filter worker keeps to itself: the memo, and the outcomes that packets have had so far under the policy in use.

    STATE header | KEY rows and policy keys of one chunk | outcomes | index of outcomes | touched | memo

The memo says which outcome a policy key has. It is exact, because equal keys give equal answers, needs no ageing and is dropped with the
policy only. Outcomes are interned: counting a packet is two additions, and what it means for maps and tools is counted once a block.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from broker.core.layout import LINE, MAPS
from stages.wire.fragment_table import FragmentTable
from stages.wire.key import KEY

CHUNK = 64  # packets that are parsed, classed and judged together: their rows stay in the first-level cache
MEMO_BUCKETS = 1 << 15  # of two entries, 2 MiB; untouched pages cost nothing
BITS_PER_MAP = 2
RESULT_WORDS = MAPS * BITS_PER_MAP // 64

STATE = np.dtype(
    [
        ("rows_at", "<i8"),
        ("keys_at", "<i8"),
        ("outcomes_at", "<i8"),
        ("n_outcomes", "<i8"),
        ("index_at", "<i8"),  # i8[index_mask + 1]: outcome + 1, or 0
        ("index_mask", "<i8"),
        ("touched_at", "<i8"),  # i8[]: outcomes of this block
        ("n_touched", "<i8"),
        ("memo_at", "<i8"),
        ("memo_mask", "<i8"),
        ("seed", "<i8"),  # so that nobody can choose traffic that collides
        ("use_memo", "<i8"),
        ("n_runs", "<i8"),  # packets that the program was run for
        ("table_at", "<i8"),  # of fragmented datagrams: no policy changes it
        ("pad", "<i8", (2,)),
    ]
)

OUTCOME = np.dtype(
    [
        ("results", "<i8", (RESULT_WORDS,)),  # of the map in row m of the image: RESULT_*, two bits from 2 m
        ("verdict", "<i8"),
        ("cause", "<i8"),
        ("undetermined", "<i8"),  # 1: at least one map could not tell
        ("n_wanted", "<i8"),  # bits of verdict
        ("n_packets", "<i8"),  # of this block
        ("n_bytes", "<i8"),
        ("pad", "<i8", (2,)),
    ]
)
assert OUTCOME.itemsize == 2 * LINE

RESULT_NONE, RESULT_PASS, RESULT_DROP, RESULT_UNDETERMINED = range(4)

MEMO = np.dtype([("key", "<i8", (3,)), ("outcome", "<i8")])
"""`outcome` + 1, or 0: empty."""

POLICY_KEY_BYTES = 32
POLICY_KEY_BUCKET = 24  # behind the three words of the key: where in the memo it belongs


class State:
    """The memory behind STATE. `max_packets`: of a block; outcomes never run out within one."""

    def __init__(self, max_packets: int, *, memo: bool = True, memo_buckets: int = MEMO_BUCKETS, fragment_seed: int = 0) -> None:
        self.max_packets = max_packets
        self.fragments = FragmentTable(fragment_seed)
        self.max_outcomes = 2 * max_packets + 1024
        index_size = 1 << (4 * self.max_outcomes - 1).bit_length()
        sizes = (
            ("rows_at", CHUNK * KEY.itemsize),
            ("keys_at", CHUNK * POLICY_KEY_BYTES),
            ("outcomes_at", self.max_outcomes * OUTCOME.itemsize),
            ("index_at", index_size * 8),
            ("touched_at", max_packets * 8),
            ("memo_at", memo_buckets * 2 * MEMO.itemsize),
        )
        total = STATE.itemsize + sum(size + LINE for _, size in sizes) + LINE
        raw = np.zeros(total, np.uint8)
        self.memory: NDArray[np.uint8] = raw[-int(raw.ctypes.data) % LINE :]
        self.at = int(self.memory.ctypes.data)
        self.header = self.memory[: STATE.itemsize].view(STATE)
        offset = STATE.itemsize
        self._parts: dict[str, NDArray[np.uint8]] = {}
        for name, size in sizes:
            offset = (offset + LINE - 1) // LINE * LINE
            self.header[name] = self.at + offset
            self._parts[name] = self.memory[offset : offset + size]
            offset += size
        self.header["index_mask"] = index_size - 1
        self.header["memo_mask"] = memo_buckets - 1
        self.header["seed"] = int.from_bytes(os.urandom(8), "little", signed=True)
        self.header["use_memo"] = memo
        self.header["table_at"] = self.fragments.at

    def forget(self) -> None:
        """Everything that is true of one policy only."""
        for name in ("memo_at", "index_at", "outcomes_at"):
            self._parts[name].fill(0)
        self.header["n_outcomes"] = 0
        self.header["n_touched"] = 0

    def make_room(self) -> None:
        """For all the outcomes that one block can have."""
        if int(self.header["n_outcomes"][0]) + self.max_packets > self.max_outcomes:
            self.forget()
