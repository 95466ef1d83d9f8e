"""What a configuration says, as frozen values. Pure: no YAML, no sockets, no numba; the loader makes these, everybody reads them.

`slot`s are the bit (tools), the row (maps) and the number (inputs) under which shared memory knows a thing; they are given by name and
stay the same over reloads (`broker/config/slots.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from broker.core.flow_model import Flows
from broker.core.values import Place as Place
from broker.core.values import Sample as Sample
from broker.core.values import Tls as Tls

STDOUT = "-"
"""As the name of a tool's file."""


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    kind: Literal["afpacket", "pcap", "tunnel"]
    slot: int = 0
    interface: str = ""  # afpacket
    promiscuous: bool = True
    ring_bytes: int = 16 * 1024 * 1024  # of the kernel's ring, per lane
    latency_ms: int = 16  # after which the kernel hands over a block that is not full
    capture_own: bool = False  # take packets of our own tunnels too
    dedicated: bool = False  # nothing else on this host wants what arrives there
    prefilter: Literal["auto", "on", "off"] = "auto"  # let the kernel leave out what no map can want; auto: when capture cannot keep up
    shed: bool = True  # when that is not enough: whole flows, before the kernel's ring overflows
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


UDP_PORTS = {"gre-udp": 4754, "vxlan": 4789, "geneve": 6081}
"""The tunnels that run over UDP, and where their receivers listen unless told otherwise: RFC 8086, RFC 7348, RFC 8926."""

TunnelKind = Literal["gre", "nvgre", "gre-ip", "erspan1", "erspan2", "erspan3", "vxlan", "geneve", "gre-udp"]

Backend = Literal["auto", "socket", "segment", "packet"]
"""How the frames of a tunnel are handed to the kernel, see `stages/send/backends.py`."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One kind uses some of these; the others keep their defaults."""

    kind: TunnelKind
    remote: str  # an address, IPv4 or IPv6
    source: str = ""  # empty: what the route says
    interface: str = ""  # leave through this one; empty: what the route says
    ttl: int = 64
    dscp: int = 0
    df: bool = False  # never fragmented: what exceeds the path's MTU is refused
    key: int | None = None  # gre, gre-ip, gre-udp: RFC 2890, 32 bits
    sequence: bool = False
    checksum: bool = False
    vsid: int = 0  # nvgre: RFC 7637, 24 bits
    flow_id: int | None = None  # nvgre, 8 bits; None: of the flow hash
    session: int = 0  # erspan2, erspan3: 10 bits
    vlan: int | None = None  # erspan2, erspan3; None for each of these: what the frame's own tag says
    cos: int | None = None
    encapsulation: int | None = None  # erspan2: 0 untagged, 1 ISL, 2 802.1Q, 3 the tag is still in the frame
    index: int = 0  # erspan2: 20 bits; erspan3: 14 bits (16 with ieee1588) in the subheader
    granularity: Literal["100us", "100ns", "ieee1588"] = "100ns"  # erspan3: unit of the timestamp
    subheader: bool = False  # erspan3: 8 bytes more, with the upper half of the timestamp
    hw_id: int = 0  # erspan3: 6 bits
    direction: Literal["ingress", "egress"] = "ingress"  # erspan3
    vni: int = 0  # vxlan, geneve: 24 bits
    generation: bool = False  # geneve: an option says which generation of the policy the packet was judged by
    port: int = 0  # of the receiver, see `udp_port`
    source_port: int = 0  # over UDP; 0: by flow hash (49152..65535)
    udp_checksum: bool = False  # over UDP in IPv4; over IPv6 there always is one

    @property
    def udp_port(self) -> int:
        """Where the receiver listens; 0: not over UDP."""
        return (self.port or UDP_PORTS[self.kind]) if self.kind in UDP_PORTS else 0


