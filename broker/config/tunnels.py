"""The keys of a tunnel, by its kind. What the headers look like says `stages/encapsulate/inner.py`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from broker.config import scalars
from broker.config.parts import INTERFACE, TRUTH, Part, choice, defaults, kind, tagged_kind, text, whole
from broker.core import model

_TUNNEL = defaults(model.Tunnel)
HOST = text(scalars.host)
Truth = Annotated[bool, TRUTH]
Bits3 = Annotated[int | None, whole(0, 7)]
Bits12 = Annotated[int | None, whole(0, 4095)]
Session = Annotated[int, whole(0, 1023)]
Vni = Annotated[int, whole(0, 0xFF_FFFF)]
Port = Annotated[int, whole(1, 65_535)]


class OuterPart(Part):
    """What every tunnel says of its outer IP header."""

    kind: str
    remote: Annotated[str, HOST] = Field(description="the address of the receiver")
    source: Annotated[str, HOST] = Field(_TUNNEL["source"], description="our address; by default what the route says")
    interface: Annotated[str, INTERFACE] = Field(_TUNNEL["interface"], description="leave through this one; by default what the route says")
    ttl: Annotated[int, whole(1, 255)] = Field(_TUNNEL["ttl"], description="TTL or hop limit of the outer packet")
    dscp: Annotated[int, whole(0, 63)] = Field(_TUNNEL["dscp"], description="DSCP of the outer packet")
    df: Truth = Field(_TUNNEL["df"], description="do not fragment: what is longer than the path takes is refused and counted")


class GrePart(OuterPart):
    """What GRE may carry besides the packet."""

    key: Annotated[int | None, whole(0, 0xFFFF_FFFF)] = Field(_TUNNEL["key"], description="GRE key; none by default")
    sequence: Truth = Field(_TUNNEL["sequence"], description="number the packets, so that the receiver can see loss")
    checksum: Truth = Field(_TUNNEL["checksum"], description="GRE checksum over the packet")


class UdpPart(OuterPart):
    """What a tunnel over UDP says of the outer UDP header."""

    source_port: Annotated[int, whole(0, 65_535)] = Field(_TUNNEL["source_port"], description="our UDP port; 0: by flow hash")
    udp_checksum: Truth = Field(
        _TUNNEL["udp_checksum"], description="UDP checksum over IPv4, where source must be given; IPv6 and segments have one anyway"
    )


class ErspanPart(OuterPart):
    """What ERSPAN II and III have in common. They are always numbered."""

    session: Session = Field(_TUNNEL["session"], description="session id")
    vlan: Bits12 = Field(_TUNNEL["vlan"], description="VLAN id; by default of the frame's own tag")
    cos: Bits3 = Field(_TUNNEL["cos"], description="class of service; by default of the frame's own tag")


class GreTunnel(GrePart):
    """GRE carrying Ethernet frames (RFC 2784, RFC 2890, protocol type 0x6558)."""

    kind: Annotated[Literal["gre"], kind("gre")]


class GreIpTunnel(GrePart):
    """GRE carrying IP packets, for tools of layer 3; frames that hold none are counted and not sent."""

    kind: Annotated[Literal["gre-ip"], kind("gre-ip")]


class NvgreTunnel(OuterPart):
    """NVGRE (RFC 7637)."""

    kind: Annotated[Literal["nvgre"], kind("nvgre")]
    vsid: Vni = Field(_TUNNEL["vsid"], description="virtual subnet id")
    flow_id: Annotated[int | None, whole(0, 255)] = Field(_TUNNEL["flow_id"], description="flow id; by default of the flow hash")


class Erspan1Tunnel(OuterPart):
    """ERSPAN type I: GRE and nothing more."""

    kind: Annotated[Literal["erspan1"], kind("erspan1")]


class Erspan2Tunnel(ErspanPart):
    """ERSPAN type II."""

    kind: Annotated[Literal["erspan2"], kind("erspan2")]
    encapsulation: Annotated[int | None, whole(0, 3)] = Field(
        _TUNNEL["encapsulation"],
        description="0 untagged, 1 ISL, 2 802.1Q, 3 tag still in the frame; by default 3 or 0, as the frame has a tag",
    )
    index: Annotated[int, whole(0, 0xF_FFFF)] = Field(_TUNNEL["index"], description="index of the mirrored port")


class Erspan3Tunnel(ErspanPart):
    """ERSPAN type III, with the time of each packet."""

    kind: Annotated[Literal["erspan3"], kind("erspan3")]
    granularity: Annotated[Literal["100us", "100ns", "ieee1588"], choice("100us", "100ns", "ieee1588")] = Field(
        _TUNNEL["granularity"], description="unit of the timestamp; ieee1588 needs the subheader"
    )
    subheader: Truth = Field(_TUNNEL["subheader"], description="8 bytes more, with the upper half of the timestamp")
    index: Annotated[int, whole(0, 0xFFFF)] = Field(_TUNNEL["index"], description="index of the mirrored port, in the subheader")
    hw_id: Annotated[int, whole(0, 63)] = Field(_TUNNEL["hw_id"], description="hardware id")
    direction: Annotated[Literal["ingress", "egress"], choice("ingress", "egress")] = Field(
        _TUNNEL["direction"], description="where the port was mirrored"
    )


class GreUdpTunnel(GrePart, UdpPart):
    """GRE in UDP (RFC 8086): for where raw sockets or GRE are not allowed."""

    kind: Annotated[Literal["gre-udp"], kind("gre-udp")]
    port: Port = Field(model.UDP_PORTS["gre-udp"], description="UDP port of the receiver")


class VxlanTunnel(UdpPart):
    """VXLAN (RFC 7348)."""

    kind: Annotated[Literal["vxlan"], kind("vxlan")]
    vni: Vni = Field(_TUNNEL["vni"], description="virtual network identifier")
    port: Port = Field(model.UDP_PORTS["vxlan"], description="UDP port of the receiver")


class GeneveTunnel(UdpPart):
    """Geneve (RFC 8926)."""

    kind: Annotated[Literal["geneve"], kind("geneve")]
    vni: Vni = Field(_TUNNEL["vni"], description="virtual network identifier")
    generation: Truth = Field(
        _TUNNEL["generation"], description="an option with the generation of the policy that each packet was judged by"
    )
    port: Port = Field(model.UDP_PORTS["geneve"], description="UDP port of the receiver")


TUNNELS: dict[str, type[OuterPart]] = {
    "gre": GreTunnel,
    "nvgre": NvgreTunnel,
    "gre-ip": GreIpTunnel,
    "erspan1": Erspan1Tunnel,
    "erspan2": Erspan2Tunnel,
    "erspan3": Erspan3Tunnel,
    "vxlan": VxlanTunnel,
    "geneve": GeneveTunnel,
    "gre-udp": GreUdpTunnel,
}

Tunnel = Annotated[
    Annotated[GreTunnel, Tag("@gre")]
    | Annotated[NvgreTunnel, Tag("@nvgre")]
    | Annotated[GreIpTunnel, Tag("@gre-ip")]
    | Annotated[Erspan1Tunnel, Tag("@erspan1")]
    | Annotated[Erspan2Tunnel, Tag("@erspan2")]
    | Annotated[Erspan3Tunnel, Tag("@erspan3")]
    | Annotated[VxlanTunnel, Tag("@vxlan")]
    | Annotated[GeneveTunnel, Tag("@geneve")]
    | Annotated[GreUdpTunnel, Tag("@gre-udp")],
    Discriminator(tagged_kind),
    BeforeValidator(partial(scalars.kind_of, kinds=tuple(TUNNELS))),
]
