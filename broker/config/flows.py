"""The keys of `flows`: what is metered, to whom records go, where they stay; and what is asked of them by name."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from broker.config import flow_scalars, scalars
from broker.config.document import Document
from broker.config.parts import FILE, NAME, Names, OneOrMany, Parsed, Part, choice, defaults, kind, tagged_kind, text, whole
from broker.config.shaping import SamplePart
from broker.config.tools import TlsPart, tls
from broker.core import flow_model, model
from broker.core.flow_model import ATTRIBUTES

EXPORTS = {"ipfix": ("udp", "tcp", "tls"), "netflow9": ("udp",), "netflow5": ("udp",), "json": ("tcp", "tls")}
"""Kinds of exports, and what they go over."""
STORES = ("parquet", "clickhouse", "kafka")

_FLOWS, _EXPORT, _STORE = map(defaults, (flow_model.Flows, flow_model.Export, flow_model.Store))

IDLE = Parsed(partial(scalars.seconds, high=3600, low=0.1), {"type": "number", "minimum": 0.1, "maximum": 3600})
ACTIVE = Parsed(partial(scalars.seconds, high=3600, low=1), {"type": "number", "minimum": 1, "maximum": 3600})
MTU = whole(576, 65_535)
BUFFER = whole(1 << 16, 1 << 30)


def _to(what: str) -> Parsed:
    return text(partial(flow_scalars.collector, schemes=EXPORTS[what]), pattern=f"^({'|'.join(EXPORTS[what])})://.+")


class IpfixExport(Part):
    """IPFIX (RFC 7011) with both directions of a flow in one record (RFC 5103)."""

    kind: Annotated[Literal["ipfix"], kind("ipfix")]
    to: Annotated[str, _to("ipfix")] = Field(description="the collector: udp://address:port, tcp:// or tls://")
    mtu_bytes: Annotated[int, MTU] = Field(_EXPORT["mtu_bytes"], description="udp: the longest message, its headers apart")
    template_refresh_s: Annotated[int, whole(1, 86_400)] = Field(
        _EXPORT["template_refresh_s"], description="udp: how often templates are sent again"
    )
    domain: Annotated[int, whole(0, 0xFFFF_FFFF)] = Field(
        _EXPORT["domain"], description="observation domain, source id of NetFlow 9; 0: made of the node's name"
    )
    buffer_bytes: Annotated[int, BUFFER] = Field(
        _EXPORT["buffer_bytes"], description="tcp, tls: what may wait; what comes beyond it is dropped and counted"
    )
    tls: TlsPart | None = Field(None, description="of tls://, where its defaults do not do")


class Netflow9Export(Part):
    """NetFlow 9 (RFC 3954): two records for each flow, one for each direction."""

    kind: Annotated[Literal["netflow9"], kind("netflow9")]
    to: Annotated[str, _to("netflow9")] = Field(description="the collector: udp://address:port")
    mtu_bytes: Annotated[int, MTU] = Field(_EXPORT["mtu_bytes"], description="the longest message, its headers apart")
    template_refresh_s: Annotated[int, whole(1, 86_400)] = Field(
        _EXPORT["template_refresh_s"], description="how often templates are sent again"
    )
    domain: Annotated[int, whole(0, 0xFFFF_FFFF)] = Field(_EXPORT["domain"], description="source id; 0: made of the node's name")


class Netflow5Export(Part):
    """NetFlow 5: IPv4 only."""

    kind: Annotated[Literal["netflow5"], kind("netflow5")]
    to: Annotated[str, _to("netflow5")] = Field(description="the collector: udp://address:port")
    mtu_bytes: Annotated[int, MTU] = Field(_EXPORT["mtu_bytes"], description="the longest message, its headers apart")


class JsonExport(Part):
    """A line of JSON for each record."""

    kind: Annotated[Literal["json"], kind("json")]
    to: Annotated[str | None, _to("json")] = Field(None, description="who reads them: tcp://address:port or tls://")
    file: Annotated[str | None, FILE] = Field(None, description="the file they are appended to; - is standard output")
    buffer_bytes: Annotated[int, BUFFER] = Field(
        _EXPORT["buffer_bytes"], description="what may wait; what comes beyond it is dropped and counted"
    )
    tls: TlsPart | None = Field(None, description="of tls://, where its defaults do not do")


class StorePart(Part):
    """What all stores have."""

    flush_s: Annotated[int, whole(1, 3600)] = Field(
        _STORE["flush_s"], description="records are in the store so late at most, while it is up"
    )
    spool_bytes: Annotated[int, whole(1 << 20, 1 << 44)] = Field(
        _STORE["spool_bytes"], description="what may wait on disk while it is not; what comes beyond it is dropped and counted"
    )


class ParquetStore(StorePart):
    """Files by the hour in a directory."""

    kind: Annotated[Literal["parquet"], kind("parquet")]
    directory: Annotated[str, FILE] = Field(description="the directory of the files")
    keep_days: Annotated[int, whole(0, 36_500)] = Field(_STORE["keep_days"], description="older files are removed; 0: none by age")
    keep_bytes: Annotated[int, whole(0, 1 << 50)] = Field(
        _STORE["keep_bytes"], description="the oldest files are removed when there is more; 0: none by size"
    )


class ClickhouseStore(StorePart):
    """ClickHouse over HTTP."""

    kind: Annotated[Literal["clickhouse"], kind("clickhouse")]
    url: Annotated[str, text(flow_scalars.url, pattern="^https?://.+")] = Field(description="http://host:port, or https://")
    database: Annotated[str, text(flow_scalars.database, pattern=flow_scalars.DATABASE_PATTERN)] = Field(
        _STORE["database"], description="its tables are made there"
    )
    user: Annotated[str, NAME] = Field(_STORE["user"], description="by default the server's own default")
    password_file: Annotated[str, FILE] = Field(
        _STORE["password_file"], description="a file that holds the user's password, and nothing else"
    )
    directory: Annotated[str, FILE] = Field(description="the directory in which records wait (spool)")
    tls: TlsPart | None = Field(None, description="of https://, where its defaults do not do")


class KafkaStore(StorePart):
    """A topic of Kafka."""

    kind: Annotated[Literal["kafka"], kind("kafka")]
    servers: Annotated[list[Annotated[str, text(flow_scalars.server)]], OneOrMany()] = Field(
        min_length=1, max_length=64, description="host:port of some brokers of the cluster"
    )
    topic: Annotated[str, text(flow_scalars.topic, pattern=flow_scalars.TOPIC_PATTERN)] = Field(
        _STORE["topic"], description="flow records go there; meters to TOPIC.meters"
    )
    directory: Annotated[str, FILE] = Field(description="the directory in which records wait (spool)")
    tls: TlsPart | None = Field(None, description="encrypt: {} is enough")


class AnonymisePart(Part):
    """Addresses are replaced in all that leaves the agent; what shared a prefix still does."""

    key_file: Annotated[str, FILE] = Field(description="a file of 32 bytes, or of 64 hexadecimal digits: who has it can undo it")


class LinkPart(Part):
    """Something whose use is measured against what it can take."""

    inputs: Names = Field([], min_length=1, description="all that comes from these")
    match: Annotated[str | None, text(scalars.text)] = Field(None, description="all flows that this expression matches")
    capacity_bits_per_s: Annotated[int, whole(1, 10**15)] = Field(description="what it can take")


class SitePart(Part):
    """Where addresses live: a host, or what holds hosts."""

    nets: Annotated[list[Annotated[str, text(flow_scalars.site_net, minLength=1)]], OneOrMany()] = Field(
        [], description="addresses, nets and $sets of them"
    )
    within: Annotated[str, NAME] = Field("", description="the site that holds this one: a rack, a row")


Export = Annotated[
    Annotated[IpfixExport, Tag("@ipfix")]
    | Annotated[Netflow9Export, Tag("@netflow9")]
    | Annotated[Netflow5Export, Tag("@netflow5")]
    | Annotated[JsonExport, Tag("@json")],
    Discriminator(tagged_kind),
    BeforeValidator(partial(scalars.kind_of, kinds=tuple(EXPORTS))),
]
Store = Annotated[
    Annotated[ParquetStore, Tag("@parquet")] | Annotated[ClickhouseStore, Tag("@clickhouse")] | Annotated[KafkaStore, Tag("@kafka")],
    Discriminator(tagged_kind),
    BeforeValidator(partial(scalars.kind_of, kinds=STORES)),
]


class FlowsPart(Part):
    """Flow records: who talked to whom, when and how much."""

    of: Annotated[Literal["captured", "forwarded"], choice("captured", "forwarded")] = Field(
        _FLOWS["of"], description="of all packets, or of those that a tool gets"
    )
    layer: Annotated[Literal["outer", "inner"], choice("outer", "inner")] = Field(
        _FLOWS["layer"], description="of the packet, or of what a tunnel in it carries"
    )
    max_flows: Annotated[int, whole(1_000, 8_000_000)] = Field(_FLOWS["max_flows"], description="at a time, in each lane; 128 bytes each")
    idle_s: Annotated[float, IDLE] = Field(_FLOWS["idle_s"], description="a flow that is silent for longer is over")
    active_s: Annotated[float, ACTIVE] = Field(_FLOWS["active_s"], description="of a flow that goes on a record is written so often")
    names: Annotated[int, whole(0, 65_000)] = Field(
        _FLOWS["names"], description="names (DNS, TLS) that are known at a time, in each lane; 0: they are not looked for"
    )
    records: Annotated[int, whole(1_024, 1 << 21)] = Field(
        _FLOWS["records"], description="records that may wait to be exported, in each lane; 256 bytes each"
    )
    sample: SamplePart | None = Field(None, description="only some packets, or some flows")
    overload: Annotated[Literal["", "skip", "wait"], choice("skip", "wait")] = Field(
        "",
        description="when packets come too fast: skip some, or hold capture; by default live packets are skipped and files wait",
    )
    anonymise: AnonymisePart | None = Field(None, description="replace addresses, and keep what they have in common")
    drop: Annotated[list[Annotated[str, choice(*ATTRIBUTES)]], OneOrMany()] = Field([], description="what is left empty in records")
    exports: dict[Annotated[str, text(flow_scalars.export_name, pattern=scalars.NAME_PATTERN, maxLength=flow_scalars.NAME_LEN)], Export] = (
        Field({}, max_length=30, description="collectors, files and readers by name")
    )
    store: Store | None = Field(None, description="where records stay")
    meter_s: Annotated[int, whole(1, 3600)] = Field(
        _FLOWS["meter_s"], description="how often what inputs and tools have counted goes into the store"
    )
    links: dict[Annotated[str, NAME], LinkPart] = Field({}, max_length=1024, description="by name: what has a capacity")
    sites: dict[Annotated[str, NAME], SitePart] = Field({}, max_length=8192, description="by name: where addresses live")
    new_days: Annotated[int, whole(1, 3650)] = Field(
        _FLOWS["new_days"], description="a conversation that was not seen for so long is a new one"
    )


TAGGED: dict[str, type[Part]] = {
    "@ipfix": IpfixExport,
    "@netflow9": Netflow9Export,
    "@netflow5": Netflow5Export,
    "@json": JsonExport,
    "@parquet": ParquetStore,
    "@clickhouse": ClickhouseStore,
    "@kafka": KafkaStore,
}

_COPIED = ("of", "layer", "max_flows", "idle_s", "active_s", "names", "records", "overload", "meter_s", "new_days")


def flows(value: FlowsPart, document: Document, directory: str) -> flow_model.Flows:
    def place(*path: str) -> model.Place:
        return document.place(("flows", *path), of_key=True)

    return flow_model.Flows(
        **{key: getattr(value, key) for key in _COPIED},
        sample=model.Sample(**value.sample.model_dump()) if value.sample else None,
        anonymise_key_file=os.path.join(directory, value.anonymise.key_file) if value.anonymise else "",
        drop=tuple(value.drop),
        exports=tuple(_export(name, part, directory, place("exports", name)) for name, part in value.exports.items()),
        store=_store(value.store, directory, place("store")) if value.store else None,
        links=tuple(
            flow_model.Link(name, part.capacity_bits_per_s, tuple(part.inputs), part.match or "", place("links", name))
            for name, part in value.links.items()
        ),
        sites=tuple(flow_model.Site(name, tuple(part.nets), part.within, place("sites", name)) for name, part in value.sites.items()),
    )


def _export(
    name: str, value: IpfixExport | Netflow9Export | Netflow5Export | JsonExport, directory: str, place: model.Place
) -> flow_model.Export:
    said = value.model_dump(exclude={"to", "file", "tls"})
    if value.to is None:
        file = str(getattr(value, "file", ""))
        return flow_model.Export(name, **said, transport="file", file=_file(file, directory), place=place)
    transport, address, port = flow_scalars.split_collector(value.to)
    found = getattr(value, "tls", None)
    secured = tls(found or TlsPart.model_validate({}), directory) if transport == "tls" else None
    return flow_model.Export(name, **said, transport=transport, address=address, port=port, tls=secured, place=place)


def _file(file: str, directory: str) -> str:
    return file if file == model.STDOUT else os.path.join(directory, file)


def _store(value: ParquetStore | ClickhouseStore | KafkaStore, directory: str, place: model.Place) -> flow_model.Store:
    said: dict[str, Any] = value.model_dump(exclude={"directory", "password_file", "servers", "tls"})
    found = getattr(value, "tls", None)
    secured = isinstance(value, ClickhouseStore) and value.url.startswith("https:")
    password_file = getattr(value, "password_file", "")
    return flow_model.Store(
        **said,
        directory=os.path.join(directory, value.directory),
        password_file=os.path.join(directory, password_file) if password_file else "",
        servers=tuple(getattr(value, "servers", ())),
        tls=tls(found or TlsPart.model_validate({}), directory) if found or secured else None,
        place=place,
    )
