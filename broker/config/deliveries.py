"""Which verdict bits there are. Pure; workers ask it too.

A packet's verdict says to whom it goes and in which shape: a bit for each tool and group as they are, and one more for each of them that a
map with a shape of its own delivers to. Counters are kept by the same slots, under these names:

| delivery | name |
|---|---|
| to a tool | ``ids`` |
| to a group | ``group sensors`` |
| to either, in the shape of a map | ``ids@pos-db``, ``group sensors@pos-db`` |
"""

from __future__ import annotations

from dataclasses import fields, replace

from broker.core.model import Config, Delivery, Map, Shape, Tool

GROUP = "group "
PLAIN = Shape()


def wanted(config: Config) -> list[Delivery]:
    """All that `config` needs, without slots."""
    found = [Delivery(0, name) for name in (*(t.name for t in config.tools), *(g.name for g in config.groups))]
    for m in config.maps:
        if m.shape != PLAIN:
            found += [Delivery(0, to, m.name) for to in dict.fromkeys(m.to)]
    return found


def slot_name(config: Config, delivery: Delivery) -> str:
    name = f"{GROUP}{delivery.to}" if any(g.name == delivery.to for g in config.groups) else delivery.to
    return f"{name}@{delivery.map}" if delivery.map else name


def tool_of(name: str) -> str:
    """The tool that a slot name counts for; empty: a group."""
    return "" if name.startswith(GROUP) else name.partition("@")[0]


def group_of(name: str) -> str:
    """The group that a slot name counts for; empty: a tool."""
    return name.removeprefix(GROUP).partition("@")[0] if name.startswith(GROUP) else ""


def deliveries(config: Config) -> tuple[Delivery, ...]:
    """With slots. A configuration that no slots were assigned to, made by hand, has its tools as they are and nothing else."""
    return config.deliveries or tuple(Delivery(tool.slot, tool.name) for tool in config.tools)


def bits(config: Config, m: Map | None = None) -> int:
    """Of the verdict of what a map passes; without one, of what the collector takes."""
    slots = {(d.to, d.map): d.slot for d in deliveries(config)}
    shaped = m.name if m is not None and m.shape != PLAIN else ""
    return sum(1 << slots[to, shaped] for to in set(config.collector if m is None else m.to))


def shapes(config: Config) -> list[tuple[Tool, Shape]]:
    """Every tool in every shape in which it is delivered to."""
    tools, groups = {t.name: t for t in config.tools}, {g.name: g.members for g in config.groups}
    of_map = {m.name: m.shape for m in config.maps}
    ways = [(tools[name], d.map) for d in deliveries(config) for name in groups.get(d.to, (d.to,))]
    return list(dict.fromkeys((tool, merged(of_map[m], tool.shape) if m else tool.shape) for tool, m in ways))


def copies(config: Config) -> int:
    """How many of them change packets in the middle, or look at them again once they are changed, and so need a copy."""
    return sum(
        bool(shape.mask or ((shape.strip or shape.push_vlan is not None) and (shape.slice_after or tool.super_frames == "segment")))
        for tool, shape in shapes(config)
    )


def merged(outer: Shape, inner: Shape) -> Shape:
    """The shape that a map asks for on top of that of the tool: what the map says goes, but what the tool masks or strips is gone too."""
    said = {f.name: getattr(outer, f.name) for f in fields(Shape) if getattr(outer, f.name) != getattr(PLAIN, f.name)}
    if "slice_after" in said or "slice_bytes" in said:
        said |= {"slice_after": outer.slice_after, "slice_bytes": outer.slice_bytes}
    made = replace(inner, **said)
    strip = tuple(dict.fromkeys((*inner.strip, *outer.strip)))
    mask = tuple(dict.fromkeys((*inner.mask, *outer.mask)))
    return replace(made, strip=strip, mask=mask)
