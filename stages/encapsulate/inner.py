"""The tunnels' own headers: what follows the outer IP header, or the UDP header, up to the packet.

| tunnel | bytes | source |
|---|---|---|
| gre | GRE 4, [checksum 4], [key 4], [sequence 4]; payload 0x6558, bridged Ethernet | RFC 2784, RFC 2890 |
| gre-ip | the same; payload 0x0800 or 0x86DD, an IP packet | RFC 2784, RFC 7676 |
| gre-udp | as gre, in UDP | RFC 8086 |
| nvgre | GRE 4, key 4: subnet 24 bits, flow 8 bits | RFC 7637 |
| erspan1 | GRE 4, payload 0x88BE | draft-foschiano-erspan-03 section 4.1 |
| erspan2 | GRE 4, sequence 4, ERSPAN 8 | section 4.2 |
| erspan3 | GRE 4, sequence 4, ERSPAN 12, [subheader 8]; payload 0x22EB | section 4.3 |
| vxlan | 8, in UDP | RFC 7348 |
| geneve | 8, [option 8], in UDP | RFC 8926 |

**The option of Geneve** that `generation: true` adds: class 0xFF54 (of the range for experiments, RFC 8926 section 7), type 1, not
critical, 4 bytes: the number of the generation of the policy, big-endian. Type 2 is kept for the rule that passed the packet; nobody
writes it, because a frame does not know its rule: maps of several rules decide together which tools get a packet.

**The subheader of ERSPAN III** is the one of platform 3 (index 14 bits, upper half of the timestamp), and with ``granularity: ieee1588``
of platform 5 (index 16 bits, seconds; the nanoseconds are in the header), which that granularity needs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from broker.core.model import Tunnel
from stages.encapsulate.patches import (
    PATCH_CHECKSUM,
    PATCH_ERSPAN,
    PATCH_FLOW_ID,
    PATCH_SEQUENCE,
    PATCH_SUBHEADER,
    PATCH_TIMESTAMP,
    WINDOW_IP,
)

GRE_PROTOCOL, UDP_PROTOCOL = 47, 17
GENEVE_CLASS, GENEVE_GENERATION = 0xFF54, 1
TICK_NS = {"100us": 100_000, "100ns": 100, "ieee1588": 0}

_GRE_CHECKSUM, _GRE_KEY, _GRE_SEQUENCE = 0x8000, 0x2000, 0x1000
_ETHERNET_BRIDGING, _ERSPAN_2, _ERSPAN_3 = 0x6558, 0x88BE, 0x22EB
_VLAN_BITS, _COS_BITS, _EN_BITS = 0x0FFF_0000, 0xE000, 0x1800
_GRANULARITY = {"100us": 0, "100ns": 1, "ieee1588": 2}
_VNI_IS_VALID = 0x08


@dataclass(frozen=True, slots=True)
class Inner:
    """A tunnel's own header with all fields that never change, and what else the kernel has to know.

    `checksum_at`, `sequence_at`: from its start. `tag_mask`: the bits of ERSPAN's first word that the frame's VLAN tag decides.
    `tick_ns`: unit of the timestamp; 0: seconds and nanoseconds.
    """

    header: bytes
    patches: int = 0
    checksum_at: int = 0
    sequence_at: int = 0
    tag_mask: int = 0
    tick_ns: int = 0


def gre(tunnel: Tunnel, protocol: int = _ETHERNET_BRIDGING) -> Inner:
    """RFC 2890 section 2: the options follow in this order; the checksum is there with a reserved half word."""
    flags, options, patches = 0, b"", 0
    checksum_at = sequence_at = 0
    if tunnel.checksum:
        flags |= _GRE_CHECKSUM
        patches |= PATCH_CHECKSUM
        checksum_at = 4
        options += bytes(4)
    if tunnel.key is not None:
        flags |= _GRE_KEY
        options += struct.pack("!I", tunnel.key)
    if tunnel.sequence:
        flags |= _GRE_SEQUENCE
        patches |= PATCH_SEQUENCE
        sequence_at = 4 + len(options)
        options += bytes(4)
    return Inner(struct.pack("!HH", flags, protocol) + options, patches, checksum_at, sequence_at)


def gre_ip(tunnel: Tunnel) -> Inner:
    """The payload's type is the version of the packet, so it is patched."""
    found = gre(tunnel, 0)
    return replace(found, patches=found.patches | WINDOW_IP)


