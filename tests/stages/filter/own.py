"""The slow twin's answers to our own tests, and to what is asked of a packet in a tunnel."""

from __future__ import annotations

from broker.config.policy import tree as t
from tests.stages.filter import inside
from tests.stages.filter.inside import HiddenError, Packet
from tests.stages.filter.twin_layers import CannotTellError, NoTunnelError, loaded, number


def packet_of(data: bytes, layer: t.Layer) -> Packet | None:
    """What the tunnels that the layer steps into carry; None: there is no such."""
    packet: Packet | None = Packet(data)
    for _ in range(layer.count(t.INNER)):
        packet = inside.inside(packet) if packet else None
    return packet


def within(value: int, ranges: t.Ranges) -> bool:
    return any(first <= value <= last for first, last in ranges)


def is_tunnel(found: inside.Outer | None, node: t.Tunnel) -> bool:
    if found is None or (node.kind not in (t.ANY_TUNNEL, found.kind) and (node.kind, found.kind) != (t.GRE, t.ERSPAN)):
        return False
    if node.ranges is None:
        return True
    for value in found.ids[node.kind] if found.ids[node.kind] is not None else [-1]:  # type: ignore[union-attr]
        if value < 0:
            raise CannotTellError
        if within(value, node.ranges):
            return True
    return False


def field_holds(node: t.Field, ethertype: int, data: bytes) -> bool:
    """`data`: behind the ethertype."""
    if node.field == t.TAGS:
        n = 0
        while n < 8 and ethertype in inside.TAGS:
            ethertype, data, n = number(data, 2, 2), data[4:], n + 1
        return within(n, node.ranges)
    if node.field == t.PCP:
        return ethertype in inside.TAGS and within(number(data, 0, 1) >> 5, node.ranges)
    if not {0x800: t.IP, 0x86DD: t.IP6}.get(ethertype, 0) & node.kinds:
        return False
    six = ethertype == 0x86DD
    if node.field == t.EXTENSION:
        return has_extension(data, node.ranges)
    return within(field_value(node.field, data, six), node.ranges)


def has_extension(ip: bytes, ranges: t.Ranges) -> bool:
    protocol, at = number(ip, 6, 1), 40
    for _ in range(10):
        if within(protocol, ranges):
            return True
        if protocol == 44:
            bits = number(ip, at + 2, 2)
            number(ip, at + 4, 4)
            protocol, at = ip[at], at + 8
            if bits >> 3:
                if protocol in inside.MOVABLE and not within(protocol, ranges):
                    raise HiddenError
                return within(protocol, ranges)
        elif protocol in inside.MOVABLE:
            length = number(ip, at + 1, 1)
            protocol, at = ip[at], at + (4 * (length + 2) if protocol == 51 else 8 * (length + 1))
        else:
            return False
    raise CannotTellError


def field_value(field: int, ip: bytes, six: bool) -> int:
    if field == t.TTL:
        return number(ip, 7 if six else 8, 1)
    if field == t.FLOW_LABEL:
        return number(ip, 0, 4) % (1 << 20)
    if field in (t.DSCP, t.ECN):
        traffic_class = number(ip, 0, 2) >> (4 if six else 0) & 255
        return traffic_class >> 2 if field == t.DSCP else traffic_class & 3
    if field == t.FRAGMENT:
        return fragment_value(ip, six)
    found = inside.transport(ip, six)
    if found is None:
        return -1
    if found.hidden and six and found.protocol in inside.MOVABLE:
        raise HiddenError
    return found.protocol


def fragment_value(ip: bytes, six: bool) -> int:
    if not six:
        bits = number(ip, 6, 2)
        return t.LATER if bits % 0x2000 else t.FIRST if bits & 0x2000 else t.NOT_FRAGMENTED
    number(ip, 39, 1)
    protocol, at, left = ip[6], 40, 8
    while protocol in inside.MOVABLE:
        if left == 0 or at + 8 > 40 + 256:
            raise CannotTellError
        number(ip, at + 7, 1)
        protocol, at, left = ip[at], at + (4 * (ip[at + 1] + 2) if protocol == 51 else 8 * (ip[at + 1] + 1)), left - 1
    if protocol != 44:
        return t.NOT_FRAGMENTED
    number(ip, at + 7, 1)
    bits = number(ip, at + 2, 2)
    return t.LATER if bits >> 3 else t.FIRST if bits & 1 else t.ATOMIC


def compared(data: bytes, wirelen: int, node: t.Compare, libpcap: bool) -> bool:
    left, right = value(data, wirelen, node.left, libpcap), value(data, wirelen, node.right, libpcap)
    return {"=": left == right, ">": left > right, ">=": left >= right}[node.relation]


def value(data: bytes, wirelen: int, node: t.Arithmetic, libpcap: bool) -> int:
    """Python's numbers, cut to 32 bits at each step."""
    if isinstance(node, t.Number):
        return node.value
    if isinstance(node, t.WireLength):
        return wirelen
    if isinstance(node, t.Load):
        return loaded_by(data, node, value(data, wirelen, node.index, libpcap), libpcap)
    left, right = value(data, wirelen, node.left, libpcap), value(data, wirelen, node.right, libpcap)
    if node.operator in ("/", "%") and right == 0:
        raise CannotTellError
    if node.operator in ("<<", ">>") and right > 31:
        return 0
    python = {"/": "//"}.get(node.operator, node.operator)
    return int(eval(f"{left} {python} {right}")) % 2**32


def loaded_by(data: bytes, node: t.Load, index: int, libpcap: bool) -> int:
    """NoTunnelError: the packet says that there is no such byte."""
    if node.base not in (t.L4, t.PAYLOAD) and t.INNER not in node.layer:
        return loaded(data, node, index, libpcap)
    packet = packet_of(data, node.layer)
    tags = len(node.layer) - node.layer.count(t.INNER)
    if packet is None or (packet.ethertype is not None and (tags or node.base == t.LINK)):
        raise NoTunnelError
    if node.base == t.LINK:
        return number(packet.data, index, node.size)
    kind, rest = inside.network(packet)
    for _ in range(tags):
        kind, rest = number(rest, 2, 2), rest[4:]
    if node.base == t.NETWORK:
        return number(rest, index, node.size)
    found = inside.loaded(rest, kind == 0x86DD, node.base, index, node.size) if kind in (0x800, 0x86DD) else None
    if found is None:
        raise NoTunnelError
    return found