@dataclass(frozen=True, slots=True)
class Mask:
    """Bytes that leave overwritten. `what`: payload, cards, or where `at` counts from."""

    what: Literal["payload", "cards", "frame", "l3", "l4"]
    at: int = 0
    n_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Dedup:
    """Of packets that are alike the first one goes."""

    packets: int = 65_536  # of the window
    within_ms: int = 50
    ignore: tuple[str, ...] = ()  # ttl, tos, checksum, vlan, mac


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket; 0: no limit."""

    packets_per_s: int = 0
    bits_per_s: int = 0
    burst_ms: int = 100


@dataclass(frozen=True, slots=True)
class Shape:
    """What becomes of packets on their way to a tool, in this order: sampled, told from duplicates, stripped, tagged, masked, sliced,
    limited."""

    sample: Sample | None = None
    dedup: Dedup | None = None
    strip: tuple[str, ...] = ()  # names of STRIPPABLE
    push_vlan: int | None = None
    mask: tuple[Mask, ...] = ()
    mask_checksums: bool = True  # made right again
    slice_after: Literal["", "l2", "l3", "l4"] = ""
    slice_bytes: int = 0  # kept, behind `slice_after` if there is one; 0 without one: all
    limit: Limit | None = None
    priority: int = 7  # MAX_PRIORITY: never shed; else flows of lower ones go first when the broker cannot keep up


MAX_PRIORITY = 7
STRIPPABLE = ("vlan", "vntag", "mpls", "gre", "erspan", "vxlan", "geneve", "gtp")


@dataclass(frozen=True, slots=True)
class Group:
    """Tools that share, repeat or stand in for each other. `members`, `weights`: side by side."""

    name: str
    members: tuple[str, ...]
    mode: Literal["share", "replicate", "failover"] = "share"
    balance: Literal["five-tuple", "three-tuple", "two-tuple"] = "five-tuple"
    of: Literal["outer", "inner"] = "outer"  # inner: of what a tunnel carries, where there is one
    weights: tuple[int, ...] = ()  # empty: all alike
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one verdict bit means: packets to a tool or a group, in the shape that one map asks for or in their own."""

    slot: int
    to: str
    map: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """How a tool is asked whether it is there."""

    kind: Literal["icmp", "tcp", "neighbour"]
    port: int = 0  # tcp
    every_ms: int = 200
    fail_after: int = 3


@dataclass(frozen=True, slots=True)
class Rotation:
    """Capture files in a directory, one after the other; with several lanes each has its own."""

    directory: str
    rotate_bytes: int = 0  # no longer than this; 0: not by size
    rotate_s: int = 0  # multiples of it since 1970, wall clock, begin a new one; 0: not by time
    keep_files: int = 0  # 0: all
    compress: Literal["none", "gzip"] = "none"


@dataclass(frozen=True, slots=True)
class Stream:
    """A capture over TCP. One of `connect` and `listen` is given, address:port."""

    connect: str = ""
    listen: str = ""
    buffer_bytes: int = 4 * 1024 * 1024  # asked of the kernel for each reader
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """Frames go through the tunnel; without one they are bare, and exactly one of file, rotation, interface, stream says where to."""

    name: str
    slot: int = 0
    tunnel: Tunnel | None = None
    file: str = ""  # "-": standard output; with `tunnel`: write outer packets there instead of sending them (replay)
    tap: str = ""  # a tap device that is made, on which the frames come in (tapmesh receive)
    receiver: str = ""  # what reads at the far end of the tunnel, see `broker/config/receivers.py`
    shape: Shape = field(default_factory=Shape)
    super_frames: Literal["whole", "segment"] = "whole"
    segment_bytes: int = 1500  # the longest IP packet that is not taken for a super-frame
    oversize: Literal["fragment", "slice", "drop"] = "fragment"
    mtu_bytes: int = 0  # of the path; 0: what the route says
    backend: Backend = "auto"  # of tunnels
    health: Health | None = None
    format: Literal["pcap", "pcapng"] = "pcap"  # of file, rotation and stream
    rotation: Rotation | None = None
    interface: str = ""
    qdisc_bypass: bool = False  # of interface
    stream: Stream | None = None
    waits: bool = False  # for the reader of a pipe, instead of dropping: the only tool of a replay
    place: Place | None = field(default=None, compare=False)

    @property
    def whole(self) -> bool:
        """Its outer packets must arrive as they left: a router that cannot pass one on is to say so, and never to fragment it."""
        return self.oversize != "fragment" or (self.tunnel is not None and self.tunnel.df)

    @property
    def destination(self) -> str:
        """Where bare frames go, in words."""
        if self.rotation is not None:
            return f"files in {self.rotation.directory}"
        if self.interface:
            return f"interface {self.interface}"
        if self.stream is not None:
            return f"readers of {self.stream.listen}" if self.stream.listen else f"tcp {self.stream.connect}"
        return "standard output" if self.file == STDOUT else self.file


