"""The keys of a configuration, with their types, defaults and descriptions: pydantic models, in the control process only.

What a value may be says `scalars`, what must hold between values says `checks`; `loader` turns these into the frozen values of
`broker.core.model`. The JSON Schema for editors is made from this file::

    python -m broker.config.schema > deploy/tapmesh.schema.json
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from broker.config import packet, scalars, tools
from broker.config.annotations import (
    DRAIN,
    ENTRY,
    FILE,
    NAME,
    PACE,
    TRUTH,
    Names,
    OneOrMany,
    Parsed,
    Part,
    choice,
    defaults,
    kind,
    power_of_two,
    tagged_kind,
    text,
    whole,
)
from broker.core import layout, model

RULE = Parsed(
    scalars.rule,
    {
        "oneOf": [
            {"type": "object", "properties": {action: {"type": "string"}}, "required": [action], "additionalProperties": False}
            for action in ("pass", "drop")
        ]
    },
)

PACKET = Parsed(scalars.packet, packet.json_schema())

_INPUT, _TUNNEL, _STAGES, _RING, _CONFIG = map(defaults, (model.Input, model.Tunnel, model.Stages, model.RingSizes, model.Config))


class AfPacketInput(Part):
    """Live traffic of a network interface (AF_PACKET, TPACKET_V3)."""

    kind: Annotated[Literal["afpacket"], kind("afpacket")]
    interface: Annotated[str, text(scalars.interface, minLength=1, maxLength=15)] = Field(description="the network interface to listen on")
    promiscuous: Annotated[bool, TRUTH] = Field(_INPUT["promiscuous"], description="take frames for other stations too")
    ring_bytes: Annotated[int, whole(1 << 20, 1 << 30)] = Field(_INPUT["ring_bytes"], description="the kernel's ring, for each lane")


class PcapInput(Part):
    """Capture files, played once, one after the other."""

    kind: Annotated[Literal["pcap"], kind("pcap")]
    file: Annotated[str | None, FILE] = Field(None, description="a pcap or pcapng file")
    files: Annotated[list[Annotated[str, FILE]] | None, OneOrMany()] = Field(None, description="several of them, in this order")
    pace: Annotated[str, PACE] = Field(_INPUT["pace"], description="max, recorded, a factor such as 2x, or packets per second")


class GreTunnel(Part):
    """GRE over IPv4 or IPv6 carrying Ethernet frames (RFC 2784, RFC 2890, protocol type 0x6558)."""

    kind: Annotated[Literal["gre"], kind("gre")]
    remote: Annotated[str, text(scalars.host)] = Field(description="the address of the receiver")
    source: Annotated[str, text(scalars.host)] = Field(_TUNNEL["source"], description="our address; by default what the route says")
    key: Annotated[int | None, whole(0, 0xFFFF_FFFF)] = Field(_TUNNEL["key"], description="GRE key; none by default")
    sequence: Annotated[bool, TRUTH] = Field(_TUNNEL["sequence"], description="number the packets, so that the receiver can see loss")
    checksum: Annotated[bool, TRUTH] = Field(_TUNNEL["checksum"], description="GRE checksum over the packet")
    ttl: Annotated[int, whole(1, 255)] = Field(_TUNNEL["ttl"], description="TTL or hop limit of the outer packet")
    dscp: Annotated[int, whole(0, 63)] = Field(_TUNNEL["dscp"], description="DSCP of the outer packet")


class GreUdpTunnel(GreTunnel):
    """GRE in UDP (RFC 8086): for where raw sockets or GRE are not allowed."""

    kind: Annotated[Literal["gre-udp"], kind("gre-udp")]  # type: ignore[assignment]
    port: Annotated[int, whole(1, 65_535)] = Field(_TUNNEL["port"], description="UDP port of the receiver")
    source_port: Annotated[int, whole(0, 65_535)] = Field(_TUNNEL["source_port"], description="our UDP port; 0: chosen for us")


def tagged_tool(value: Any) -> str:
    if not isinstance(value, dict):
        return next(tag for tag, part in TAGGED.items() if isinstance(value, part))
    return "@tunnel" if "tunnel" in value else "@file" if value["kind"] in ("pcap", "pcapng") else tagged_kind(value)


Tunnel = Annotated[
    Annotated[GreTunnel, Tag("@gre")] | Annotated[GreUdpTunnel, Tag("@gre-udp")],
    Discriminator(tagged_kind),
    BeforeValidator(partial(scalars.kind_of, kinds=("gre", "gre-udp"))),
]


class TunnelTool(Part):
    """A receiver at the far end of a tunnel."""

    tunnel: Tunnel = Field(description="how to get there")


class MapPart(Part):
    """Which packets go to which tools: the first rule that matches decides."""

    name: Annotated[str, NAME] = Field(description="the name of the map, in counters and messages")
    inputs: Names = Field([], min_length=1, description="inputs it looks at; all when left out")
    rules: list[Annotated[dict[str, str], RULE]] = Field(
        min_length=1, description="a list of pass and drop rules; what no rule matches is not passed"
    )
    to: Names = Field([], description="the tools that get what is passed; without, the map only counts")
    undetermined: Annotated[Literal["deliver", "drop", "libpcap"], choice("deliver", "drop", "libpcap")] = Field(
        "deliver", description="where a test needs a header that the packet does not show; libpcap: the test fails"
    )


class TestPart(Part):
    """A packet and what becomes of it. A configuration whose tests fail is refused."""

    name: Annotated[str, text(scalars.label, minLength=1, maxLength=100)] = Field("", description="what it is about, for messages")
    packet: Annotated[dict[str, Any], PACKET] = Field(description="the fields of a packet, such as {ip.src: 10.1.0.5, tcp.dst: 443}")
    delivers: Names = Field(description="the tools that get it, in no order; [] for none")
    by: Annotated[list[Annotated[str, NAME]] | None, OneOrMany()] = Field(
        None, description="the maps that pass it, in no order; not asked when left out"
    )


class StagesPart(Part):
    """Workers: capture lanes for each live input; of the others for each lane."""

    capture: Annotated[int, whole(1, 16)] = Field(_STAGES["capture"], description="lanes for each live input, shared by flow hash")
    filter: Annotated[int, whole(1, 16)] = Field(_STAGES["filter"], description="filter workers for each lane")
    encapsulate: Annotated[int, whole(1, 16)] = Field(_STAGES["encapsulate"], description="encapsulate workers for each lane")
    send: Annotated[int, whole(1, 16)] = Field(_STAGES["send"], description="send workers for each lane")


class RingPart(Part):
    """Sizes of the ring of each lane."""

    blocks: Annotated[int, power_of_two(4, 1024)] = Field(_RING["blocks"], description="a power of two")
    block_packets: Annotated[int, whole(1, 16_384)] = Field(_RING["block_packets"], description="packets a block holds at most")
    block_bytes: Annotated[int, whole(layout.MAX_FRAME_BYTES, 1 << 26)] = Field(
        _RING["block_bytes"], description="bytes of packets a block holds; the longest frame must fit"
    )


Input = Annotated[
    Annotated[AfPacketInput, Tag("@afpacket")] | Annotated[PcapInput, Tag("@pcap")],
    Discriminator(tagged_kind),
    BeforeValidator(partial(scalars.kind_of, kinds=("afpacket", "pcap"))),
]
Tool = Annotated[
    Annotated[TunnelTool, Tag("@tunnel")]
    | Annotated[tools.FileTool, Tag("@file")]
    | Annotated[tools.InterfaceTool, Tag("@interface")]
    | Annotated[tools.StreamTool, Tag("@stream")],
    Discriminator(tagged_tool),
    BeforeValidator(partial(scalars.tool, kinds=tools.KINDS)),
]


class Whole(Part):
    """A tapmesh configuration."""

    node: Annotated[str, NAME] = Field(
        "tapmesh", description="name of this broker, for people; the pipeline in shared memory has the name that `tapmesh run --name` says"
    )
    inputs: dict[Annotated[str, NAME], Input] = Field(
        min_length=1, max_length=layout.INPUTS, description="inputs by name: where traffic comes from"
    )
    tools: dict[Annotated[str, NAME], Tool] = Field(
        min_length=1, max_length=layout.TOOLS, description="tools by name: where traffic is delivered"
    )
    sets: dict[Annotated[str, NAME], list[Annotated[str, ENTRY]]] = Field(
        {}, description="addresses and nets, or ports, for $NAME in expressions"
    )
    maps: list[MapPart] = Field([], max_length=layout.MAPS, description="all are tried; a tool gets a packet at most once")
    collector: Names = Field([], description="tools for what no map took; left out: it is counted as filtered")
    stages: StagesPart = Field(default_factory=lambda: StagesPart.model_validate({}), description="how many workers")
    ring: RingPart = Field(default_factory=lambda: RingPart.model_validate({}), description="sizes of the rings")
    http: Annotated[str, text(scalars.endpoint)] = Field(_CONFIG["http"], description="address:port of /metrics, /healthz and /readyz")
    drain_s: Annotated[float, DRAIN] = Field(_CONFIG["drain_s"], description="how long a stop may take to deliver what was captured")
    tests: list[TestPart] = Field([], description="packets, and which tools get them: a policy that fails one is not put in force")


TAGGED: dict[str, type[Part]] = {
    "@afpacket": AfPacketInput,
    "@pcap": PcapInput,
    "@gre": GreTunnel,
    "@gre-udp": GreUdpTunnel,
    "@tunnel": TunnelTool,
    "@file": tools.FileTool,
    "@interface": tools.InterfaceTool,
    "@stream": tools.StreamTool,
}
NESTED: dict[str, type[Part]] = {"tls": tools.TlsPart}
"""Parts that are a key of a tool."""

SECTIONS: dict[str, type[Part]] = {"maps": MapPart, "tests": TestPart, "stages": StagesPart, "ring": RingPart}


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a configuration document."""
    made = Whole.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tapmesh configuration", **_untitled(made)}


def _untitled(value: Any) -> Any:
    """Without the titles that pydantic makes of the names, and without defaults that say no more than that there is none."""
    if isinstance(value, dict):
        kept = ((k, v) for k, v in value.items() if not (k == "title" and isinstance(v, str)))
        return {k: _untitled(v) for k, v in kept if not (k == "default" and v in (None, "", [], {}))}
    if isinstance(value, list):
        return [_untitled(v) for v in value]
    return value


def schema_text() -> str:
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
