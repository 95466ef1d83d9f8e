"""What a packet shows where a test looks, in a few words: ``destination port is 80``.

`fields` are those of stages/judge/parsed.py, with `wire_bytes` and `captured_bytes`; they are about the outermost headers only, so of what
is inside a tunnel or behind a label nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.config.policy import tree
from broker.config.policy.describe import KINDS, PROTOCOLS, SIDES, TYPES
from broker.config.policy.names import SCTP, TCP, UDP
from broker.config.policy.tree import IP, IP6

_ENDS = ("source", "destination")
_WITH_PORTS = {6: TCP, 17: UDP, 132: SCTP}
_FIELDS = {
    tree.DSCP: ("dscp", "ip.dsfield.dscp", "ipv6.tclass.dscp"),
    tree.ECN: ("ecn", "ip.dsfield.ecn", "ipv6.tclass.ecn"),
    tree.TTL: ("ttl", "ip.ttl", "ipv6.hlim"),
    tree.FLOW_LABEL: ("flow label", "", "ipv6.flow"),
}
"""What it is called, and its names in IPv4 and in IPv6."""


def observed(test: tree.Test | bool, fields: Mapping[str, Any]) -> str:
    """Nothing where it cannot be said in a few words."""
    if isinstance(test, bool) or tree.INNER in getattr(test, "layer", ()):
        return ""
    match test:
        case tree.Mac():
            return f"{_ENDS[test.side]} is {fields['eth.dst' if test.side else 'eth.src']}" if "eth.src" in fields else ""
        case tree.Length():
            return f"it has {fields['wire_bytes']:,} bytes"
        case tree.MacGroup():
            return f"destination is {fields['eth.dst']}" if "eth.dst" in fields else ""
        case tree.Compare() | tree.Tunnel():
            return ""
    depth, tags = tree.tags(test.layer), fields.get("vlan.id", [])
    if depth < 0:
        return ""
    if isinstance(test, tree.VlanId | tree.Tagged):
        return f"vlan is {tags[depth]}" if depth < len(tags) else f"it has {_many_tags(len(tags))}"
    if isinstance(test, tree.Field) and test.field in (tree.PCP, tree.TAGS):
        return f"it has {_many_tags(len(tags))}" if depth == 0 else ""
    if depth != len(tags):
        return f"it has {_many_tags(len(tags))}"
    return _observed(test, fields)


def _many_tags(n: int) -> str:
    return f"{n or 'no'} VLAN tag{'' if n == 1 else 's'}"


def _kind(fields: Mapping[str, Any]) -> str:
    """What the packet is, for a test that is about something else."""
    number = fields.get("eth.type")
    if number is None:
        return "the frame ends before its ethertype"
    if number <= 1500:
        return "it is IEEE 802.3"
    return f"it is {TYPES.get(number, f'ethertype 0x{number:04x}')}"


def _observed(test: tree.Test, fields: Mapping[str, Any]) -> str:
    layer = next((word for word in KINDS if word in fields["layers"]), "")
    if fields.get("eth.type") == 0x8035:
        layer = "rarp"
    bit = KINDS.get(layer, 0)
    name = "arp" if layer == "rarp" else layer
    match test:
        case tree.Address4() | tree.Address4Set():
            return _address(name, test.side, fields) if bit & test.kinds else _kind(fields)
        case tree.Address6() | tree.Address6Set():
            return _address(name, test.side, fields) if bit == IP6 else _kind(fields)
        case tree.Multicast():
            return _address(name, tree.DESTINATION, fields) if bit & test.kind & (IP | IP6) else _kind(fields)
        case tree.Protocol():
            return _protocol(fields) if bit & test.kinds else _kind(fields)
        case tree.Port():
            if not _WITH_PORTS.get(_number(fields), 0) & test.protocols:
                return _protocol(fields) if bit & (IP | IP6) else _kind(fields)
            return _port(test, fields)
        case tree.Detail():
            if test.protocol != _number(fields):
                return _protocol(fields) if bit & test.kinds else _kind(fields)
            if "tcp.flags" in fields:
                return f"flags are {' '.join(fields['tcp.flags']) or 'none'}"
            found = fields.get("icmp.type", fields.get("icmpv6.type"))
            return _hidden(fields) if found is None else f"type is {found}"
        case tree.FirstFragment():
            return _hidden(fields) if fields["fragment"] != "none" else _kind(fields)
        case tree.EtherType() | tree.Llc():
            return _kind(fields)
        case tree.Field():
            return _field(test, bit, fields) if bit & test.kinds else _kind(fields)
    return ""


def _field(test: tree.Field, bit: int, fields: Mapping[str, Any]) -> str:
    if test.field == tree.FRAGMENT:
        return (
            "it is no fragment"
            if fields["fragment"] == "none"
            else f"it is {'an' if fields['fragment'] == 'atomic' else 'a'} " + (f"{fields['fragment']} fragment")
        )
    if test.field == tree.L4_PROTOCOL:
        return _protocol(fields) if bit == IP else ""
    if test.field not in _FIELDS:
        return ""
    name, of_ip, of_ip6 = _FIELDS[test.field]
    found = fields.get(of_ip if bit == IP else of_ip6)
    return _cut_off(fields) if found is None else f"{name} is {found}"


def _address(layer: str, side: int, fields: Mapping[str, Any]) -> str:
    found = fields.get(f"{layer}.{SIDES[side]}")
    return f"{_ENDS[side]} is {found}" if found else _cut_off(fields)


def _number(fields: Mapping[str, Any]) -> int:
    return int(fields.get("ip.proto", fields.get("ipv6.nxt", -1)))


def _protocol(fields: Mapping[str, Any]) -> str:
    number = _number(fields)
    return f"protocol is {PROTOCOLS.get(number, number)}" if number >= 0 else _kind(fields)


def _port(test: tree.Port, fields: Mapping[str, Any]) -> str:
    port = fields.get(f"{PROTOCOLS[_number(fields)]}.{SIDES[test.side]}port")
    return _hidden(fields) if port is None else f"{_ENDS[test.side]} port is {port}"


def _hidden(fields: Mapping[str, Any]) -> str:
    """Why a transport header is not there to look at."""
    fragment = fields["fragment"]
    if fragment in ("none", "first", "atomic"):
        return _cut_off(fields)
    return "its fragments contradict each other" if fragment == "conflict" else f"it is a {fragment} fragment"


def unseen(test: tree.Test | bool, fields: Mapping[str, Any]) -> str:
    """Why a test cannot be answered."""
    behind_ip = isinstance(test, tree.Port | tree.Detail | tree.FirstFragment | tree.Field | tree.Tunnel | tree.ProtoChain | tree.Compare)
    return _hidden(fields) if behind_ip and fields["ports"] != "cut" else _cut_off(fields)


def _cut_off(fields: Mapping[str, Any]) -> str:
    if fields["captured_bytes"] < fields["wire_bytes"]:
        return f"only {fields['captured_bytes']:,} of {fields['wire_bytes']:,} bytes were captured"
    return f"the frame ends after {fields['wire_bytes']:,} bytes"