@dataclass(frozen=True, slots=True)
class Rule:
    action: Literal["pass", "drop"]
    expression: str
    place: Place | None = field(default=None, compare=False)  # of the first character of the expression; moved text is no change


@dataclass(frozen=True, slots=True)
class Map:
    name: str
    rules: tuple[Rule, ...]
    to: tuple[str, ...]  # tools and groups; none: it only counts
    inputs: tuple[str, ...] = ()  # empty: all
    undetermined: Literal["deliver", "drop", "libpcap"] = "deliver"  # libpcap: what cannot be told does not match
    slot: int = 0
    shape: Shape = field(default_factory=Shape)
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
class Cpus:
    """The CPUs that the workers of a stage are given in turn, lane after lane; empty: wherever the system puts them."""

    capture: tuple[int, ...] = ()
    filter: tuple[int, ...] = ()
    encapsulate: tuple[int, ...] = ()
    send: tuple[int, ...] = ()
    flows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stages:
    """Workers: capture lanes per live input; the others per lane."""

    capture: int = 1
    filter: int = 1
    encapsulate: int = 1
    send: int = 1
    cpus: Cpus = field(default_factory=Cpus)


@dataclass(frozen=True, slots=True)
class RingSizes:
    blocks: int = 16
    block_packets: int = 2048
    block_bytes: int = 262_144


@dataclass(frozen=True, slots=True)
class Config:
    node: str
    inputs: tuple[Input, ...]
    tools: tuple[Tool, ...]
    maps: tuple[Map, ...]
    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    collector: tuple[str, ...] = ()  # tools and groups
    stages: Stages = field(default_factory=Stages)
    ring: RingSizes = field(default_factory=RingSizes)
    http: str = ""  # address:port of /metrics, /healthz, /readyz; empty: none
    drain_s: float = 10.0  # how long a stop may take
    tests: tuple[PolicyTest, ...] = ()
    set_places: dict[str, Place] = field(default_factory=dict, compare=False)
    groups: tuple[Group, ...] = ()
    deliveries: tuple[Delivery, ...] = field(default=(), compare=False)  # follow from the rest; see `broker.config.deliveries`
    flows: Flows | None = None  # None: no metadata

    @property
    def uses_stdout(self) -> bool:
        """What is for people goes elsewhere then."""
        files = [tool.file for tool in self.tools] + [export.file for export in (self.flows.exports if self.flows else ())]
        return STDOUT in files


@dataclass(frozen=True, slots=True)
class Lane:
    """One ring and its workers. A live input has `Stages.capture` lanes; all files together have one, played in order."""

    number: int
    inputs: tuple[Input, ...]
    fanout_group: int = 0
    fanout_size: int = 1
    member: int = 0  # which of its input's lanes

    @property
    def is_live(self) -> bool:
        """What is not taken in time is lost."""
        return any(i.kind != "pcap" for i in self.inputs)
