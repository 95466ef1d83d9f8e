"""What a filter worker keeps to itself: the memo, and the outcomes that packets have had so far under the policy in use.

    STATE header | KEY rows and policy keys of one chunk | scratch | outcomes | index of outcomes | touched | nodes | memo

The memo says which outcome a policy key has. It is exact, because equal keys give equal answers, needs no ageing and is dropped with the
policy only. Where a predicate had to be asked, the memo leads to a node instead: the predicate, and for each answer the outcome or a
further node. Which one is asked next depends on the key and the answers so far only, so that this is exact as well, and a packet is asked
nothing that its key decides. Outcomes are interned: counting a packet is two additions, and what it means for rules, maps and tools is
counted once a block.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from broker.config.policy.image import FIELDS, IMAGE, MAX_STACK
from broker.core.layout import LINE, MAPS, PAGE, words
from stages.wire.fragment_table import FragmentTable
from stages.wire.key import KEY

CHUNK = 64  # packets that are parsed, classed and judged together: their rows stay in the first-level cache
MEMO_BUCKETS = 1 << 17  # of two entries, 8 MiB
SMALL_MEMO_BUCKETS = 1 << 15  # 2 MiB stay in the second-level cache, and are enough for few rules
MANY_RULES = 500
MAX_OUTCOMES = 1 << 16
OUTCOME_MEMORY = 16 << 20
MAX_NODES = 1 << 15
MAX_ASKED = 64  # predicates of one packet; beyond, it is not remembered

STATE = np.dtype(
    [
        ("rows_at", "<i8"),
        ("keys_at", "<i8"),
        ("outcomes_at", "<i8"),
        ("n_outcomes", "<i8"),
        ("outcome_bytes", "<i8"),  # of one, by the number of maps
        ("index_at", "<i8"),  # i8[index_mask + 1]: outcome + 1, or 0
        ("index_mask", "<i8"),
        ("touched_at", "<i8"),  # i8[]: outcomes of this block
        ("memo_at", "<i8"),
        ("memo_mask", "<i8"),
        ("nodes_at", "<i8"),
        ("n_nodes", "<i8"),
        ("max_nodes", "<i8"),
        ("seed", "<i8"),  # so that nobody can choose traffic that collides
        ("use_memo", "<i8"),
        ("use_index", "<i8"),
        ("n_runs", "<i8"),  # packets that rules were run for
        ("stack_at", "<i8"),  # u1[MAX_STACK]: of answers
        ("asked_at", "<i8"),  # i8[MAX_ASKED]: predicates of this packet, predicate << 3 | libpcap << 2 | answer
        ("n_asked", "<i8"),
        ("bits_at", "<i8"),  # i8[]: addresses of the rows of terms
        ("table_at", "<i8"),  # of fragmented datagrams: no policy changes it
        ("counting_at", "<i8"),  # see rule_counts.py
        ("counters_at", "<i8"),  # i8[N_COUNTERS], added to
        ("image_at", "<i8"),  # the policy in use
    ]
)

_N_OUTCOMES, _N_NODES = (words(STATE)[name] for name in ("n_outcomes", "n_nodes"))

OUTCOME = np.dtype(
    [
        ("verdict", "<i8"),
        ("cause", "<i8"),
        ("undetermined", "<i8"),  # 1: at least one map could not tell
        ("n_wanted", "<i8"),  # bits of verdict
        ("n_packets", "<i8"),  # of this block
        ("n_bytes", "<i8"),
        ("pad", "<i8", (2,)),
    ]
)
"""Behind it u4[n_maps], rounded up to 8 bytes: of the map in row m of the image, rule << RESULT_BITS | RESULT_*."""
assert OUTCOME.itemsize == LINE

RESULT_BITS = 2
RESULT_NONE, RESULT_PASS, RESULT_DROP, RESULT_UNDETERMINED = range(4)

MEMO = np.dtype([("key", "<i8", (3,)), ("link", "<i8")])
NODE = np.dtype([("asked", "<i8"), ("links", "<i8", (3,))])
"""`asked`: predicate << 1 | libpcap. A link is an outcome + 1; or, negative, a node + 1; or 0: not known."""

POLICY_KEY_BYTES = 32
POLICY_KEY_BUCKET = 24  # behind the three words of the key: where in the memo it belongs


class State:
    """The memory behind STATE. `max_packets`: of a block; outcomes never run out within one."""

    def __init__(
        self, max_packets: int, *, memo: bool = True, index: bool = True, memo_buckets: int = MEMO_BUCKETS, fragment_seed: int = 0
    ) -> None:
        self.max_packets, self._memo_buckets = max_packets, memo_buckets
        self.fragments = FragmentTable(fragment_seed)
        most = OUTCOME.itemsize + 4 * MAPS
        self._outcome_memory = max(OUTCOME_MEMORY, 2 * (max_packets + 1) * most)
        index_size = 1 << (4 * max(MAX_OUTCOMES, 2 * max_packets) - 1).bit_length()
        sizes = (
            ("rows_at", CHUNK * KEY.itemsize),
            ("keys_at", CHUNK * POLICY_KEY_BYTES),
            ("stack_at", MAX_STACK),
            ("asked_at", MAX_ASKED * 8),
            ("bits_at", len(FIELDS) * 8),
            ("outcomes_at", self._outcome_memory),
            ("index_at", index_size * 8),
            ("touched_at", max_packets * 8),
            ("nodes_at", MAX_NODES * NODE.itemsize),
            ("memo_at", memo_buckets * 2 * MEMO.itemsize),
        )
        total = PAGE + sum((size + PAGE - 1) // PAGE * PAGE for _, size in sizes)
        self._mapping = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory: NDArray[np.uint8] = np.frombuffer(self._mapping, np.uint8)
        self.at = int(self.memory.ctypes.data)
        self.header = self.memory[: STATE.itemsize].view(STATE)
        self._words = self.header.view(np.int64).data
        offset = PAGE
        self._parts: dict[str, tuple[int, int]] = {}
        for name, size in sizes:
            self.header[name] = self.at + offset
            self._parts[name] = offset, (size + PAGE - 1) // PAGE * PAGE
            offset += self._parts[name][1]
        self.header["index_mask"] = index_size - 1
        self.header["max_nodes"] = MAX_NODES
        self.header["seed"] = int.from_bytes(os.urandom(8), "little", signed=True)
        self.header["table_at"] = self.fragments.at
        self.header["use_memo"], self.header["use_index"] = memo, index

    def load(self, image: NDArray[np.uint8]) -> None:
        """`image` has to live as long as it is used. Make room for the outcomes of the policy, and forget what the one before it said."""
        head = image[: IMAGE.itemsize].view(IMAGE)[0]
        self.header["image_at"] = image.ctypes.data
        self.header["outcome_bytes"] = OUTCOME.itemsize + (int(head["n_maps"]) + 1) // 2 * 8
        self.max_outcomes = min(max(MAX_OUTCOMES, 2 * self.max_packets), self._outcome_memory // int(self.header["outcome_bytes"][0]))
        few = int(head["n_rules"]) < MANY_RULES
        self.header["memo_mask"] = (min(self._memo_buckets, SMALL_MEMO_BUCKETS) if few else self._memo_buckets) - 1
        for part in ("memo_at", "index_at", "outcomes_at", "nodes_at"):  # back to the system: they are zero when next touched
            self._mapping.madvise(mmap.MADV_DONTNEED, *self._parts[part])
        self.header["n_outcomes"] = 0
        self.forget()

    def forget(self) -> None:
        """Everything that is true of one policy only.

        Pages that were touched are kept: to touch one for the first time takes up to 2 us, more than all else that is done for a packet.
        The memo is touched here, because packets of new kinds are all over it: who sends such could else make the filter ten times as slow.
        """
        for name, used in (("memo_at", self._memo_bytes()), ("index_at", self._parts["index_at"][1] if self._words[_N_OUTCOMES] else 0)):
            at = self._parts[name][0]
            self.memory[at : at + used] = 0
        self.header["n_outcomes"] = 0
        self.header["n_nodes"] = 0

    def _memo_bytes(self) -> int:
        """Of the buckets that the policy uses, in whole pages."""
        return (2 * MEMO.itemsize * (int(self.header["memo_mask"][0]) + 1) + PAGE - 1) // PAGE * PAGE

    def make_room(self) -> None:
        """For all the outcomes that one block can have."""
        if self._words[_N_OUTCOMES] + self.max_packets >= self.max_outcomes or self._words[_N_NODES] > MAX_NODES // 2:
            self.forget()
