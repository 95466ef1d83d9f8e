"""One policy: what the filter stage says of each packet by it, and which rule of each map said so."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.config.deliveries import deliveries
from broker.config.policy import image
from broker.config.policy.image import IMAGE
from broker.core import layout
from broker.core.batch import BATCH, Batch
from broker.core.generations import read_generation
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS
from broker.core.model import Input, Lane
from broker.core.stage import Context
from stages.filter.kernels import judge_block
from stages.filter.stage import Filter
from stages.filter.state import OUTCOME, RESULT_BITS, State
from stages.wire.fragment_table import FragmentTable
from stages.wire.key import KEY

ANSWERS = ("none", "pass", "drop", "undetermined")
"""RESULT_* in words."""

PACKETS = 1024
GEOMETRY = Geometry(max_packets=PACKETS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`tools`: and groups. `decisions`: of each map, (answer in ANSWERS, rule from 0 or -1)."""

    tools: tuple[str, ...]
    cause: str
    decisions: tuple[tuple[str, int], ...]


class Alone:
    """What a stage without a pipeline finds around it: everything that it would share is its own."""

    def __init__(self, directory: Path, lane: Lane, geometry: Geometry = GEOMETRY) -> None:
        self.counters: NDArray[np.int64] = np.zeros(N_COUNTERS, np.int64)
        self._shared = np.zeros(layout.TOOLS + 1, np.int64)
        self._tickets = np.zeros(2 * geometry.n_blocks, layout.TICKET)
        at, shared_at = int(self.counters.ctypes.data), int(self._shared.ctypes.data)
        self.context = Context(
            directory, lane, 0, 1, geometry, 1, self.counters, at, self.counters, at,
            tool_sequence_at=shared_at, tickets_at=int(self._tickets.ctypes.data), progress_at=shared_at + 8 * layout.TOOLS,
        )  # fmt: skip


class Judging:
    """Generation `number` of `directory` in the filter stage. PipelineError, ValueError: it cannot be read."""

    def __init__(self, directory: Path, number: int) -> None:
        self.generation = read_generation(directory, number, rules=False)
        config = self.generation.config
        self._alone = Alone(directory, Lane(0, (Input("judge", "pcap"),)))  # of files: the same answers every time
        self._filter = Filter()
        self._filter.open(self._alone.context)
        self._filter.load(self.generation)
        self.state: State = self._filter.state
        head = self.generation.image[: IMAGE.itemsize].view(IMAGE)[0]
        self.maps = self._part(head, "maps", image.MAP)
        self.rules = self._part(head, "rules", image.RULE)
        self.code: list[int] = self._part(head, "code", np.dtype(np.uint32)).tolist()
        self.tests_at = self.generation.image_at + int(head["tests_at"])
        self._first_rule = [int(row["first_rule"]) for row in self.maps]
        self._tools = sorted((d.slot, d.to) for d in deliveries(config))
        self._block = np.zeros(1, layout.BLOCK)
        self._block["n_packets"] = 1
        self._block_at, self._seq = int(self._block.ctypes.data), 0
        self._one = np.zeros(1, BATCH)
        self._one_at = int(self._one.ctypes.data)
        self._known: dict[int, Outcome] = {}
        self._rows_at = int(self.state.header["rows_at"][0])
        self._touched = ctypes.c_int64.from_address(int(self.state.header["touched_at"][0]))

    def _part(self, head: np.void, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        at, n = int(head[f"{name}_at"]), int(head[f"n_{name}"])
        return self.generation.image[at : at + n * dtype.itemsize].view(dtype)

    def forget_fragments(self) -> None:
        """What comes has nothing to do with what came."""
        self.state.fragments = FragmentTable(0)
        self.state.header["table_at"] = self.state.fragments.at

    def step(self, batch: Batch) -> None:
        """Only what later packets depend on; and the verdicts."""
        batch.seq = self._next_seq()
        self._filter.step(batch)

    def _next_seq(self) -> int:
        """What is judged is a block of its own; the counts of rules want their numbers to grow."""
        self._seq += 1
        return self._seq

    def begin_block(self) -> bool:
        """Before packets are judged one by one, at most PACKETS of them. True: numbers of outcomes mean others now."""
        self.state.make_room()
        forgotten = int(self.state.header["n_outcomes"][0]) == 0
        if forgotten:
            self._known.clear()
        return forgotten

    def judge(self, batch: Batch, i: int) -> int:
        """The number of the outcome of packet `i`: a block of one packet touches one outcome."""
        one = self._one
        one["seq"], one["block_at"], one["max_packets"] = self._next_seq(), self._block_at, 1
        one["packets_at"] = batch.packets_at + i * layout.PACKET.itemsize
        one["verdicts_at"] = batch.verdicts_at + i * layout.VERDICT.itemsize
        one["data_at"], one["data_bytes"] = batch.data_at, batch.data_bytes
        judge_block(self._one_at, self.state.at)
        return self._touched.value

    def row_bytes(self) -> bytes:
        """KEY of the packet that was judged last."""
        return ctypes.string_at(self._rows_at, KEY.itemsize)

    def outcome(self, number: int) -> Outcome:
        """What it means."""
        if number not in self._known:
            self._known[number] = self._read(number)
        return self._known[number]

    def _read(self, number: int) -> Outcome:
        header = self.state.header[0]
        at = int(header["outcomes_at"]) - self.state.at + number * int(header["outcome_bytes"])
        row = self.state.memory[at : at + OUTCOME.itemsize].view(OUTCOME)[0]
        results = self.state.memory[at + OUTCOME.itemsize :][: 4 * len(self.maps)].view(np.uint32)
        verdict = int(row["verdict"])
        tools = tuple(dict.fromkeys(name for slot, name in self._tools if verdict >> slot & 1))
        decisions = tuple(self._decision(int(result), first) for result, first in zip(results, self._first_rule, strict=True))
        return Outcome(tools, layout.CAUSE_NAMES[int(row["cause"])], decisions)

    @staticmethod
    def _decision(result: int, first_rule: int) -> tuple[str, int]:
        answer = ANSWERS[result & ((1 << RESULT_BITS) - 1)]
        return answer, -1 if answer == "none" else (result >> RESULT_BITS) - first_rule
