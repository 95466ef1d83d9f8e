"""Slots by name: the verdict bit of a delivery (`deliveries`), the number of an input, the row of a map in the counters. Pure.

A name keeps its slot as long as the pipeline lives, over every reload, and a slot that was ever given to a name is not given to another:
blocks in the ring still carry the old verdict bits, and the counters are told by slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from broker.config.deliveries import deliveries, slot_name, wanted
from broker.core.errors import ConfigErrors
from broker.core.layout import INPUTS, MAPS, TOOLS
from broker.core.model import Config


@dataclass(frozen=True, slots=True)
class Slots:
    """Name to slot, of every name since the pipeline was started."""

    inputs: Mapping[str, int] = field(default_factory=dict)
    tools: Mapping[str, int] = field(default_factory=dict)  # and groups, and both in the shapes of maps
    maps: Mapping[str, int] = field(default_factory=dict)


NONE_YET = Slots()


def remember(config: Config, before: Slots = NONE_YET) -> Slots:
    """`before`, and the slots of `config`."""
    return Slots(
        {**before.inputs, **{i.name: i.slot for i in config.inputs}},
        {**before.tools, **{slot_name(config, d): d.slot for d in deliveries(config)}},
        {**before.maps, **{m.name: m.slot for m in config.maps}},
    )


def assign_slots(config: Config, previous: Config | None = None, remembered: Slots = NONE_YET) -> Config:
    """`config` with slots: those that `previous` and `remembered` gave to its names, new ones above them in the order of the
    configuration. ConfigErrors when they are used up. `remember` the result before the next call."""
    known = remember(previous, remembered) if previous else remembered
    errors: list[tuple[None, str, str]] = []

    def given(part: str, names: Iterable[str], known: Mapping[str, int], limit: int) -> dict[str, int]:
        new = [name for name in names if name not in known]
        first = max(known.values(), default=-1) + 1
        if first + len(new) > limit:
            # A tool takes one more for each map with a shape of its own.
            called = f"{part}, groups and both in the shapes of maps" if any("@" in name for name in new) else part
            errors.append((None, part, _exhausted(called, len(new), first, limit)))
        return {**known, **{name: first + n for n, name in enumerate(new)}}

    inputs = given("inputs", (i.name for i in config.inputs), known.inputs, INPUTS)
    needed = [(d, slot_name(config, d)) for d in wanted(config)]
    tools = given("tools", (name for _, name in needed), known.tools, TOOLS)
    maps = given("maps", (m.name for m in config.maps), known.maps, MAPS)
    if errors:
        raise ConfigErrors(errors)
    return replace(
        config,
        inputs=tuple(replace(i, slot=inputs[i.name]) for i in config.inputs),
        tools=tuple(replace(t, slot=tools[t.name]) for t in config.tools),
        maps=tuple(replace(m, slot=maps[m.name]) for m in config.maps),
        deliveries=tuple(replace(d, slot=tools[name]) for d, name in needed),
    )


def _exhausted(part: str, n_new: int, n_used: int, limit: int) -> str:
    if not n_used:
        return f"{n_new} {part}, expected at most {limit}"
    return (
        f"{n_new} new names, but {n_used} of {limit} slots have been used since the pipeline was started; "
        "restart it to free the slots of removed names"
    )