def nvgre(tunnel: Tunnel) -> Inner:
    """RFC 7637 section 3.2: a key, and neither checksum nor sequence number."""
    key = tunnel.vsid << 8 | (tunnel.flow_id or 0)
    patches = PATCH_FLOW_ID if tunnel.flow_id is None else 0
    return Inner(struct.pack("!HHI", _GRE_KEY, _ETHERNET_BRIDGING, key), patches)


def erspan1(tunnel: Tunnel) -> Inner:
    """No sequence number tells type I from type II."""
    del tunnel  # it says nothing that this header has
    return Inner(struct.pack("!HH", 0, _ERSPAN_2))


def erspan2(tunnel: Tunnel) -> Inner:
    word, tag_mask = _erspan_word(1, tunnel)
    header = struct.pack("!HHIII", _GRE_SEQUENCE, _ERSPAN_2, 0, word | (tunnel.encapsulation or 0) << 11, tunnel.index)
    tag_mask |= _EN_BITS if tunnel.encapsulation is None else 0
    return Inner(header, PATCH_SEQUENCE | PATCH_ERSPAN, sequence_at=4, tag_mask=tag_mask)


def erspan3(tunnel: Tunnel) -> Inner:
    """BSO 0 (not known to be bad), no security group tag, P 1 and FT 0: the payload is an Ethernet frame."""
    word, tag_mask = _erspan_word(2, tunnel)
    egress = tunnel.direction == "egress"
    last = 1 << 15 | tunnel.hw_id << 4 | egress << 3 | _GRANULARITY[tunnel.granularity] << 1 | tunnel.subheader
    header = struct.pack("!HHIIII", _GRE_SEQUENCE, _ERSPAN_3, 0, word, 0, last)
    patches = PATCH_SEQUENCE | PATCH_ERSPAN | PATCH_TIMESTAMP
    if tunnel.subheader:
        platform = 5 if tunnel.granularity == "ieee1588" else 3
        header += struct.pack("!II", platform << 26 | tunnel.index, 0)
        patches |= PATCH_SUBHEADER
    return Inner(header, patches, sequence_at=4, tag_mask=tag_mask, tick_ns=TICK_NS[tunnel.granularity])


def _erspan_word(version: int, tunnel: Tunnel) -> tuple[int, int]:
    """The first word, and which of its bits a tag in the frame decides."""
    word = version << 28 | (tunnel.vlan or 0) << 16 | (tunnel.cos or 0) << 13 | tunnel.session
    return word, (_VLAN_BITS if tunnel.vlan is None else 0) | (_COS_BITS if tunnel.cos is None else 0)


def vxlan(tunnel: Tunnel) -> Inner:
    """RFC 7348 section 5: the I flag and nothing reserved."""
    return Inner(struct.pack("!II", _VNI_IS_VALID << 24, tunnel.vni << 8))


def geneve(tunnel: Tunnel, generation: int) -> Inner:
    """RFC 8926 section 3.4; lengths of options count 4 bytes."""
    option = struct.pack("!HBBI", GENEVE_CLASS, GENEVE_GENERATION, 1, generation & 0xFFFF_FFFF) if tunnel.generation else b""
    return Inner(struct.pack("!BBHI", len(option) // 4, 0, _ETHERNET_BRIDGING, tunnel.vni << 8) + option)


@dataclass(frozen=True, slots=True)
class Shape:
    protocol: int  # that carries it: of IP
    inner: Callable[[Tunnel, int], Inner]  # the int is the generation


def _of(inner: Callable[[Tunnel], Inner]) -> Callable[[Tunnel, int], Inner]:
    return lambda tunnel, _: inner(tunnel)


TUNNELS: dict[str, Shape] = {
    "gre": Shape(GRE_PROTOCOL, _of(gre)),
    "gre-ip": Shape(GRE_PROTOCOL, _of(gre_ip)),
    "nvgre": Shape(GRE_PROTOCOL, _of(nvgre)),
    "erspan1": Shape(GRE_PROTOCOL, _of(erspan1)),
    "erspan2": Shape(GRE_PROTOCOL, _of(erspan2)),
    "erspan3": Shape(GRE_PROTOCOL, _of(erspan3)),
    "gre-udp": Shape(UDP_PROTOCOL, _of(gre)),
    "vxlan": Shape(UDP_PROTOCOL, _of(vxlan)),
    "geneve": Shape(UDP_PROTOCOL, geneve),
}
