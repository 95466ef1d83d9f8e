"""The fields of a packet: one row each, named as Wireshark's display filters name them.

The part of a name before its first dot is the header that the field stands in; a packet has the headers of the fields that are given, and
those that they need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from broker.config.document import Path
from broker.config.packet.values import (
    DATA,
    ETHERTYPE,
    FLAG,
    HEX,
    IP4,
    IP6,
    MAC,
    NAME,
    PORT,
    PROTOCOL,
    TCP_FLAGS_SET,
    TRUE,
    Kind,
    number,
    several,
    whole,
)
from broker.config.scalars import Wrong, shown, suggest
from broker.core.layout import MAX_FRAME_BYTES

MAX_STACK = 16
"""Tags or labels on one another: more than the filter looks over, so that its limit can be tested."""
MAX_INNER = 8

_A4, _B4 = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))  # RFC 5737
_A6, _B6 = (bytes.fromhex("20010db8") + bytes(11) + bytes((end,)) for end in (1, 2))  # RFC 3849
_MAC_A = bytes.fromhex("020000000001")
_FROM, _TO = 49_152, 49_153  # ports that nobody is registered for (RFC 6335)
_EXPERIMENT = 253  # a protocol that nobody is registered for (RFC 3692)


@dataclass(frozen=True, slots=True)
class Field:
    kind: Kind
    default: Any  # None: follows from the other fields
    what: str


FIELDS: dict[str, Field] = {
    "input": Field(NAME, "", "the input it comes from; the first when left out"),
    "length": Field(whole(14, MAX_FRAME_BYTES), None, "bytes on the wire: zeros are put behind the packet"),
    "cut": Field(whole(0, MAX_FRAME_BYTES), None, "bytes that were captured; the others are not there to look at"),
    "hex": Field(HEX, None, "the whole frame instead of fields"),
    "payload": Field(DATA, b"", "what follows the last header"),
    "eth.src": Field(MAC, _MAC_A, "Ethernet address of the sender"),
    "eth.dst": Field(MAC, None, "Ethernet address of the receiver"),
    "eth.type": Field(ETHERTYPE, None, "ethertype, behind any VLAN tags; below 1536 a length"),
    "vlan.id": Field(several(number(12), MAX_STACK), [0], "VLAN, for each tag"),
    "vlan.priority": Field(several(number(3), MAX_STACK), [0], "PCP, for each tag"),
    "vlan.dei": Field(several(FLAG, MAX_STACK), [False], "drop eligible, for each tag"),
    "vlan.tpid": Field(several(ETHERTYPE, MAX_STACK), [0x8100], "ethertype of each tag, such as 0x88a8"),
    "pppoe.session_id": Field(number(16), 1, "PPPoE session"),
    "mpls.label": Field(several(number(20), MAX_STACK), [16], "MPLS labels"),
    "mpls.exp": Field(several(number(3), MAX_STACK), [0], "traffic class, for each label"),
    "mpls.ttl": Field(several(number(8), MAX_STACK), [64], "TTL, for each label"),
    "arp": Field(TRUE, True, "ARP"),
    "arp.opcode": Field(number(16), 1, "1 asks, 2 answers"),
    "arp.src": Field(IP4, _A4, "the sender's IPv4 address"),
    "arp.dst": Field(IP4, _B4, "the target's IPv4 address"),
    "arp.src.hw_mac": Field(MAC, None, "the sender's Ethernet address; that of the frame when left out"),
    "arp.dst.hw_mac": Field(MAC, bytes(6), "the target's Ethernet address"),
    "ip": Field(TRUE, True, "IPv4"),
    "ip.src": Field(IP4, _A4, "IPv4 address of the sender"),
    "ip.dst": Field(IP4, _B4, "IPv4 address of the receiver"),
    "ip.proto": Field(PROTOCOL, _EXPERIMENT, "protocol"),
    "ip.ttl": Field(number(8), 64, "TTL"),
    "ip.dsfield": Field(number(8), 0, "the byte of DSCP and ECN"),
    "ip.dsfield.dscp": Field(number(6), 0, "DSCP"),
    "ip.dsfield.ecn": Field(number(2), 0, "ECN"),
    "ip.id": Field(number(16), 0, "identification"),
    "ip.flags.rb": Field(FLAG, False, "the reserved bit"),
    "ip.flags.df": Field(FLAG, False, "do not fragment"),
    "ip.flags.mf": Field(FLAG, False, "more fragments follow"),
    "ip.frag_offset": Field(number(13), 0, "fragment offset, in units of 8 bytes"),
    "ipv6": Field(TRUE, True, "IPv6"),
    "ipv6.src": Field(IP6, _A6, "IPv6 address of the sender"),
    "ipv6.dst": Field(IP6, _B6, "IPv6 address of the receiver"),
    "ipv6.nxt": Field(PROTOCOL, _EXPERIMENT, "protocol, behind any extension headers"),
    "ipv6.hlim": Field(number(8), 64, "hop limit"),
    "ipv6.tclass": Field(number(8), 0, "the byte of DSCP and ECN"),
    "ipv6.tclass.dscp": Field(number(6), 0, "DSCP"),
    "ipv6.tclass.ecn": Field(number(2), 0, "ECN"),
    "ipv6.flow": Field(number(20), 0, "flow label"),
    "ipv6.hopopts": Field(TRUE, None, "a hop-by-hop header, empty"),
    "ipv6.routing": Field(TRUE, None, "a routing header, of type 253 with no segments left"),
    "ipv6.dstopts": Field(TRUE, None, "a destination options header, empty"),
    "ipv6.fraghdr": Field(TRUE, None, "a fragment header"),
    "ipv6.fraghdr.offset": Field(number(13), 0, "fragment offset, in units of 8 bytes"),
    "ipv6.fraghdr.more": Field(FLAG, False, "more fragments follow"),
    "ipv6.fraghdr.ident": Field(number(32), 0, "identification"),
    "tcp": Field(TRUE, True, "TCP"),
    "tcp.srcport": Field(PORT, _FROM, "TCP port of the sender"),
    "tcp.dstport": Field(PORT, _TO, "TCP port of the receiver"),
    "tcp.seq": Field(number(32), 1, "sequence number"),
    "tcp.ack": Field(number(32), 1, "acknowledgement number"),
    "tcp.flags": Field(TCP_FLAGS_SET, None, "such as [syn, ack]; ack when left out, and psh with a payload"),
    "tcp.flags.fin": Field(FLAG, False, "this flag"),
    "tcp.flags.syn": Field(FLAG, False, "this flag"),
    "tcp.flags.reset": Field(FLAG, False, "this flag"),
    "tcp.flags.push": Field(FLAG, False, "this flag"),
    "tcp.flags.ack": Field(FLAG, False, "this flag"),
    "tcp.flags.urg": Field(FLAG, False, "this flag"),
    "tcp.flags.ece": Field(FLAG, False, "this flag"),
    "tcp.flags.cwr": Field(FLAG, False, "this flag"),
    "tcp.window_size_value": Field(number(16), 64_240, "window"),
    "udp": Field(TRUE, True, "UDP"),
    "udp.srcport": Field(PORT, _FROM, "UDP port of the sender"),
    "udp.dstport": Field(PORT, None, "UDP port of the receiver; that of the tunnel if there is one"),
    "sctp": Field(TRUE, True, "SCTP: the common header; chunks are payload"),
    "sctp.srcport": Field(PORT, _FROM, "SCTP port of the sender"),
    "sctp.dstport": Field(PORT, _TO, "SCTP port of the receiver"),
    "sctp.verification_tag": Field(number(32), 1, "verification tag"),
    "icmp": Field(TRUE, True, "ICMP"),
    "icmp.type": Field(number(8), 8, "type; an echo request when left out"),
    "icmp.code": Field(number(8), 0, "code"),
    "icmp.ident": Field(number(16), 1, "identifier of an echo"),
    "icmp.seq": Field(number(16), 1, "sequence number of an echo"),
    "icmpv6": Field(TRUE, True, "ICMPv6"),
    "icmpv6.type": Field(number(8), 128, "type; an echo request when left out"),
    "icmpv6.code": Field(number(8), 0, "code"),
    "icmpv6.echo.identifier": Field(number(16), 1, "identifier of an echo"),
    "icmpv6.echo.sequence_number": Field(number(16), 1, "sequence number of an echo"),
    "gre": Field(TRUE, True, "GRE; in UDP if there are fields of UDP as well"),
    "gre.proto": Field(ETHERTYPE, None, "protocol type; follows from what is inside"),
    "gre.key": Field(number(32), None, "key"),
    "gre.sequence_number": Field(number(32), None, "sequence number"),
    "gre.flags.checksum": Field(FLAG, False, "with a checksum"),
    "erspan": Field(TRUE, True, "ERSPAN in GRE"),
    "erspan.version": Field(whole(0, 2), 1, "0: type I, without a header; 1: type II; 2: type III"),
    "erspan.spanid": Field(number(10), 1, "session"),
    "erspan.vlan": Field(number(12), 0, "VLAN that the mirrored frame had"),
    "vxlan": Field(TRUE, True, "VXLAN"),
    "vxlan.vni": Field(number(24), 1, "VXLAN network"),
    "geneve": Field(TRUE, True, "Geneve"),
    "geneve.vni": Field(number(24), 1, "Geneve network"),
    "geneve.proto_type": Field(ETHERTYPE, None, "protocol type; follows from what is inside"),
    "gtp": Field(TRUE, True, "GTP-U"),
    "gtp.teid": Field(number(32), 1, "tunnel endpoint"),
    "gtp.message": Field(number(8), 255, "message type; a packet when left out"),
}

SHORT = {
    "vlan": "vlan.id",
    "mpls": "mpls.label",
    "pppoes": "pppoe.session_id",
    "arp.src.proto_ipv4": "arp.src",
    "arp.dst.proto_ipv4": "arp.dst",
    "ip.tos": "ip.dsfield",
    "ip.dscp": "ip.dsfield.dscp",
    "ip.ecn": "ip.dsfield.ecn",
    "ipv6.dscp": "ipv6.tclass.dscp",
    "ipv6.ecn": "ipv6.tclass.ecn",
    **{f"{layer}.{side}": f"{layer}.{side}port" for layer in ("tcp", "udp", "sctp") for side in ("src", "dst")},
    "tcp.flags.rst": "tcp.flags.reset",
    "tcp.flags.psh": "tcp.flags.push",
}
"""Other names that are taken for these."""

EITHER = {
    **{f"{layer}.addr": (f"{layer}.src", f"{layer}.dst") for layer in ("eth", "ip", "ipv6")},
    **{f"{layer}.port": (f"{layer}.src", f"{layer}.dst") for layer in ("tcp", "udp", "sctp")},
    "ip.host": ("ip.src", "ip.dst"),
}
"""Names that a display filter has for either end: a packet has two."""

GENERAL = ("input", "length", "cut", "hex")
"""Of the frame as a whole."""


@dataclass(slots=True)
class Fields:
    """What was written of a packet, read. `names`: each field as it was written, in this order."""

    given: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    inner: Fields | None = None

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name, FIELDS[name].default)

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def first_of(self, layer: str) -> str:
        """The name, as it was written, of the first field of a header; empty when there is none."""
        return next((written for name, written in self.names.items() if name.partition(".")[0] == layer), "")


def read_fields(written: Any, path: Path = ()) -> tuple[Fields, list[Wrong]]:
    """What was understood, and everything that was not; their `at` begins with `path`."""
    found, wrong = Fields(), []
    if not isinstance(written, dict) or not written:
        what = "an empty mapping" if isinstance(written, dict) else shown(written)
        return found, [Wrong(f"found {what}, expected fields such as {{ip.src: 10.1.0.5, tcp.dst: 443}}", path)]
    for word, value in written.items():
        at = (*path, word)
        name = SHORT.get(word, word)
        if word == "inner":
            if len(path) == MAX_INNER:
                wrong.append(Wrong(f"more than {MAX_INNER} packets in one another", at))
                continue
            inner, more = read_fields(value, at)
            found.inner = inner if inner.names or inner.inner else None
            wrong += more
        elif name not in FIELDS:
            wrong.append(Wrong(_unknown(word), at, key=True))
        elif path and name in GENERAL:
            wrong.append(Wrong(f"{word} is of the whole frame, not of a packet inside", at, key=True))
        elif name in found.given:
            wrong.append(Wrong(f"'{word}' and '{found.names[name]}' are the same field, leave one out", at, key=True))
        else:
            found.names[name] = word
            try:
                found.given[name] = FIELDS[name].kind.read(value)
            except Wrong as error:
                found.given[name] = FIELDS[name].default
                wrong.append(Wrong(str(error), (*at, *error.at)))
    return found, wrong


def _unknown(word: str) -> str:
    if word in EITHER:
        return f"'{word}' is either end, expected {' or '.join(EITHER[word])}"
    layer = word.partition(".")[0]
    near = [name for name in (*FIELDS, *SHORT) if name.partition(".")[0] == layer]
    return f"unknown field '{word}'{suggest(word, near, 'known are') if near else suggest(word, (*FIELDS, *SHORT, 'inner'))}"


def json_schema() -> dict[str, Any]:
    """What an editor is told of a packet."""
    known: dict[str, Any] = {name: {**f.kind.json, "description": f.what} for name, f in FIELDS.items()}
    known |= {short: known[name] for short, name in SHORT.items()}
    known["inner"] = {"type": "object", "description": "fields of the packet inside a tunnel"}
    return {"type": "object", "properties": known, "additionalProperties": False, "minProperties": 1}
