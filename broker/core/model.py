"""What a configuration says, as frozen values. Pure: no YAML, no sockets, no numba; the loader makes these, everybody reads them.

`slot`s are the bit (tools), the row (maps) and the number (inputs) under which shared memory knows a thing; they are given by name and
stay the same over reloads (`broker/config/slots.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the operator's file something was written; columns and lines from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    kind: Literal["afpacket", "pcap", "tunnel"]
    slot: int = 0
    interface: str = ""  # afpacket
    promiscuous: bool = True
    ring_bytes: int = 16 * 1024 * 1024  # of the kernel's ring, per lane
    capture_own: bool = False  # take packets of our own tunnels too
    files: tuple[str, ...] = ()  # pcap, played in this order
    pace: str = "max"  # max | recorded | 2x | 10000 (packets per second)
    listen: Literal["gre", "vxlan", "geneve", "gre-udp"] = "gre"  # tunnel; ERSPAN and NVGRE come as GRE
    senders: tuple[str, ...] = ()  # nets that packets are taken from
    address: str = ""  # ours; empty: any
    port: int = 0  # of UDP; 0: it has none
    key: int | None = None  # take this GRE key only
    vni: int | None = None  # take this VNI only
    buffer_bytes: int = 32 * 1024 * 1024  # of the socket
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Tunnel:
    kind: Literal["gre", "gre-udp"]
    remote: str  # an address, IPv4 or IPv6
    source: str = ""  # empty: what the route says
    key: int | None = None  # RFC 2890, 32 bits
    sequence: bool = False
    checksum: bool = False
    ttl: int = 64
    dscp: int = 0
    port: int = 4754  # gre-udp, RFC 8086
    source_port: int = 0  # gre-udp; 0: in files by flow hash (49152..65535), on sockets chosen by the kernel


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    slot: int = 0
    tunnel: Tunnel | None = None  # None: a file of bare frames
    file: str = ""  # kind pcap: the file; with `tunnel`: write outer packets there instead of sending them (replay)
    tap: str = ""  # a tap device that is made, on which the frames come in (tapmesh receive)
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Rule:
    action: Literal["pass", "drop"]
    expression: str
    place: Place | None = field(default=None, compare=False)  # of the first character of the expression; moved text is no change


@dataclass(frozen=True, slots=True)
class Map:
    name: str
    rules: tuple[Rule, ...]
    to: tuple[str, ...]  # tools; none: it only counts
    inputs: tuple[str, ...] = ()  # empty: all
    undetermined: Literal["deliver", "drop", "libpcap"] = "deliver"  # libpcap: what cannot be told does not match
    slot: int = 0
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """A packet, and what the policy is to do with it. A policy that fails one is not put in force."""

    packet: str  # its fields in one line, as they are written on a command line
    frame: bytes  # what was captured of it
    wirelen: int
    input: str  # the one it comes from
    delivers: tuple[str, ...]  # tools; no order
    by: tuple[str, ...] | None = None  # the maps that pass it, no order; None: not asked
    name: str = ""  # for people
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Stages:
    """Workers: capture lanes per live input; the others per lane."""

    capture: int = 1
    filter: int = 1
    encapsulate: int = 1
    send: int = 1


@dataclass(frozen=True, slots=True)
class RingSizes:
    blocks: int = 16
    block_packets: int = 1024
    block_bytes: int = 262_144


@dataclass(frozen=True, slots=True)
class Config:
    node: str
    inputs: tuple[Input, ...]
    tools: tuple[Tool, ...]
    maps: tuple[Map, ...]
    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    collector: tuple[str, ...] = ()  # tools
    stages: Stages = field(default_factory=Stages)
    ring: RingSizes = field(default_factory=RingSizes)
    http: str = ""  # address:port of /metrics, /healthz, /readyz; empty: none
    drain_s: float = 10.0  # how long a stop may take
    tests: tuple[PolicyTest, ...] = ()
    set_places: dict[str, Place] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Lane:
    """One ring and its workers. A live input has `Stages.capture` lanes; all files together have one, played in order."""

    number: int
    inputs: tuple[Input, ...]
    fanout_group: int = 0
    fanout_size: int = 1
