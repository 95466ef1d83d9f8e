"""The configuration in force: which number, which slots its names have, and how the next one takes its place.

Capture stamps each block with the number it finds in the pipeline's header, and every stage handles a block by the tables of its stamp; so
storing the number is the whole of a switch, and each packet is judged by exactly one generation. Nothing has to be rung: capture looks
before each block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from broker.config.diff import diff
from broker.config.lanes import SEGMENT_FRAMES, copies_in
from broker.config.slots import Slots, assign_slots, remember
from broker.core import messages
from broker.core.errors import PipelineError, TapmeshError
from broker.core.flow_ring import name_exports
from broker.core.generations import forget_generation, remove_generations_before, write_generation
from broker.core.model import Config
from broker.core.rule_counts import create_rule_counts
from broker.core.shm import Pipeline
from broker.supervisor.descriptors import check_descriptors
from broker.supervisor.prepare import refuse_overwriting
from broker.supervisor.rule_counts import RuleReader, rules_of
from broker.supervisor.snapshot import Names

Compile = Callable[[Config], bytes]


def write_slots(directory: Path, slots: Slots) -> None:
    """Keep the names of all slots that were ever given, for the next supervisor and for who reads the counters."""
    scratch = directory / ".slots"
    try:
        scratch.touch(0o600)
        scratch.write_bytes(msgpack.packb({"inputs": dict(slots.inputs), "tools": dict(slots.tools), "maps": dict(slots.maps)}))
        scratch.rename(directory / "slots")
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def read_slots(directory: Path) -> Slots:
    """Empty when none were written yet. PipelineError: damaged."""
    path = directory / "slots"
    try:
        parts = messages.unpack_map(messages.read_file(path), inputs=dict, tools=dict, maps=dict)
    except FileNotFoundError:
        return Slots()
    except messages.MessageError as error:
        raise messages.damaged(path, error) from None
    if len(parts) != 3 or any(type(name) is not str or type(slot) is not int for part in parts.values() for name, slot in part.items()):
        raise messages.damaged(path, "expected names and slots")
    return Slots(**parts)


def names_of(slots: Slots) -> Names:
    return Names(*({slot: name for name, slot in part.items()} for part in (slots.inputs, slots.maps, slots.tools)))


@dataclass(frozen=True, slots=True)
class Ready:
    """A configuration that has its slots, the image compiled from it, and what changes with it, in words."""

    config: Config
    image: bytes
    changes: str


class InForce:
    """The present generation of a pipeline, and the step to the next."""

    def __init__(self, pipeline: Pipeline, compile_policy: Compile, log: Any) -> None:
        self.pipeline, self.compile_policy, self.log = pipeline, compile_policy, log
        self.config: Config | None = None
        self.slots = Slots()
        self.rules = RuleReader(pipeline)
        self._removable = 1  # those below it are gone
        self._seen_removable = 1  # those below it were of no use when last looked

    @property
    def number(self) -> int:
        return int(self.pipeline.header[0]["generation"])

    @property
    def names(self) -> Names:
        return names_of(self.slots)

    def adopt(self, config: Config) -> None:
        """It is in force already; an earlier supervisor put it there."""
        self.config = config
        self.slots = remember(config, read_slots(self.pipeline.directory))

    def prepare(self, config: Config) -> Ready:
        """Compile. ConfigErrors (an expression) or TapmeshError (a file would be overwritten). Changes nothing, and takes seconds with
        thousands of rules: another thread may do it, if nothing is put in force meanwhile."""
        changes = str(diff(self.config, config)) if self.config else ""
        refuse_overwriting(config)
        check_descriptors(len(config.tools), sum(len(lane.geometry.workers) for lane in self.pipeline.lanes))
        config = assign_slots(config, self.config, self.slots)
        return Ready(config, self.compile_policy(config), changes)

    def put(self, ready: Ready) -> None:
        """Write and switch. TapmeshError (no room), and then nothing has changed."""
        config, image = ready.config, ready.image
        number = self.number + 1
        directory = self.pipeline.directory
        slots = remember(config, self.slots)
        lanes = self.pipeline.lanes
        try:
            create_rule_counts(directory, number, len(rules_of(config)), len(lanes), lanes[0].geometry.n_filter)
            write_generation(directory, number, config, image)
            write_slots(directory, slots)
            if config.flows is not None:
                name_exports(directory, [e.name for e in config.flows.exports] + (["store"] if config.flows.store else []))
        except (OSError, PipelineError) as error:
            forget_generation(directory, number)
            if isinstance(error, PipelineError):
                raise
            raise TapmeshError(f"{directory}: generation {number} cannot be written: {error.strerror}") from None
        self.config, self.slots = config, slots
        self.pipeline.header[0]["generation"] = number
        self.log.info("generation_put", generation=number, policy_bytes=len(image))

    def refusal(self, new: Config) -> list[str]:
        """In words, why `new` cannot take the place of the present one without a restart; empty when it can."""
        assert self.config is not None
        g = self.pipeline.lanes[0].geometry
        changes = diff(self.config, new, (g.max_frames - SEGMENT_FRAMES) // g.max_packets, copies_in(g))
        return [str(change) for change in changes.of("restart")]

    def forget_old(self) -> None:
        """Remove what no worker holds and no block is stamped with any more. Called now and then; what is removable must be so twice."""
        if self._removable == self.number:
            return
        oldest = self.number
        for lane in self.pipeline.lanes:
            oldest = min(oldest, *(int(n) for n in lane.workers["generation"]))
            tail, head = int(lane.workers["cursor"].min()), int(lane.workers["cursor"][0])
            if not 0 <= head - tail <= lane.geometry.n_blocks:
                return
            for seq in range(tail, head):
                oldest = min(oldest, int(lane.batch(seq % lane.geometry.n_blocks).block[0]["generation"]))
        unused = min(oldest, self._seen_removable)
        try:
            self.rules.carry(unused)
        except OSError as error:
            self.log.warning("rule_counts_not_carried", generation=unused, reason=error.strerror)
            return
        remove_generations_before(self.pipeline.directory, unused)
        self._removable, self._seen_removable = unused, oldest
