"""Tests in words: as they would be written, and what a packet shows where they look.

tcp dst port 5432    destination port is 80
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import Any

from broker.config.policy import tree
from broker.config.policy.image import FALSE, TRUE, UNDETERMINED
from broker.config.policy.names import ETHERTYPES, SCTP, TCP, UDP
from broker.config.policy.tree import ARP, IP, IP6, RARP, And, Node, Not, Or
from broker.core.layout import MAX_FRAME_BYTES

ANSWERS = {FALSE: "false", UNDETERMINED: "undetermined", TRUE: "true"}
"""Of a test or a rule."""

_SIDES = ("src", "dst")
_ENDS = ("source", "destination")
_KINDS = {"ip": IP, "arp": ARP, "rarp": RARP, "ipv6": IP6}
_ALL4 = IP | ARP | RARP
_KIND_WORDS = {_ALL4: "", IP | IP6: "", IP: "ip ", ARP: "arp ", RARP: "rarp ", IP6: "ip6 "}
_TYPES = {number: name for name, number in ETHERTYPES.items() if number > 0x5FF}
_PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 58: "icmp6", 89: "ospf", 103: "pim", 132: "sctp"}
_WITH_PORTS = {6: TCP, 17: UDP, 132: SCTP}
_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
_BASES = ("ether", "behind the link header", "behind the ip header", "behind the ip6 header", "transport", "payload")
_STEPS = {tree.VLAN: "tag", tree.MPLS: "label", tree.PPPOE: "PPPoE header", tree.GENEVE: "Geneve header", tree.INNER: "tunnel header"}
_SHOWN = 6  # of the ranges of a set


def describe(test: tree.Test | bool) -> str:
    """In the words of the filter language, as far as it has any."""
    if isinstance(test, bool):
        return "any packet" if test else "no packet"
    return _words(test) + _behind(getattr(test, "layer", ()))


def _behind(layer: tree.Layer) -> str:
    """`` behind 2 tags``."""
    counts = {step: layer.count(step) for step in dict.fromkeys(layer)}
    found = " and ".join(f"{n} {_STEPS[step]}{'s' if n > 1 else ''}" for step, n in counts.items())
    return f" behind {found}" if found else ""


def _words(test: tree.Test) -> str:
    match test:
        case tree.EtherType():
            return _TYPES.get(test.value, f"ether proto 0x{test.value:04x}")
        case tree.Llc():
            return f"llc {'dsap and ssap' if test.wide else 'dsap'} 0x{test.value:02x}"
        case tree.Tagged():
            return "vlan"
        case tree.VlanId():
            return f"vlan {test.value}"
        case tree.Address4():
            return f"{_kinds(test.kinds)}{_SIDES[test.side]} {_net4(test.net, test.mask)}"
        case tree.Address6():
            host = test.prefix == 128
            return f"ip6 {_SIDES[test.side]} {'host' if host else 'net'} {IPv6Address(test.net)}{'' if host else f'/{test.prefix}'}"
        case tree.Address4Set():
            return f"{_kinds(test.kinds)}{_SIDES[test.side]} {_ranges(test.ranges, _ip)}"
        case tree.Address6Set():
            return f"ip6 {_SIDES[test.side]} {_ranges(test.ranges, lambda value: str(IPv6Address(value)))}"
        case tree.Protocol():
            return f"{_kinds(test.kinds)}proto {_PROTOCOLS.get(test.value, test.value)}"
        case tree.Port():
            return f"{_port_protocols(test.protocols)}{_SIDES[test.side]} port {_ranges(test.ranges, str)}"
        case tree.Mac():
            return f"ether {_SIDES[test.side]} host {test.value.to_bytes(6, 'big').hex(':')}"
        case tree.MacGroup():
            return "ether multicast"
        case tree.Multicast():
            return f"{_kinds(test.kind)}multicast"
        case tree.Length():
            return _length(test.first, test.last)
        case tree.Detail():
            return _detail(test)
        case tree.FirstFragment():
            return "first fragment"
        case tree.ProtoChain():
            return f"{_kinds(test.kinds)}protochain {_PROTOCOLS.get(test.value, test.value)}"
        case tree.Compare():
            return f"{_arithmetic(test.left)} {test.relation} {_arithmetic(test.right)}"


def _length(first: int, last: int) -> str:
    if last >= MAX_FRAME_BYTES:
        return f"len >= {first}"
    return f"len = {first}" if first == last else f"len {first}-{last}" if first else f"len <= {last}"


def _ip(value: int) -> str:
    return ".".join(map(str, value.to_bytes(4, "big")))


def _kinds(kinds: int) -> str:
    return _KIND_WORDS[kinds] if kinds in _KIND_WORDS else "/".join(word for word, bit in _KINDS.items() if kinds & bit) + " "


def _net4(net: int, mask: int) -> str:
    if mask == 0xFFFFFFFF:
        return f"host {_ip(net)}"
    length = mask.bit_count()
    if mask == 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF:
        return f"net {_ip(net)}/{length}"
    return f"net {_ip(net)} mask {_ip(mask)}"


def _port_protocols(protocols: int) -> str:
    words = [word for word, bit in (("tcp", TCP), ("udp", UDP), ("sctp", SCTP)) if protocols & bit]
    return "" if len(words) == 3 else "/".join(words) + " "


def _ranges(ranges: tuple[tuple[int, int], ...], shown: Any) -> str:
    parts = [shown(first) if first == last else f"{shown(first)}-{shown(last)}" for first, last in ranges[:_SHOWN]]
    if len(ranges) == 1:
        return parts[0]
    return "{" + ", ".join(parts) + (f" and {len(ranges) - _SHOWN:,} more" if len(ranges) > _SHOWN else "") + "}"


def _detail(test: tree.Detail) -> str:
    if test.protocol != 6:
        base = 512 if test.protocol == 58 else 256
        return f"{_PROTOCOLS[test.protocol]} type {_ranges(tuple((a - base, b - base) for a, b in test.ranges), str)}"
    values = [value for first, last in test.ranges for value in range(first, last + 1)]
    every = [bit for bit in range(8) if values and all(value >> bit & 1 for value in values)]
    never = [bit for bit in range(8) if not any(value >> bit & 1 for value in values)]
    if len(values) == 1 << 8 - len(every) - len(never):  # nothing but these flags is asked for
        parts = [_FLAGS[bit] for bit in every] + [f"not {_FLAGS[bit]}" for bit in never]
        return "tcp flags " + (" and ".join(parts) or "any")
    return f"tcp flags {_ranges(test.ranges, lambda value: f'0x{value:02x}')}"


def _arithmetic(number: tree.Arithmetic) -> str:
    match number:
        case tree.Number():
            return str(number.value)
        case tree.WireLength():
            return "len"
        case tree.Load():
            base = _BASES[number.base] if number.base < len(_BASES) else "ethertype"
            size = f":{number.size}" if number.size > 1 else ""
            return f"{base}[{_arithmetic(number.index)}{size}]{_behind(number.layer)}"
        case tree.Binary():
            return f"({_arithmetic(number.left)} {number.operator} {_arithmetic(number.right)})"


def reasons(node: Node, answers: Mapping[tree.Test | bool, int]) -> tuple[int, list[tree.Test | bool]]:
    """The answer of an expression and the tests that it comes from; `answers` has those that were asked."""
    if isinstance(node, Not):
        answer, found = reasons(node.item, answers)
        return TRUE - answer, found
    if not isinstance(node, And | Or):
        return answers[node], [node]
    if not node.items:
        whole = isinstance(node, And)
        return answers[whole], [whole]
    decides = FALSE if isinstance(node, And) else TRUE
    worst = TRUE - decides
    since: list[tree.Test | bool] = []
    for item in node.items:
        answer, found = reasons(item, answers)
        if answer == decides:
            return answer, found
        if answer == UNDETERMINED and worst != UNDETERMINED:
            worst, since = UNDETERMINED, []  # those that are told do not matter any more
        if answer == worst:
            since += found
    return worst, since


def observed(test: tree.Test | bool, fields: Mapping[str, Any]) -> str:
    """What a packet shows where the test looks, or nothing where that cannot be said in a few words. `fields` as in
    stages/judge/parsed.py, and `wire_bytes`, `captured_bytes`."""
    if isinstance(test, bool):
        return ""
    match test:
        case tree.Mac():
            return f"{_ENDS[test.side]} is {fields['eth.dst' if test.side else 'eth.src']}" if "eth.src" in fields else ""
        case tree.Length():
            return f"it has {fields['wire_bytes']:,} bytes"
        case tree.MacGroup():
            return f"destination is {fields['eth.dst']}" if "eth.dst" in fields else ""
        case tree.Compare():
            return ""
    depth, tags = tree.tags(test.layer), fields.get("vlan.id", [])
    if depth < 0:
        return ""
    if isinstance(test, tree.VlanId | tree.Tagged):
        return f"vlan is {tags[depth]}" if depth < len(tags) else f"it has {_many_tags(len(tags))}"
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
    return f"it is {_TYPES.get(number, f'ethertype 0x{number:04x}')}"


def _observed(test: tree.Test, fields: Mapping[str, Any]) -> str:
    layer = next((word for word in _KINDS if word in fields["layers"]), "")
    if fields.get("eth.type") == 0x8035:
        layer = "rarp"
    bit = _KINDS.get(layer, 0)
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
    return ""


def _address(layer: str, side: int, fields: Mapping[str, Any]) -> str:
    found = fields.get(f"{layer}.{_SIDES[side]}")
    return f"{_ENDS[side]} is {found}" if found else _cut_off(fields)


def _number(fields: Mapping[str, Any]) -> int:
    return int(fields.get("ip.proto", fields.get("ipv6.nxt", -1)))


def _protocol(fields: Mapping[str, Any]) -> str:
    number = _number(fields)
    return f"protocol is {_PROTOCOLS.get(number, number)}" if number >= 0 else _kind(fields)


def _port(test: tree.Port, fields: Mapping[str, Any]) -> str:
    port = fields.get(f"{_PROTOCOLS[_number(fields)]}.{_SIDES[test.side]}port")
    return _hidden(fields) if port is None else f"{_ENDS[test.side]} port is {port}"


def _hidden(fields: Mapping[str, Any]) -> str:
    """Why a transport header is not there to look at."""
    fragment = fields["fragment"]
    if fragment in ("none", "first", "atomic"):
        return _cut_off(fields)
    return "its fragments contradict each other" if fragment == "conflict" else f"it is a {fragment} fragment"


def unseen(test: tree.Test | bool, fields: Mapping[str, Any]) -> str:
    """Why a test cannot be answered."""
    behind_ip = isinstance(test, tree.Port | tree.Detail | tree.FirstFragment | tree.ProtoChain | tree.Compare)
    return _hidden(fields) if behind_ip and fields["ports"] != "cut" else _cut_off(fields)


def _cut_off(fields: Mapping[str, Any]) -> str:
    if fields["captured_bytes"] < fields["wire_bytes"]:
        return f"only {fields['captured_bytes']:,} of {fields['wire_bytes']:,} bytes were captured"
    return f"the frame ends after {fields['wire_bytes']:,} bytes"
