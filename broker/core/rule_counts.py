"""Packets and bytes of every rule of one generation, in shared memory: what lies where, making it, reading it while workers count.

    rules-N:  RULES header | two halves for each filter worker of each lane
    a half:   HALF head | RULE_COUNT[n_rules], in the order of the policy: the rules of all maps one after the other

A worker counts each block in the half that is not valid, and the store that moves its cursor makes it the valid one. Valid is the half
with the greater `below`, if the worker's cursor has come that far; else the other.

| who | moves | when | why |
|---|---|---|---|
| filter worker | `below` of the other half = its block + 1 | before it counts | not valid before the cursor is beyond the block |
| | the rows that the valid half is ahead by | then | both halves tell of all blocks before |
| | what the packets of the block add | then | |
| | its cursor | after all of it | commits verdicts, counters and rules by one store |
| filter worker, started again | the whole valid half -> the other | before its first block | what was not published leaves nothing |
| anybody else | anything in it | *never* | a slice has one owner |

So the counts are exact wherever a worker dies, and no more is copied per block than the rules that took part in it and in the one before.
A generation that is over needs nothing: its halves say for themselves how far they reach.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.core.errors import PipelineError
from broker.core.layout import LINE
from broker.core.shm import map_file

MAGIC = 0x3143_4C55_524D_4154  # "TAMRULC1" little-endian
TRIES = 100

RULES = np.dtype([("magic", "<i8"), ("n_rules", "<i8"), ("n_lanes", "<i8"), ("n_filter", "<i8"), ("pad", "<i8", (4,))])
assert RULES.itemsize == LINE

HALF = np.dtype([("below", "<i8"), ("pad", "<i8", (7,))])
"""`below`: of the worker's blocks, all before this one are counted."""
assert HALF.itemsize == LINE

RULE_COUNT = np.dtype(
    [
        ("packets", "<i8"),  # that the rule passed or dropped
        ("bytes", "<i8"),  # of these, on the wire
        ("undetermined_packets", "<i8"),  # that the rule could not be told for, and so decided in the way the map says
        ("below", "<i8"),  # the last block that it took part in, + 1: a worker's own note
    ]
)
COUNTS = ("packets", "bytes", "undetermined_packets")


def half_bytes(n_rules: int) -> int:
    return HALF.itemsize + (n_rules * RULE_COUNT.itemsize + LINE - 1) // LINE * LINE


def file_bytes(n_rules: int, n_lanes: int, n_filter: int) -> int:
    return RULES.itemsize + n_lanes * n_filter * 2 * half_bytes(n_rules)


class Halves:
    """One worker's counts.

    | name | dtype[shape] |
    |---|---|
    | below | int64[2] |
    | rows | RULE_COUNT[2, n_rules] |
    """

    def __init__(self, memory: NDArray[np.uint8], n_rules: int) -> None:
        """`memory`: uint8[2 * half_bytes(n_rules)]."""
        self.memory = memory
        self.at = int(memory.ctypes.data)
        parts = memory.reshape(2, half_bytes(n_rules))
        self.below = parts[:, :8].view(np.int64)[:, 0]
        self.rows = parts[:, HALF.itemsize : HALF.itemsize + n_rules * RULE_COUNT.itemsize].view(RULE_COUNT)

    def valid(self, cursor: int) -> int:
        """The half that a worker's cursor makes valid."""
        first, second = (int(below) for below in self.below)
        newer = 1 if second >= first else 0
        return newer if max(first, second) <= cursor else 1 - newer

    def read(self, cursor: Callable[[], int]) -> NDArray[np.int64]:
        """int64[n_rules, COUNTS], all of them committed with the cursor.

        A half is rewritten only after the cursor has moved once more: if it stands where it stood, the copy is whole. Where blocks are
        shorter than the copying, what is found in the end is between two blocks for some rules: never too little, never taken back.
        """
        for _ in range(TRIES):
            before = cursor()
            copied = self.rows[self.valid(before)].copy()
            if cursor() == before:
                break
        return np.stack([copied[name] for name in COUNTS], axis=1)


class RuleCounts:
    """A mapped file."""

    def __init__(self, path: Path, memory: NDArray[np.uint8]) -> None:
        head = memory[: RULES.itemsize].view(RULES)[0] if len(memory) >= RULES.itemsize else np.zeros((), RULES)
        self._memory = memory
        self.n_rules, self.n_lanes, self.n_filter = (int(head[name]) for name in ("n_rules", "n_lanes", "n_filter"))
        if int(head["magic"]) != MAGIC or min(self.n_rules, self.n_lanes, self.n_filter) < 0:
            raise PipelineError(f"{path}: no counts of rules")
        if len(memory) != file_bytes(self.n_rules, self.n_lanes, self.n_filter):
            raise PipelineError(f"{path}: {len(memory)} bytes, expected {file_bytes(self.n_rules, self.n_lanes, self.n_filter)}")

    def of_worker(self, lane: int, worker: int) -> Halves:
        size = 2 * half_bytes(self.n_rules)
        at = RULES.itemsize + (lane * self.n_filter + worker) * size
        return Halves(self._memory[at : at + size], self.n_rules)


def rule_counts_path(directory: Path, number: int) -> Path:
    return directory / f"rules-{number}"


def create_rule_counts(directory: Path, number: int, n_rules: int, n_lanes: int, n_filter: int) -> None:
    """All zero. PipelineError in words when there is no room. What a supervisor that died has left under that number goes: no worker
    has ever been told of it."""
    path = rule_counts_path(directory, number)
    path.unlink(missing_ok=True)
    memory = map_file(path, size=file_bytes(n_rules, n_lanes, n_filter), create=True)
    head = memory[: RULES.itemsize].view(RULES)
    head["n_rules"], head["n_lanes"], head["n_filter"] = n_rules, n_lanes, n_filter
    head["magic"] = MAGIC


def open_rule_counts(directory: Path, number: int, *, writable: bool = False) -> RuleCounts:
    """PipelineError in words when the file is missing or not what it should be."""
    path = rule_counts_path(directory, number)
    return RuleCounts(path, map_file(path, writable=writable))
