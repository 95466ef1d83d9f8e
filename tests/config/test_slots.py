"""Slots are the identity of a name in shared memory: they must never move, and never pass to another name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.config.slots import Slots, assign_slots, remember
from broker.core.errors import ConfigErrors
from broker.core.model import Config, Input, Map, Rule, Shape, Tool


def config(inputs: str = "a", tools: str = "t", maps: str = "m") -> Config:
    return Config(
        "n",
        tuple(Input(name, "pcap", files=("f",)) for name in inputs.split()),
        tuple(Tool(name, file=name) for name in tools.split()),
        tuple(Map(name, (Rule("pass", "tcp"),), ("t",)) for name in maps.split()),
    )


def slots(c: Config) -> dict[str, int]:
    return {v.name: v.slot for v in (*c.inputs, *c.tools, *c.maps)}


def test_the_first_slots_follow_the_order_of_the_configuration() -> None:
    assert slots(assign_slots(config("b a", "u t", "n m"))) == {"b": 0, "a": 1, "u": 0, "t": 1, "n": 0, "m": 1}


def test_a_name_keeps_its_slot_wherever_it_moves() -> None:
    first = assign_slots(config("a b", "t u", "m n"))
    again = assign_slots(config("b x a", "u t", "new n m"), first)
    assert slots(again) == {"a": 0, "b": 1, "x": 2, "t": 0, "u": 1, "m": 0, "n": 1, "new": 2}


def test_a_slot_that_was_freed_is_not_given_to_another_name() -> None:
    first = assign_slots(config(tools="t u v"))
    known = remember(first)
    second = assign_slots(config(tools="t"), first, known)
    known = remember(second, known)
    third = assign_slots(config(tools="t w"), second, known)
    assert slots(third)["w"] == 3
    assert slots(assign_slots(config(tools="t v"), third, remember(third, known)))["v"] == 2, "a name that comes back is itself"


def test_assigning_again_changes_nothing() -> None:
    first = assign_slots(config("a b", "t u", "m n"))
    assert assign_slots(first, first) == first
    assert assign_slots(first) == first


@pytest.mark.parametrize(("part", "limit"), [("inputs", 64), ("tools", 64), ("maps", 256)])
def test_slots_that_are_used_up_are_told(part: str, limit: int) -> None:
    all_of_them = " ".join(f"x{k}" for k in range(limit))
    full = assign_slots(config(**{part: all_of_them}))
    assert max(v.slot for v in getattr(full, part)) == limit - 1
    with pytest.raises(ConfigErrors) as caught:
        assign_slots(config(**{part: "x0 y z"}), full)
    assert str(caught.value) == (
        f"{part}: 2 new names, but {limit} of {limit} slots have been used since the pipeline was started; "
        "restart it to free the slots of removed names"
    )
    with pytest.raises(ConfigErrors, match=f"^{part}: {limit + 1} {part}, expected at most {limit}$"):
        assign_slots(config(**{part: all_of_them + " y"}))


def test_shapes_of_maps_are_told_where_they_use_slots_up() -> None:
    names = " ".join(f"x{k}" for k in range(40))
    made = config(tools=names)
    shaped = Map("m", (Rule("pass", ""),), tuple(names.split()), shape=Shape(slice_bytes=60))
    with pytest.raises(ConfigErrors, match=r"^tools: 80 tools, groups and both in the shapes of maps, expected at most 64$"):
        assign_slots(replace(made, maps=(shaped,)))


def test_what_is_remembered_is_every_name_since_the_start() -> None:
    first = assign_slots(config(tools="t u"))
    second = replace(assign_slots(config(tools="u"), first), inputs=())
    assert remember(second, remember(first)) == Slots({"a": 0}, {"t": 0, "u": 1}, {"m": 0})
