"""The slow twin: what a policy says of a packet, written apart from the kernels and the compiler, bytes by index and sets of numbers.

Trees come from the parser, whose meaning tests/stages/filter/test_libpcap.py holds against libpcap. Here: three values, maps, counters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from broker.config.policy import parse_expression
from broker.config.policy import tree as t
from broker.config.policy.simplify import simplify
from broker.core.model import Config, Map
from tests.stages.filter import inside, twin_layers
from tests.stages.filter.inside import HiddenError
from tests.stages.filter.judging import Frame
from tests.stages.filter.own import compared, field_holds, is_tunnel, packet_of, within
from tests.stages.filter.twin_layers import CannotTellError, NoTunnelError, number
from tests.stages.wire.reference import CONFLICT, SEEN, TINY, Reference, Shown

NOTHING: Shown = (0, 0, 0, 0, 0, 0)

PORTS_OF = {6: 1, 17: 2, 132: 4}


def port_of(data: bytes, l3: int, node: t.Port, ethertype: int, shown: Shown | None) -> int | None:
    """None: the packet has no such port. `shown`: what is known of its datagram; None: not asked, as libpcap does not."""
    if ethertype == 0x800:
        if PORTS_OF.get(number(data, l3 + 9, 1), 0) & node.protocols == 0:
            return None
        if shown is None and number(data, l3 + 6, 2) % 8192:
            return None
        if number(data, l3 + 6, 2) % 8192 or (shown is not None and shown[0] in (TINY, CONFLICT)):
            return shown_port(shown, node.side)
        at = l3 + 4 * (data[l3] % 16)
    elif ethertype == 0x86DD:
        following = number(data, l3 + 6, 1)
        if following == 44 and shown is not None:
            return shown_port(shown, node.side) if PORTS_OF.get(number(data, l3 + 40, 1), 0) & node.protocols else None
        if PORTS_OF.get(following, 0) & node.protocols == 0:
            return None
        at = l3 + 40
    else:
        return None
    return number(data, at + 2 * node.side, 2)


def parsed_at(data: bytes, l3: int, shown: Shown | None) -> Shown | None:
    """What is known of the datagram is about the header behind all tags."""
    at = 14
    while at < 30 and data[at - 2 : at] in (b"\x81\0", b"\x88\xa8", b"\x91\0"):
        at += 4
    return NOTHING if shown is not None and at != l3 else shown


def shown_port(shown: Shown | None, side: int) -> int:
    if shown is None or shown[1 + 2 * side] != SEEN:
        raise CannotTellError
    return shown[2 + 2 * side]


def protocol_is(data: bytes, l3: int, node: t.Protocol, ethertype: int) -> bool:
    if ethertype == 0x800 and node.kinds & t.IP:
        return number(data, l3 + 9, 1) == node.value
    if ethertype == 0x86DD and node.kinds & t.IP6:
        following = number(data, l3 + 6, 1)
        return following == node.value or (following == 44 and number(data, l3 + 40, 1) == node.value)
    return False


def address4(data: bytes, l3: int, node: t.Address4 | t.Address4Set, ethertype: int) -> int | None:
    kind = {0x800: t.IP, 0x806: t.ARP, 0x8035: t.RARP}.get(ethertype, 0)
    if not kind & node.kinds:
        return None
    at = (12, 16)[node.side] if kind == t.IP else (14, 24)[node.side]
    return number(data, l3 + at, 4)


def detail_holds(node: t.Detail, data: bytes, l3: int, ethertype: int, shown: Shown | None) -> bool:
    kind, six = {0x800: t.IP, 0x86DD: t.IP6}.get(ethertype, 0), ethertype == 0x86DD
    if not kind & node.kinds:
        return False
    protocol, at = number(data, l3 + (6 if six else 9), 1), l3 + (40 if six else 4 * (data[l3] % 16))
    of_row = False
    if six and protocol == 44:
        protocol, of_row = number(data, l3 + 40, 1), True
        if shown is None:
            return False
    if protocol != node.protocol:
        return False
    if not six and number(data, l3 + 6, 2) % 8192:
        if shown is None:
            return False
        of_row = True
    if not six and shown is not None and shown[0] in (TINY, CONFLICT):
        of_row = True
    if of_row:
        if shown is None or shown == NOTHING or shown[5] >= 768:
            raise CannotTellError
        return within(shown[5], node.ranges)
    base = {1: 256, 58: 512}.get(protocol, 0)
    return within(base + number(data, at + (13 if protocol == 6 else 0), 1), node.ranges)


def answer(node: t.Node, f: Frame, shown: Shown | None) -> bool | None:
    """None: cannot be told. To libpcap (`shown` None) that ends it all (CannotTellError); to us FALSE AND it is FALSE, TRUE OR it TRUE."""
    if isinstance(node, t.Not):
        inner = answer(node.item, f, shown)
        return None if inner is None else not inner
    if isinstance(node, t.And | t.Or):
        decides = isinstance(node, t.Or)
        unknown = False
        for item in node.items:
            one = answer(item, f, shown)
            if one is decides:
                return decides
            unknown |= one is None
        return None if unknown else not decides
    try:
        return holds(node, f, shown)
    except NoTunnelError:
        return False
    except HiddenError:
        return False if shown is None else None
    except CannotTellError:
        if shown is None:
            raise
        return None


def holds(node: t.Node, f: Frame, shown: Shown | None) -> bool:
    """A single test. CannotTellError: undetermined, or for libpcap a read beyond the end, which rejects."""
    assert not isinstance(node, t.Not | t.And | t.Or)
    if isinstance(node, t.Length):
        return node.first <= f.wirelen <= node.last
    if isinstance(node, t.Compare):
        return compared(f.data, f.wirelen, node, shown is None)
    packet = packet_of(f.data, node.layer)
    if packet is None:
        return False
    data, tags = packet.data, len(node.layer) - node.layer.count(t.INNER)
    if isinstance(node, t.Mac):
        return packet.ethertype is None and number(data, 6 if node.side == t.SOURCE else 0, 6) & node.mask == node.value
    if isinstance(node, t.MacGroup):
        return packet.ethertype is None and number(data, 0, 1) % 2 == 1
    if t.INNER not in node.layer:
        ethertype, where = twin_layers.ethertype(data, node.layer), twin_layers.place(data, node.layer)
        return holds_in(node, packet, where.payload, where.type, ethertype, shown)
    if packet.ethertype is not None and tags:
        return False
    l3 = 14 + 4 * tags if packet.ethertype is None else 0
    ethertype = number(data, l3 - 2, 2) if packet.ethertype is None else inside.network(packet)[0]
    return holds_in(node, packet, l3, l3 - 2, ethertype, shown and NOTHING)


def holds_in(node: t.Node, packet: inside.Packet, l3: int, type_at: int, ethertype: int, shown: Shown | None) -> bool:
    data = packet.data
    if isinstance(node, t.VlanId):
        return within(number(data, l3, 2) % 4096, node.ranges)
    if isinstance(node, t.Tunnel):
        return is_tunnel(inside.outer(packet), node)
    if isinstance(node, t.Field):
        return field_holds(node, ethertype, data[l3:])
    if isinstance(node, t.Detail):
        return detail_holds(node, data, l3, ethertype, parsed_at(data, l3, shown))
    if isinstance(node, t.ProtoChain):
        return twin_layers.in_chain(data, l3, node, ethertype)
    if isinstance(node, t.FirstFragment):
        if ethertype == 0x800 and number(data, l3 + 6, 2) % 8192:
            if shown is not None:
                raise CannotTellError
            return False
        return True
    if isinstance(node, t.EtherType):
        return ethertype == node.value
    if isinstance(node, t.Tagged):
        return ethertype in (0x8100, 0x88A8, 0x9100)
    if isinstance(node, t.Llc):
        return ethertype <= 1500 and (number(data, l3, 2) if node.wide else number(data, type_at + 2, 1)) == node.value
    if isinstance(node, t.Protocol):
        return protocol_is(data, l3, node, ethertype)
    if isinstance(node, t.Port):
        port = port_of(data, l3, node, ethertype, parsed_at(data, l3, shown))
        return port is not None and within(port, node.ranges)
    if isinstance(node, t.Multicast):
        if ethertype != (0x800 if node.kind == t.IP else 0x86DD):
            return False
        return number(data, l3 + 16, 1) >= 224 if node.kind == t.IP else number(data, l3 + 24, 1) == 255
    if isinstance(node, t.Address4 | t.Address4Set):
        if isinstance(node, t.Address4) and node.mask == 0:
            return {0x800: 1, 0x806: 2, 0x8035: 4}.get(ethertype, 0) & node.kinds != 0
        found = address4(data, l3, node, ethertype)
        if found is None:
            return False
        if isinstance(node, t.Address4):
            return found & node.mask == node.net
        return within(found, node.ranges)
    if ethertype != 0x86DD:
        return False
    at = l3 + (8 if node.side == t.SOURCE else 24)
    if isinstance(node, t.Address6Set):
        return within(number(data, at, 16), node.ranges)
    for bit in range(0, node.prefix, 32):
        drop = max(0, 32 - (node.prefix - bit))
        if number(data, at + bit // 8, 4) >> drop != (node.net >> 96 - bit & 0xFFFFFFFF) >> drop:
            return False
    return True


@dataclass
class Twin:
    config: Config
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    by_rule: Counter[tuple[str, int, str]] = field(default_factory=Counter)  # (map, rule from 0, packets | bytes | undetermined_packets)
    reference: Reference = field(default_factory=Reference)

    def __post_init__(self) -> None:
        self.rules = {m.name: [(r.action, self.tree(r.expression)) for r in m.rules] for m in self.config.maps}
        self.tool = {tool.name: tool.slot for tool in self.config.tools}
        self.input = {i.name: i.slot for i in self.config.inputs}

    def tree(self, expression: str) -> t.Node:
        """Simplified: a TCP flag or ICMP type of a later fragment is that of its first, also where bytes of the header were written."""
        return simplify(parse_expression(expression, self.config.sets))

    def rule_counts(self, name: str) -> list[tuple[int, int, int]]:
        """(packets, bytes, undetermined packets) of each rule of a map."""
        of = ("packets", "bytes", "undetermined_packets")
        return [tuple(self.by_rule[name, at, what] for what in of) for at in range(len(self.rules[name]))]  # type: ignore[misc]

    def decide(self, m: Map, f: Frame, shown: Shown) -> str:
        if m.inputs and f.input not in {self.input[name] for name in m.inputs}:
            return "none"
        libpcap = m.undetermined == "libpcap"
        for at, (action, node) in enumerate(self.rules[m.name]):
            try:
                matches = answer(node, f, None if libpcap else shown)
            except CannotTellError:
                continue
            if matches is None:
                self.by_rule[m.name, at, "undetermined_packets"] += 1
                return "undetermined"
            if matches:
                self.by_rule[m.name, at, "packets"] += 1
                self.by_rule[m.name, at, "bytes"] += f.wirelen
                return action
        return "none"

    def judge(self, f: Frame) -> tuple[set[int], str]:
        """Slots of the tools, and why."""
        wanted: set[int] = set()
        found = self.reference.judge(f.data, 0, f.input)
        passed = dropped = withheld = cannot = False
        for m in self.config.maps:
            answer = self.decide(m, f, found.shown if found else NOTHING)
            delivers = answer == "pass" or (answer == "undetermined" and m.undetermined == "deliver")
            passed |= delivers
            dropped |= answer == "drop"
            cannot |= answer == "undetermined"
            withheld |= answer == "undetermined" and not delivers
            if delivers:
                wanted |= {self.tool[name] for name in m.to}
            word = {"pass": "passed", "drop": "dropped", "undetermined": "undetermined"}.get(answer)
            if word:
                self.counts[f"map_{word}_packets", m.slot] += 1
                if answer != "undetermined":
                    self.counts[f"map_{word}_bytes", m.slot] += f.wirelen
        cause = "forwarded" if passed else "dropped_rule" if dropped else "dropped_undetermined" if withheld else "filtered"
        if cause == "filtered" and self.config.collector:
            cause, wanted = "collected", {self.tool[name] for name in self.config.collector}
        self.counts["judged_packets", 0] += 1
        self.counts["undetermined_packets", 0] += cannot
        self.counts["forwarded_packets", 0] += bool(wanted)
        if cause != "forwarded":
            self.counts[cause if cause.startswith("dropped") else f"{cause}_packets", 0] += 1
        for slot in wanted:
            self.counts["wanted_frames", slot] += 1
        return wanted, cause
