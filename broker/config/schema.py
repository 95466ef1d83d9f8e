"""The keys of a configuration, with their types, defaults and descriptions: pydantic models, in the control process only.

What a value may be says `scalars`, what must hold between values says `checks`; `loader` turns these into the frozen values of
`broker.core.model`. The JSON Schema for editors is made from this file::

    python -m broker.config.schema > deploy/tapmesh.schema.json
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from broker.config import packet, scalars, tools
from broker.config.flows import TAGGED as FLOW_TAGGED
from broker.config.flows import AnonymisePart, FlowsPart, LinkPart, SitePart
from broker.config.parts import (
    FILE,
    INTERFACE,
    NAME,
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
from broker.config.receivers import RECEIVERS, refusals
from broker.config.shaping import NESTED as SHAPING
from broker.config.shaping import GroupPart, RemotePart, ShapePart
from broker.config.tunnels import TUNNELS, Tunnel
from broker.core import layout, model

ENTRY = Parsed(scalars.set_entry, {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 65_535}]})
NET = text(scalars.net, minLength=1)
PACE = Parsed(scalars.pace, {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}]})
DRAIN = Parsed(partial(scalars.seconds, high=3600), {"type": "number", "minimum": 0, "maximum": 3600})
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


_INPUT, _STAGES, _RING, _CONFIG = map(defaults, (model.Input, model.Stages, model.RingSizes, model.Config))

LISTEN_PORTS = {"gre": 0, **model.UDP_PORTS}
"""What a tunnel input listens to, and its UDP port; 0: it has none."""


class AfPacketInput(Part):
    """Live traffic of a network interface (AF_PACKET, TPACKET_V3)."""

    kind: Annotated[Literal["afpacket"], kind("afpacket")]
    interface: Annotated[str, INTERFACE] = Field(description="the network interface to listen on")
    promiscuous: Annotated[bool, TRUTH] = Field(_INPUT["promiscuous"], description="take frames for other stations too")
    ring_bytes: Annotated[int, whole(1 << 20, 1 << 30)] = Field(_INPUT["ring_bytes"], description="the kernel's ring, for each lane")
    latency_ms: Annotated[int, whole(1, 250)] = Field(_INPUT["latency_ms"], description="how long a packet may wait for others")
    capture_own: Annotated[bool, TRUTH] = Field(_INPUT["capture_own"], description="take packets of our own tunnels too: beware of loops")
    prefilter: Annotated[Literal["auto", "on", "off"], choice("auto", "on", "off")] = Field(
        _INPUT["prefilter"], description="let the kernel leave out what no map can want; auto: when capture cannot keep up"
    )
    shed: Annotated[bool, TRUTH] = Field(_INPUT["shed"], description="leave out whole flows when the kernel's ring overflows")
    dedicated: Annotated[bool, TRUTH] = Field(
        _INPUT["dedicated"], description="nothing else on this host wants what arrives there: it ends behind the capture"
    )


class TunnelInput(Part):
    """The far end of tunnels: what other brokers, switches or hosts have encapsulated."""

    kind: Annotated[Literal["tunnel"], kind("tunnel")]
    listen: Annotated[Literal["gre", "vxlan", "geneve", "gre-udp"], choice(*LISTEN_PORTS)] = Field(
        description="what is terminated; ERSPAN and NVGRE come as gre"
    )
    senders: Annotated[list[Annotated[str, NET]], OneOrMany()] = Field(
        alias="from", min_length=1, max_length=1024, description="addresses and nets of those who may send; all else is dropped and counted"
    )
    address: Annotated[str, text(scalars.host)] = Field(_INPUT["address"], description="our address; by default any")
    port: Annotated[int, whole(1, 65_535)] = Field(_INPUT["port"], description="UDP port; by default that of the protocol")
    key: Annotated[int | None, whole(0, 0xFFFF_FFFF)] = Field(_INPUT["key"], description="take this GRE key only")
    vni: Annotated[int | None, whole(0, 0xFF_FFFF)] = Field(_INPUT["vni"], description="take this VNI only")
    buffer_bytes: Annotated[int, whole(1 << 16, 1 << 30)] = Field(_INPUT["buffer_bytes"], description="of each socket")


class PcapInput(Part):
    """Capture files, played once, one after the other."""

    kind: Annotated[Literal["pcap"], kind("pcap")]
    file: Annotated[str | None, FILE] = Field(None, description="a pcap or pcapng file")
    files: Annotated[list[Annotated[str, FILE]] | None, OneOrMany()] = Field(None, description="several of them, in this order")
    pace: Annotated[str, PACE] = Field(_INPUT["pace"], description="max, recorded, a factor such as 2x, or packets per second")


def tagged_input(value: Any) -> str:
    found = tagged_kind(value)
    return "@tunnel-input" if found == "@tunnel" else found  # there are tools with a tunnel, too


def tagged_tool(value: Any) -> str:
    if not isinstance(value, dict):
        return next(tag for tag, part in TAGGED.items() if isinstance(value, part))
    return "@tunnel" if "tunnel" in value else "@file" if value["kind"] in ("pcap", "pcapng") else tagged_kind(value)


class TunnelTool(RemotePart):
    """A receiver at the far end of a tunnel."""

    tunnel: Tunnel = Field(description="how to get there")
    receiver: Annotated[str, choice(*RECEIVERS)] = Field("", description="what reads there: what it cannot read is refused")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for key, reason in refusals(self.receiver, model.Tunnel(**self.tunnel.model_dump())):
            raise scalars.Wrong(reason, ("tunnel", key))
        if self.backend == "segment" and self.tunnel.kind not in model.UDP_PORTS:
            reason = f"only what leaves over UDP can be sent in runs, and {self.tunnel.kind} does not"
            raise scalars.Wrong(f"{reason}, expected auto, packet or socket", ("backend",))
        if self.backend == "segment" and getattr(self.tunnel, "sequence", False):
            raise scalars.Wrong("runs would bring numbered packets out of sequence, expected auto, packet or socket", ("backend",))
        return self


class MapPart(ShapePart):
    """Which packets go to which tools: the first rule that matches decides."""

    name: Annotated[str, NAME] = Field(description="the name of the map, in counters and messages")
    inputs: Names = Field([], min_length=1, description="inputs it looks at; all when left out")
    rules: list[Annotated[dict[str, str], RULE]] = Field(
        min_length=1, description="a list of pass and drop rules; what no rule matches is not passed"
    )
    to: Names = Field([], description="the tools and groups that get what is passed; without, the map only counts")
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


CpuList = Annotated[list[Annotated[int, whole(0, 4095)]], OneOrMany()]


class CpusPart(Part):
    """The CPUs that the workers of a stage are given in turn, lane after lane; left out: wherever the system puts them."""

    capture: CpuList = Field([], description="CPU numbers for capture")
    filter: CpuList = Field([], description="CPU numbers for filter workers")
    encapsulate: CpuList = Field([], description="CPU numbers for encapsulate workers")
    send: CpuList = Field([], description="CPU numbers for send workers")
    flows: CpuList = Field([], description="CPU numbers for the stages that meter flows")


class StagesPart(Part):
    """Workers: capture lanes for each live input; of the others for each lane."""

    capture: Annotated[int, whole(1, 16)] = Field(_STAGES["capture"], description="lanes for each live input, shared by flow hash")
    filter: Annotated[int, whole(1, 16)] = Field(_STAGES["filter"], description="filter workers for each lane")
    encapsulate: Annotated[int, whole(1, 16)] = Field(_STAGES["encapsulate"], description="encapsulate workers for each lane")
    send: Annotated[int, whole(1, 16)] = Field(_STAGES["send"], description="send workers for each lane")
    cpus: CpusPart = Field(default_factory=lambda: CpusPart.model_validate({}), description="which CPUs workers run on")


class RingPart(Part):
    """Sizes of the ring of each lane."""

    blocks: Annotated[int, power_of_two(4, 1024)] = Field(_RING["blocks"], description="a power of two")
    block_packets: Annotated[int, whole(1, 16_384)] = Field(_RING["block_packets"], description="packets a block holds at most")
    block_bytes: Annotated[int, whole(layout.MAX_FRAME_BYTES, 1 << 26)] = Field(
        _RING["block_bytes"], description="bytes of packets a block holds; the longest frame must fit"
    )


Input = Annotated[
    Annotated[AfPacketInput, Tag("@afpacket")] | Annotated[PcapInput, Tag("@pcap")] | Annotated[TunnelInput, Tag("@tunnel-input")],
    Discriminator(tagged_input),
    BeforeValidator(partial(scalars.kind_of, kinds=("afpacket", "pcap", "tunnel"))),
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

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["tools"]}, {"required": ["flows"]}]})

    node: Annotated[str, NAME] = Field(
        "tapmesh", description="name of this broker, for people; the pipeline in shared memory has the name that `tapmesh run --name` says"
    )
    inputs: dict[Annotated[str, NAME], Input] = Field(
        min_length=1, max_length=layout.INPUTS, description="inputs by name: where traffic comes from"
    )
    tools: dict[Annotated[str, NAME], Tool] = Field({}, max_length=layout.TOOLS, description="tools by name: where traffic is delivered")
    groups: dict[Annotated[str, NAME], GroupPart] = Field(
        {}, description="groups by name: tools that share, repeat or stand in for each other"
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
    flows: FlowsPart | None = Field(None, description="flow records of the packets: who talks to whom; not made when left out")
    tests: list[TestPart] = Field([], description="packets, and which tools get them: a policy that fails one is not put in force")


TAGGED: dict[str, type[Part]] = {
    "@afpacket": AfPacketInput,
    "@pcap": PcapInput,
    "@tunnel-input": TunnelInput,
    **{f"@{kind}": part for kind, part in TUNNELS.items()},
    "@tunnel": TunnelTool,
    "@file": tools.FileTool,
    "@interface": tools.InterfaceTool,
    "@stream": tools.StreamTool,
    **FLOW_TAGGED,
}
NESTED: dict[str, type[Part]] = {**SHAPING, "tls": tools.TlsPart, "anonymise": AnonymisePart}
"""Parts by the key under which they stand, anywhere."""

SECTIONS: dict[str, type[Part]] = {
    "groups": GroupPart,
    "maps": MapPart,
    "tests": TestPart,
    "stages": StagesPart,
    "stages.cpus": CpusPart,
    "ring": RingPart,
    "flows": FlowsPart,
    "flows.links": LinkPart,
    "flows.sites": SitePart,
}
"""Parts by the key, or the two keys, below which they stand."""


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
