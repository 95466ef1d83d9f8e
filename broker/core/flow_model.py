"""What the part `flows` of a configuration says, as frozen values: what is metered, and what becomes of the records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from broker.core.values import Place, Sample, Tls

ExportKind = Literal["ipfix", "netflow9", "netflow5", "json"]
ATTRIBUTES = ("names", "ports", "vlan", "tunnel", "tos", "ttl", "tcp_flags", "rtt", "retransmitted", "sizes")
"""What records can do without: it is left empty in all that leaves the agent."""


@dataclass(frozen=True, slots=True)
class Export:
    """To one collector, file or reader. IPFIX and NetFlow go to address:port; JSON lines to a file or over TCP or TLS."""

    name: str
    kind: ExportKind
    transport: Literal["udp", "tcp", "tls", "file"] = "udp"
    address: str = ""
    port: int = 0
    tls: Tls | None = None
    file: str = ""  # json; "-": standard output
    mtu_bytes: int = 1400  # of the longest message over UDP, its headers apart
    template_refresh_s: int = 60  # over UDP
    domain: int = 0  # observation domain of IPFIX, source id of NetFlow 9; 0: made of the node's name
    buffer_bytes: int = 16 * 1024 * 1024  # what waits for a collector over TCP, or for a file
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Store:
    """Where records stay. What it does not take waits in the spool, on disk."""

    kind: Literal["parquet", "clickhouse", "kafka"] = "parquet"
    directory: str = ""  # parquet: of the files; the others: of the spool
    keep_days: int = 30  # parquet; 0: by age nothing is removed
    keep_bytes: int = 0  # parquet; 0: by size nothing is removed
    flush_s: int = 10  # records reach the store so late, at most, while it is up
    spool_bytes: int = 1 << 30  # what may wait; what comes beyond it is dropped and counted
    url: str = ""  # clickhouse: http(s)://host:port
    database: str = "tapmesh"
    user: str = ""
    password_file: str = ""
    servers: tuple[str, ...] = ()  # kafka: host:port
    topic: str = "tapmesh.flows"
    tls: Tls | None = None
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Link:
    """Something whose use is measured against what it can take: inputs, or all flows that an expression matches."""

    name: str
    capacity_bits_per_s: int
    inputs: tuple[str, ...] = ()
    match: str = ""
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Site:
    """Where addresses live: a host, or whatever holds hosts (a rack, a row). For locality."""

    name: str
    nets: tuple[str, ...] = ()  # addresses, nets, or $set
    within: str = ""  # the site that holds this one
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Flows:
    of: Literal["captured", "forwarded"] = "captured"  # all packets, or those that a tool gets
    layer: Literal["outer", "inner"] = "outer"  # inner: of what tunnels carry, where there is one
    max_flows: int = 65_536  # at a time, in each lane
    idle_s: float = 15.0  # silent for so long, a flow is over
    active_s: float = 60.0  # a record of a flow that goes on is written at least so often
    names: int = 4096  # of names at a time, in each lane; 0: DNS and TLS are not looked into
    records: int = 32_768  # that may wait for the exporter, in each lane
    sample: Sample | None = None
    overload: Literal["", "skip", "wait"] = ""  # when the stage cannot keep up: skip blocks (counted) or hold capture; "": files wait
    anonymise_key_file: str = ""  # 32 bytes, or 64 hexadecimal digits; with it addresses are replaced, prefixes kept
    drop: tuple[str, ...] = ()  # of ATTRIBUTES
    exports: tuple[Export, ...] = ()
    store: Store | None = None
    meter_s: int = 10  # how often the use of inputs and tools is recorded in the store
    links: tuple[Link, ...] = ()
    sites: tuple[Site, ...] = ()
    new_days: int = 30  # who has not talked for so long is new
