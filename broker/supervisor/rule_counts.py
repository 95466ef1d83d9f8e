"""What the rules in force have counted, over reloads: a rule that a new configuration has as well goes on counting.

The same rule is the one with the same action and expression in the map of the same name; of several such, the n-th is the n-th. Counts lie
in a file for each generation, because blocks of the one before are still judged while the next is in force. Before the files of
generations that are over are removed, what they counted goes into one small file, `rules-carried`: the counts of the last of them, with
what its rules had brought along. What a rule counted that a generation does not have is forgotten (its map has it still).

| who | moves | when | why |
|---|---|---|---|
| supervisor | `rules-carried`, as a whole: counts, and the next generation | no worker holds those in it | nothing in it is added again |
| | removes their files | then | if it dies before, the next one does |
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
from numpy.typing import NDArray

from broker.core import messages
from broker.core.errors import PipelineError
from broker.core.generations import read_generation
from broker.core.model import Config
from broker.core.rule_counts import COUNTS, RuleCounts, open_rule_counts
from broker.core.shm import Pipeline

TRIES = 3
Rule = tuple[str, str, str]
"""Map, action, expression."""
Key = tuple[Rule, int]
"""The n-th of such rules."""


@dataclass(frozen=True, slots=True)
class RuleCount:
    map: str
    action: str
    expression: str
    packets: int  # passed or dropped by it
    bytes: int
    undetermined_packets: int  # it could not be told


@dataclass(frozen=True, slots=True)
class _Opened:
    keys: list[Key]
    counts: RuleCounts


class RuleReader:
    """Reads the counts of one pipeline from outside, and carries them over. Any number of readers, one that carries."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._opened: dict[int, _Opened] = {}
        self._kept = 1  # generations before this one are known to be in `rules-carried`

    def take(self) -> tuple[RuleCount, ...]:
        """Of each rule in force, in the order of the configuration. PipelineError when files are missing or damaged."""
        for left in reversed(range(TRIES)):
            below, carried = read_carried(self._pipeline.directory)
            try:
                found = self._add(carried, below, int(self._pipeline.header[0]["generation"]) + 1)
                break
            except PipelineError:  # carried over and removed meanwhile
                if not left:
                    raise
        return tuple(RuleCount(*rule, *counts.tolist()) for (rule, _), counts in found.items())

    def carry(self, number: int) -> None:
        """Keep what the generations before `number` have counted: their files may go. OSError when there is no room."""
        if number <= self._kept:
            return
        below, carried = read_carried(self._pipeline.directory)
        if below < number:
            _write_carried(self._pipeline.directory, number, self._add(carried, below, number))
            self._opened = {n: opened for n, opened in self._opened.items() if n >= number}
        self._kept = number

    def _add(self, carried: dict[Key, NDArray[np.int64]], first: int, end: int) -> dict[Key, NDArray[np.int64]]:
        for number in range(first, end):
            opened = self._open(number)
            nothing = np.zeros(len(COUNTS), np.int64)
            counted = self._read(opened.counts)
            carried = {key: carried.get(key, nothing) + counts for key, counts in zip(opened.keys, counted, strict=True)}
        return carried

    def _open(self, number: int) -> _Opened:
        opened = self._opened.get(number)  # once: the thread that carries may forget it at any time
        if opened is None:
            directory, lanes = self._pipeline.directory, self._pipeline.lanes
            opened = _Opened(_keys(rules_of(read_generation(directory, number).config)), open_rule_counts(directory, number))
            found = opened.counts.n_rules, opened.counts.n_lanes, opened.counts.n_filter
            if found != (len(opened.keys), len(lanes), lanes[0].geometry.n_filter):
                raise PipelineError(f"{directory}: the counts of generation {number} are of other rules or workers")
            self._opened[number] = opened
        return opened

    def _read(self, counts: RuleCounts) -> NDArray[np.int64]:
        """int64[n_rules, COUNTS], all workers together."""
        found = np.zeros((counts.n_rules, len(COUNTS)), np.int64)
        for number, lane in enumerate(self._pipeline.lanes):
            for worker in range(lane.geometry.n_filter):
                row = lane.geometry.row("filter", worker)
                found += counts.of_worker(number, worker).read(lambda lane=lane, row=row: int(lane.workers["cursor"][row]))  # type: ignore[misc]
        return found


def rules_of(config: Config) -> list[Rule]:
    """In the order in which the policy numbers them."""
    return [(m.name, rule.action, rule.expression) for m in config.maps for rule in m.rules]


def _keys(rules: Iterable[Rule]) -> list[Key]:
    seen: dict[Rule, int] = {}
    found = []
    for rule in rules:
        seen[rule] = seen.get(rule, -1) + 1
        found.append((rule, seen[rule]))
    return found


def read_carried(directory: Path) -> tuple[int, dict[Key, NDArray[np.int64]]]:
    """(the first generation that is not in them, counts); (1, {}) as long as nothing was carried over. PipelineError: damaged."""
    path = directory / "rules-carried"
    try:
        below, rows = messages.unpack(messages.read_file(path))
        keys = _keys((str(name), str(action), str(expression)) for name, action, expression, *_ in rows)
        counts = [np.array([int(n) for n in row[3:]], np.int64) for row in rows]
        if any(len(row) != len(COUNTS) for row in counts):
            raise messages.MessageError(f"expected {len(COUNTS)} counts of each rule")
        return int(below), dict(zip(keys, counts, strict=True))
    except FileNotFoundError:
        return 1, {}
    except (ValueError, TypeError, OverflowError, messages.MessageError) as error:
        raise messages.damaged(path, error) from None


def _write_carried(directory: Path, below: int, counts: dict[Key, NDArray[np.int64]]) -> None:
    content = msgpack.packb([below, [[*rule, *row.tolist()] for (rule, _), row in counts.items()]])
    scratch = directory / ".rules-carried"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        os.posix_fallocate(fd, 0, len(content))
        file.write(content)
    scratch.rename(directory / "rules-carried")
