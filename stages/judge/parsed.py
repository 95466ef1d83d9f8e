"""What the parser found in a packet, as fields by the names that Wireshark has for them; what it did not find is not there.

| field | value |
|---|---|
| layers | such as ["eth", "vlan", "ip", "tcp"] |
| eth.src, eth.dst, ip.src, ip.dst, ipv6.src, ipv6.dst, arp.src, arp.dst | text |
| eth.type, ip.proto, ipv6.nxt, LAYER.srcport, LAYER.dstport, icmp.type, icmpv6.type | numbers; the ethertype is that behind the tags |
| ip.ttl, ip.dsfield.dscp, ip.dsfield.ecn; ipv6.hlim, ipv6.tclass.dscp, ipv6.tclass.ecn, ipv6.flow | numbers |
| vlan.id, vlan.tpid | a number for each tag |
| tcp.flags | such as ["syn", "ack"] |
| fragment | none, first, later, followed, atomic, tiny, conflict: see stages/wire/key.py |
| ports | none, cut (off), hidden (by the fragment), seen, as the destination port is |
| headers_cut | a fixed header is not wholly there |
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import numpy as np

from stages.wire.headers import (
    ARP_DESTINATION,
    ARP_SOURCE,
    ETHERNET_BYTES,
    ETHERTYPE,
    ICMP,
    ICMP6,
    IP6_DESTINATION,
    IP6_SOURCE,
    IP_BYTES,
    IP_DESTINATION,
    IP_SOURCE,
    SCTP,
    TAG_BYTES,
    TCP,
    UDP,
)
from stages.wire.key import (
    DETAIL_NONE,
    FRAGMENT6_AT,
    ICMP6_AT,
    ICMP_AT,
    IP6_AT,
    KIND_ARP,
    KIND_IP,
    KIND_IP6,
    NOT_IP,
    PORT_SEEN,
)

FRAGMENTS = ("none", "first", "later", "followed", "atomic", "tiny", "conflict")
PORTS = ("none", "cut", "hidden", "seen")
FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
_LAYERS = {
    KIND_IP: ("ip", 4, IP_SOURCE, IP_DESTINATION),
    KIND_IP6: ("ipv6", 16, IP6_SOURCE, IP6_DESTINATION),
    KIND_ARP: ("arp", 4, ARP_SOURCE, ARP_DESTINATION),
}
"""Name, bytes of an address, where both are."""

_IP_TTL, _IP6_HOP_LIMIT = 8, 7

TRANSPORTS = {TCP: "tcp", UDP: "udp", SCTP: "sctp", ICMP: "icmp", ICMP6: "icmpv6"}


def fields(row: np.void, frame: bytes) -> dict[str, Any]:
    """`row`: KEY of the frame."""
    found: dict[str, Any] = {"layers": []}
    if len(frame) >= ETHERTYPE:
        found["layers"].append("eth")
        found["eth.dst"], found["eth.src"] = (frame[at : at + 6].hex(":") for at in (0, 6))
    _tags(found, int(row["n_tags"]), frame)
    if len(frame) >= ETHERNET_BYTES:
        found["eth.type"] = int(row["ethertype"])
    kind, protocol = int(row["kind"]), int(row["protocol"])
    l3 = ETHERNET_BYTES + TAG_BYTES * int(row["n_tags"])
    if kind in _LAYERS:
        name, width, source_at, destination_at = _LAYERS[kind]
        found["layers"].append(name)
        for end, at in (("src", l3 + source_at), ("dst", l3 + destination_at)):
            if at + width <= len(frame):
                found[f"{name}.{end}"] = str(ip_address(frame[at : at + width]))
    _traffic_class(found, kind, frame[l3:])
    if kind == KIND_IP6:
        protocol -= FRAGMENT6_AT if protocol >= FRAGMENT6_AT else IP6_AT
    if kind in (KIND_IP, KIND_IP6) and int(row["protocol"]) != NOT_IP:
        found["ip.proto" if kind == KIND_IP else "ipv6.nxt"] = protocol
        _transport(found, row, protocol)
    found["fragment"] = FRAGMENTS[int(row["fragment"])]
    found["ports"] = PORTS[int(row["destination_state"])]
    found["headers_cut"] = bool(row["odd"])
    return found


def _traffic_class(found: dict[str, Any], kind: int, header: bytes) -> None:
    if kind == KIND_IP and len(header) >= IP_BYTES:
        found["ip.dsfield.dscp"], found["ip.dsfield.ecn"], found["ip.ttl"] = header[1] >> 2, header[1] & 3, header[_IP_TTL]
    elif kind == KIND_IP6 and len(header) > _IP6_HOP_LIMIT:
        word = int.from_bytes(header[:4], "big")
        found["ipv6.tclass.dscp"], found["ipv6.tclass.ecn"], found["ipv6.flow"] = word >> 22 & 63, word >> 20 & 3, word & 0xFFFFF
        found["ipv6.hlim"] = header[_IP6_HOP_LIMIT]


def _tags(found: dict[str, Any], n_tags: int, frame: bytes) -> None:
    whole = [at for at in (ETHERTYPE + TAG_BYTES * tag for tag in range(n_tags)) if at + TAG_BYTES <= len(frame)]
    if whole:
        found["layers"] += ["vlan"] * len(whole)
        found["vlan.tpid"] = [int.from_bytes(frame[at : at + 2], "big") for at in whole]
        found["vlan.id"] = [int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF for at in whole]


def _transport(found: dict[str, Any], row: np.void, protocol: int) -> None:
    name, detail = TRANSPORTS.get(protocol), int(row["detail"])
    if name is None:
        return
    found["layers"].append(name)
    for side, word in (("source", "srcport"), ("destination", "dstport")):
        if int(row[f"{side}_state"]) == PORT_SEEN:
            found[f"{name}.{word}"] = int(row[f"{side}_port"])
    if detail >= DETAIL_NONE:
        return
    if protocol == TCP:
        found["tcp.flags"] = [flag for bit, flag in enumerate(FLAGS) if detail >> bit & 1]
    elif protocol in (ICMP, ICMP6):
        found[f"{name}.type"] = detail - (ICMP6_AT if protocol == ICMP6 else ICMP_AT)
