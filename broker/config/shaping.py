"""The keys that say what becomes of packets on their way to a tool, and of tools that belong together. Made into frozen values here too."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from broker.config import scalars
from broker.config.parts import NAME, TRUTH, Names, OneOrMany, Parsed, Part, choice, defaults, whole
from broker.config.scalars import Wrong, shown, suggest
from broker.core import model
from broker.core.layout import MAX_FRAME_BYTES

_SHAPE, _DEDUP, _SAMPLE, _LIMIT, _GROUP, _HEALTH, _TOOL = map(
    defaults, (model.Shape, model.Dedup, model.Sample, model.Limit, model.Group, model.Health, model.Tool)
)
IGNORABLE = ("ttl", "tos", "checksum", "vlan", "mac")
WHOLES = ("payload", "cards")
STARTS = ("frame", "l3", "l4", "payload")
_NUMBER = partial(scalars.integer, low=0, high=MAX_FRAME_BYTES)


def mask(value: Any) -> Any:
    """`payload`, `cards`, or {from: START, at: N, bytes: N}; as a pair (what, at, n_bytes)."""
    if isinstance(value, str):
        return scalars.choice(value, WHOLES), 0, 0
    if not isinstance(value, dict):
        raise Wrong(f"found {shown(value)}, expected payload, cards or {{from: l4, at: 0, bytes: 16}}")
    for key in value:
        if key not in ("from", "at", "bytes"):
            raise Wrong(f"unknown key '{key}'{suggest(key, ('from', 'at', 'bytes'), 'expected one of')}", (key,), key=True)
    if "from" not in value:
        raise Wrong(f"key 'from' is missing, expected {scalars.alternatives(STARTS)}")
    found: list[Any] = []
    for key, parse in (("from", partial(scalars.choice, words=STARTS)), ("at", _NUMBER), ("bytes", _NUMBER)):
        try:
            found.append(parse(value[key]) if key in value else 0)
        except Wrong as wrong:
            raise Wrong(str(wrong), (key,)) from None
    return tuple(found)


_MASK = Parsed(
    mask,
    {
        "anyOf": [
            {"enum": list(WHOLES)},
            {
                "type": "object",
                "properties": {
                    "from": {"enum": list(STARTS)},
                    "at": {"type": "integer", "minimum": 0},
                    "bytes": {"type": "integer", "minimum": 0, "description": "0: to the end"},
                },
                "required": ["from"],
                "additionalProperties": False,
            },
        ]
    },
)


class DedupPart(Part):
    """Of packets that are alike, the first one goes."""

    packets: Annotated[int, whole(1024, 1 << 17)] = Field(_DEDUP["packets"], description="how many are remembered; 192 bytes each")
    within_ms: Annotated[int, whole(1, 60_000)] = Field(_DEDUP["within_ms"], description="and for how long")
    ignore: Annotated[list[Annotated[str, choice(*IGNORABLE)]], OneOrMany()] = Field(
        list(_DEDUP["ignore"]), description="what may differ between packets that are alike"
    )


class SamplePart(Part):
    """One of so many packets, or all packets of one of so many flows, both directions, the same ones on every broker."""

    one_in: Annotated[int, whole(1, 1_000_000)] = Field(description="one in how many")
    by: Annotated[Literal["packet", "flow"], choice("packet", "flow")] = Field(_SAMPLE["by"], description="packet or flow")


class LimitPart(Part):
    """The most that a tool gets; what exceeds it is dropped and counted."""

    packets_per_s: Annotated[int, whole(0, 1_000_000_000)] = Field(_LIMIT["packets_per_s"], description="0: any number")
    bits_per_s: Annotated[int, whole(0, 1_000_000_000_000)] = Field(
        _LIMIT["bits_per_s"], description="of whole frames, outer headers included; 0: any number"
    )
    burst_ms: Annotated[int, whole(1, 60_000)] = Field(_LIMIT["burst_ms"], description="for so long at once, where nothing came before")


class ShapePart(Part):
    """What becomes of packets on their way."""

    sample: SamplePart | None = Field(None, description="only some of them")
    dedup: DedupPart | None = Field(None, description="no packet twice")
    strip: Annotated[list[Annotated[str, choice(*model.STRIPPABLE)]], OneOrMany()] = Field([], description="headers to take off")
    push_vlan: Annotated[int | None, whole(1, 4094)] = Field(None, description="VLAN tag to put on")
    mask: Annotated[list[Annotated[tuple[str, int, int], _MASK]], OneOrMany(mappings=True)] = Field(
        [], description="bytes to overwrite: payload, cards, or {from: l4, at: 0, bytes: 16}"
    )
    mask_checksums: Annotated[bool, TRUTH] = Field(_SHAPE["mask_checksums"], description="make checksums right again behind a mask")
    slice_after: Annotated[Literal["", "l2", "l3", "l4"], choice("l2", "l3", "l4")] = Field(
        "", description="keep the packet up to the end of this header, and slice_bytes more"
    )
    slice_bytes: Annotated[int, whole(0, MAX_FRAME_BYTES)] = Field(_SHAPE["slice_bytes"], description="bytes of the packet to keep")
    limit: LimitPart | None = Field(None, description="the most per second")
    priority: Annotated[int, whole(0, model.MAX_PRIORITY)] = Field(
        _SHAPE["priority"],
        description="when the broker cannot keep up, flows of lower priority are dropped first; 7: none of them",
    )


class HealthPart(Part):
    """How a tool is asked whether it is there."""

    kind: Annotated[Literal["icmp", "tcp", "neighbour"], choice("icmp", "tcp", "neighbour")] = Field(
        description="icmp (echo), tcp (connect) or neighbour (ARP, neighbour discovery)"
    )
    port: Annotated[int, whole(1, 65_535)] = Field(_HEALTH["port"], description="of tcp")
    every_ms: Annotated[int, whole(50, 60_000)] = Field(_HEALTH["every_ms"], description="how often")
    fail_after: Annotated[int, whole(1, 100)] = Field(_HEALTH["fail_after"], description="failures in a row until it is taken for dead")


class GroupPart(Part):
    """Tools that share, repeat or stand in for each other."""

    members: Names = Field(min_length=1, description="tools")
    mode: Annotated[Literal["share", "replicate", "failover"], choice("share", "replicate", "failover")] = Field(
        _GROUP["mode"], description="each flow to one of them, every packet to all, or all to the first that is there"
    )
    balance: Annotated[Literal["five-tuple", "three-tuple", "two-tuple"], choice("five-tuple", "three-tuple", "two-tuple")] = Field(
        _GROUP["balance"], description="what a flow is: addresses, protocol and ports; addresses and protocol; addresses"
    )
    of: Annotated[Literal["outer", "inner"], choice("outer", "inner")] = Field(
        _GROUP["of"], description="of the packet, or of what a tunnel in it carries"
    )
    weights: dict[Annotated[str, NAME], Annotated[int, whole(1, 100)]] = Field({}, description="member: its part; 1 for the others")


class ReceiverPart(ShapePart):
    """What all tools have."""

    super_frames: Annotated[Literal["whole", "segment"], choice("whole", "segment")] = Field(
        _TOOL["super_frames"], description="what the sender's hardware was to cut: as it is, or cut into segments"
    )
    segment_bytes: Annotated[int, whole(576, 65_535)] = Field(
        _TOOL["segment_bytes"], description="the longest IP packet that is not cut into segments"
    )


class RemotePart(ReceiverPart):
    """What tools behind a network have."""

    oversize: Annotated[Literal["fragment", "slice", "drop"], choice("fragment", "slice", "drop")] = Field(
        _TOOL["oversize"], description="frames longer than the path takes: outer fragments, cut short, or dropped"
    )
    mtu_bytes: Annotated[int, whole(576, 65_535)] = Field(_TOOL["mtu_bytes"], description="of the path; by default what the route says")
    backend: Annotated[model.Backend, choice(*get_args(model.Backend))] = Field(
        _TOOL["backend"], description="how frames are handed to the kernel: what is fastest there, or one of the others"
    )
    health: HealthPart | None = Field(None, description="how it is asked whether it is there; not asked when left out")


NESTED: dict[str, type[Part]] = {
    "sample": SamplePart, "dedup": DedupPart, "limit": LimitPart, "health": HealthPart
}  # fmt: skip
"""Parts by the key under which they stand, anywhere."""


def shape(value: ShapePart) -> model.Shape:
    return model.Shape(
        sample=model.Sample(**value.sample.model_dump()) if value.sample else None,
        dedup=model.Dedup(**value.dedup.model_dump() | {"ignore": tuple(value.dedup.ignore)}) if value.dedup else None,
        strip=tuple(value.strip),
        push_vlan=value.push_vlan,
        mask=tuple(model.Mask(what, at, n) for what, at, n in value.mask),  # type: ignore[arg-type]
        mask_checksums=value.mask_checksums,
        slice_after=value.slice_after,
        slice_bytes=value.slice_bytes,
        limit=model.Limit(**value.limit.model_dump()) if value.limit else None,
        priority=value.priority,
    )


def health(value: HealthPart | None) -> model.Health | None:
    return model.Health(**value.model_dump()) if value else None


def group(name: str, value: GroupPart, place: model.Place) -> model.Group:
    weights = tuple(value.weights.get(member, 1) for member in value.members) if value.weights else ()
    return model.Group(name, tuple(value.members), value.mode, value.balance, value.of, weights, place)
