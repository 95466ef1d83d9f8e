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

SIDES = ("src", "dst")
KINDS = {"ip": IP, "arp": ARP, "rarp": RARP, "ipv6": IP6}
_ALL4 = IP | ARP | RARP
_KIND_WORDS = {_ALL4: "", IP | IP6: "", IP: "ip ", ARP: "arp ", RARP: "rarp ", IP6: "ip6 "}
TYPES = {number: name for name, number in ETHERTYPES.items() if number > 0x5FF}
PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 58: "icmp6", 89: "ospf", 103: "pim", 132: "sctp"}
_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
_WHOLE_MAC = (1 << 48) - 1
_FIELDS = ("dscp", "ecn", "ttl", "flowlabel", "fragment", "ext", "l4", "vlan pcp", "vlan depth")
FRAGMENT_STATES = ("none", "first", "later", "atomic")
_TUNNELS = (
    ("any tunnel", ""), ("gre", "key"), ("erspan", "id"), ("vxlan", "vni"), ("geneve", "vni"), ("gtp", "teid"), ("mpls", "label"),
    ("ipip", ""),
)  # fmt: skip
_BASES = ("ether", "behind the link header", "behind the ip header", "behind the ip6 header", "l4", "payload")
_STEPS = {tree.VLAN: "tag", tree.MPLS: "label", tree.PPPOE: "PPPoE header", tree.GENEVE: "Geneve header"}
_SHOWN = 6  # of the ranges of a set


def describe(test: tree.Test | bool) -> str:
    """In the words of the filter language, as far as it has any."""
    if isinstance(test, bool):
        return "any packet" if test else "no packet"
    return _words(test) + _behind(getattr(test, "layer", ()))


def _behind(layer: tree.Layer) -> str:
    """`` inside the tunnel behind 2 tags``."""
    n_inner = layer.count(tree.INNER)
    inside = ["inside the tunnel" if n_inner == 1 else f"inside {n_inner} tunnels"] if n_inner else []
    counts = {step: layer.count(step) for step in dict.fromkeys(layer) if step != tree.INNER}
    steps = " and ".join(f"{n} {_STEPS[step]}{'s' if n > 1 else ''}" for step, n in counts.items())
    return "".join(f" {part}" for part in (*inside, f"behind {steps}" if steps else "") if part)


def _words(test: tree.Test) -> str:
    match test:
        case tree.EtherType():
            return TYPES.get(test.value, f"ether proto 0x{test.value:04x}")
        case tree.Llc():
            return f"llc {'dsap and ssap' if test.wide else 'dsap'} 0x{test.value:02x}"
        case tree.Tagged():
            return "vlan"
        case tree.VlanId():
            return f"vlan {_ranges(test.ranges, str)}"
        case tree.Address4():
            return f"{_kinds(test.kinds)}{SIDES[test.side]} {_net4(test.net, test.mask)}"
        case tree.Address6():
            host = test.prefix == 128
            return f"ip6 {SIDES[test.side]} {'host' if host else 'net'} {IPv6Address(test.net)}{'' if host else f'/{test.prefix}'}"
        case tree.Address4Set():
            return f"{_kinds(test.kinds)}{SIDES[test.side]} {_ranges(test.ranges, _ip)}"
        case tree.Address6Set():
            return f"ip6 {SIDES[test.side]} {_ranges(test.ranges, lambda value: str(IPv6Address(value)))}"
        case tree.Protocol():
            return f"{_kinds(test.kinds)}proto {PROTOCOLS.get(test.value, test.value)}"
        case tree.Port():
            return f"{_port_protocols(test.protocols)}{SIDES[test.side]} port {_ranges(test.ranges, str)}"
        case tree.Mac():
            return f"ether {SIDES[test.side]} {_mac(test.value, test.mask)}"
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
        case tree.Field():
            return _field(test)
        case tree.Tunnel():
            kind, of_id = _TUNNELS[test.kind]
            return f"inner {kind}" + (f" {of_id} {_ranges(test.ranges, str)}" if test.ranges is not None else "")
        case tree.ProtoChain():
            return f"{_kinds(test.kinds)}protochain {PROTOCOLS.get(test.value, test.value)}"
        case tree.Compare():
            return f"{_arithmetic(test.left)} {test.relation} {_arithmetic(test.right)}"


def _mac(value: int, mask: int) -> str:
    text, under = (number.to_bytes(6, "big").hex(":") for number in (value, mask))
    return f"host {text}" if mask == _WHOLE_MAC else f"host {text}/{under}"


def _field(test: tree.Field) -> str:
    names = FRAGMENT_STATES if test.field == tree.FRAGMENT else ()
    kinds = "" if test.field in (tree.PCP, tree.TAGS, tree.FLOW_LABEL, tree.EXTENSION) else _kinds(test.kinds)
    return f"{kinds}{_FIELDS[test.field]} {_ranges(test.ranges, lambda value: names[value] if names else str(value))}"


def _length(first: int, last: int) -> str:
    if last >= MAX_FRAME_BYTES:
        return f"len >= {first}"
    return f"len = {first}" if first == last else f"len {first}-{last}" if first else f"len <= {last}"


def _ip(value: int) -> str:
    return ".".join(map(str, value.to_bytes(4, "big")))


def _kinds(kinds: int) -> str:
    return _KIND_WORDS[kinds] if kinds in _KIND_WORDS else "/".join(word for word, bit in KINDS.items() if kinds & bit) + " "


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
        return f"{PROTOCOLS[test.protocol]} type {_ranges(tuple((a - base, b - base) for a, b in test.ranges), str)}"
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
