"""The slow twin: what a policy says of a packet, written apart from the kernels and the compiler, bytes by index and sets of numbers.

Trees come from the parser, whose meaning tests/stages/filter/test_libpcap.py holds against libpcap. Here: three values, maps, counters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from broker.config.policy import parse_expression
from broker.config.policy import tree as t
from broker.core.model import Config, Map
from tests.stages.filter import twin_layers
from tests.stages.filter.judging import Frame
from tests.stages.filter.twin_layers import CannotTellError, NoTunnelError, number

PORTS_OF = {6: 1, 17: 2, 132: 4}


def port_of(data: bytes, l3: int, node: t.Port, ethertype: int, libpcap: bool) -> int | None:
    """None: the packet has no such port."""
    if ethertype == 0x800:
        if PORTS_OF.get(number(data, l3 + 9, 1), 0) & node.protocols == 0:
            return None
        if number(data, l3 + 6, 2) % 8192:
            return hidden(libpcap)
        at = l3 + 4 * (data[l3] % 16)
    elif ethertype == 0x86DD:
        following = number(data, l3 + 6, 1)
        if following == 44 and not libpcap:
            return hidden(libpcap) if PORTS_OF.get(number(data, l3 + 40, 1), 0) & node.protocols else None
        if PORTS_OF.get(following, 0) & node.protocols == 0:
            return None
        at = l3 + 40
    else:
        return None
    return number(data, at + 2 * node.side, 2)


def hidden(libpcap: bool) -> None:
    if not libpcap:
        raise CannotTellError


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


def holds(node: t.Node, f: Frame, libpcap: bool) -> bool:
    """CannotTellError: undetermined, or for libpcap a read beyond the end, which rejects."""
    data = f.data
    if isinstance(node, t.Not):
        return not holds(node.item, f, libpcap)
    if isinstance(node, t.And):
        return all(holds(item, f, libpcap) for item in node.items)
    if isinstance(node, t.Or):
        return any(holds(item, f, libpcap) for item in node.items)
    if isinstance(node, t.Length):
        return node.first <= f.wirelen <= node.last
    if isinstance(node, t.Mac):
        return number(data, 6 if node.side == t.SOURCE else 0, 6) == node.value
    if isinstance(node, t.MacGroup):
        return number(data, 0, 1) % 2 == 1
    try:
        if isinstance(node, t.Compare):
            return twin_layers.compared(data, f.wirelen, node)
        ethertype, where = twin_layers.ethertype(data, node.layer), twin_layers.place(data, node.layer)
    except NoTunnelError:
        return False
    return holds_in(node, data, where.payload, where.type, ethertype, libpcap)


def holds_in(node: t.Node, data: bytes, l3: int, type_at: int, ethertype: int, libpcap: bool) -> bool:
    if isinstance(node, t.VlanId):
        return number(data, l3, 2) % 4096 == node.value
    if isinstance(node, t.ProtoChain):
        return twin_layers.in_chain(data, l3, node, ethertype)
    if isinstance(node, t.FirstFragment):
        if ethertype == 0x800 and number(data, l3 + 6, 2) % 8192:
            hidden(libpcap)
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
        port = port_of(data, l3, node, ethertype, libpcap)
        return port is not None and any(a <= port <= b for a, b in node.ranges)
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
        return any(a <= found <= b for a, b in node.ranges)
    if ethertype != 0x86DD:
        return False
    at = l3 + (8 if node.side == t.SOURCE else 24)
    if isinstance(node, t.Address6Set):
        return any(a <= number(data, at, 16) <= b for a, b in node.ranges)
    for bit in range(0, node.prefix, 32):
        drop = max(0, 32 - (node.prefix - bit))
        if number(data, at + bit // 8, 4) >> drop != (node.net >> 96 - bit & 0xFFFFFFFF) >> drop:
            return False
    return True


@dataclass
class Twin:
    config: Config
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rules = {m.name: [(r.action, parse_expression(r.expression, self.config.sets)) for r in m.rules] for m in self.config.maps}
        self.tool = {tool.name: tool.slot for tool in self.config.tools}
        self.input = {i.name: i.slot for i in self.config.inputs}

    def decide(self, m: Map, f: Frame) -> str:
        if m.inputs and f.input not in {self.input[name] for name in m.inputs}:
            return "none"
        libpcap = m.undetermined == "libpcap"
        for action, node in self.rules[m.name]:
            try:
                if holds(node, f, libpcap):
                    return action
            except CannotTellError:
                if not libpcap:
                    return "undetermined"
        return "none"

    def judge(self, f: Frame) -> tuple[set[int], str]:
        """Slots of the tools, and why."""
        wanted: set[int] = set()
        passed = dropped = withheld = cannot = False
        for m in self.config.maps:
            answer = self.decide(m, f)
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
