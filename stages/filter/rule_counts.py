"""Counting by rule: where a worker's counts lie, and what it does to them for each block. The protocol is in `broker/core/rule_counts.py`.

| kernel | does |
|---|---|
| begin_counts | readies the half that this block is counted in |
| count_rule | what the packets of one outcome add to the rule that decided a map |

Both are called once a block and once an outcome, not for each packet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.core.rule_counts import HALF, RULE_COUNT, Halves, half_bytes, open_rule_counts, rule_counts_path
from broker.core.stage import Context
from stages.filter.state import RESULT_BITS, RESULT_UNDETERMINED
from stages.jit import kernel
from stages.memory import add64, copy, load64, store64

COUNTING = np.dtype(
    [
        ("halves_at", "<i8"),
        ("half_bytes", "<i8"),
        ("n_rules", "<i8"),
        ("rows_at", "<i8"),  # RULE_COUNT[n_rules] of this block
        ("below", "<i8"),  # this block + 1
        ("touched_at", "<i8"),  # i8[n_rules]: rules that took part in this block, and then by how many the other half is behind
        ("n_touched", "<i8"),  # -1: not known
        ("pad", "<i8"),
    ]
)
assert COUNTING.fields is not None
assert RULE_COUNT.fields is not None
_HALVES_AT, _HALF_BYTES, _N_RULES = (COUNTING.fields[name][1] for name in ("halves_at", "half_bytes", "n_rules"))
_ROWS_AT, _BELOW = (COUNTING.fields[name][1] for name in ("rows_at", "below"))
_TOUCHED_AT, _N_TOUCHED = (COUNTING.fields[name][1] for name in ("touched_at", "n_touched"))
_PACKETS, _BYTES, _UNDETERMINED, _LAST = (RULE_COUNT.fields[name][1] for name in ("packets", "bytes", "undetermined_packets", "below"))
_HEAD_BYTES, _ROW_BYTES = HALF.itemsize, RULE_COUNT.itemsize


@kernel
def begin_counts(counting: int, seq: int) -> None:
    """`seq`: this block, which is the worker's cursor. A half that is ahead of it was left by a worker that died in this block."""
    older = load64(counting + _HALVES_AT)
    newer = older + load64(counting + _HALF_BYTES)
    if load64(newer) < load64(older):
        older, newer = newer, older
    valid, other = newer, older
    if load64(newer) > seq:
        valid, other = older, newer
    n_touched = load64(counting + _N_TOUCHED)
    if n_touched < 0 or load64(other) > seq:
        copy(other + _HEAD_BYTES, valid + _HEAD_BYTES, load64(counting + _N_RULES) * _ROW_BYTES)
    else:
        touched = load64(counting + _TOUCHED_AT)
        for i in range(n_touched):
            at = _HEAD_BYTES + load64(touched + 8 * i) * _ROW_BYTES
            copy(other + at, valid + at, _ROW_BYTES)
    store64(other, seq + 1)
    store64(counting + _BELOW, seq + 1)
    store64(counting + _ROWS_AT, other + _HEAD_BYTES)
    store64(counting + _N_TOUCHED, 0)


@kernel
def count_rule(counting: int, result: int, n: int, n_bytes: int) -> None:
    """`result`: of one map, any but RESULT_NONE."""
    rule, below = result >> RESULT_BITS, load64(counting + _BELOW)
    row = load64(counting + _ROWS_AT) + rule * _ROW_BYTES
    if load64(row + _LAST) != below:
        n_touched = load64(counting + _N_TOUCHED)
        store64(load64(counting + _TOUCHED_AT) + 8 * n_touched, rule)
        store64(counting + _N_TOUCHED, n_touched + 1)
        store64(row + _LAST, below)
    if result & ((1 << RESULT_BITS) - 1) == RESULT_UNDETERMINED:
        add64(row + _UNDETERMINED, n)
    else:
        add64(row + _PACKETS, n)
        add64(row + _BYTES, n_bytes)


class RuleCounting:
    """The memory behind COUNTING, and the worker's halves: in the file of the generation, or its own where there is none (no ring)."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._header = np.zeros(1, COUNTING)
        self.at = int(self._header.ctypes.data)

    def load(self, number: int, n_rules: int) -> None:
        """For another policy. PipelineError or ValueError when the file of the generation is damaged."""
        self.halves = self._find(number, n_rules)
        self._touched = np.zeros(n_rules + 1, np.int64)
        head = self._header
        head["halves_at"], head["half_bytes"], head["n_rules"] = self.halves.at, half_bytes(n_rules), n_rules
        head["touched_at"], head["n_touched"] = self._touched.ctypes.data, -1

    def _find(self, number: int, n_rules: int) -> Halves:
        context = self._context
        if not rule_counts_path(context.directory, number).exists():
            return Halves(np.zeros(2 * half_bytes(n_rules), np.uint8), n_rules)
        file = open_rule_counts(context.directory, number, writable=True)
        if (file.n_rules, file.n_lanes, file.n_filter) != (n_rules, context.lanes_total, context.n_workers):
            raise ValueError(f"counts of generation {number}: made for another policy or other workers")
        return file.of_worker(context.lane.number, context.worker)

    @property
    def regions(self) -> list[tuple[int, int]]:
        """(address, bytes) of what the kernels touch."""
        parts: tuple[NDArray[np.generic], ...] = (self._header, self._touched, self.halves.memory)
        return [(int(part.ctypes.data), part.nbytes) for part in parts]
