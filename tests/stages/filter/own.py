"""The slow twin's answers to our own tests, and to what is asked of a packet in a tunnel."""

from __future__ import annotations

from broker.config.policy import tree as t
from tests.stages.filter import inside
from tests.stages.filter.inside import CannotTellError, HiddenError, Packet, number
from tests.stages.filter.judging import Frame


def packet_of(f: Frame, layer: t.Layer) -> Packet | None:
    """What the tunnels that the layer steps into carry; None: there is no such."""
    packet: Packet | None = Packet(f.data)
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


def compared(node: t.Compare, f: Frame) -> bool:
    left = value_of(node.left, f)
    right = value_of(node.right, f) if left is not None else None
    if left is None or right is None:
        return False
    return {"=": left == right, ">": left > right, ">=": left >= right}[node.relation]


def value_of(node: t.Arithmetic, f: Frame) -> int | None:
    """Of our own accessors, and of what is counted from the packet inside; None: not there."""
    if isinstance(node, t.Number):
        return node.value
    if isinstance(node, t.WireLength):
        return f.wirelen
    if isinstance(node, t.Binary):
        left = value_of(node.left, f)
        right = value_of(node.right, f) if left is not None else None
        operation = {"&": int.__and__, "+": int.__add__}[node.operator]
        return None if left is None or right is None else operation(left, right) & 0xFFFFFFFF
    index, packet = value_of(node.index, f), packet_of(f, node.layer)
    tags = len(node.layer) - node.layer.count(t.INNER)
    if index is None or packet is None or (packet.ethertype is not None and (tags or node.base == t.LINK)):
        return None
    if node.base == t.LINK:
        return number(packet.data, index, node.size)
    ethertype, data = inside.network(packet)
    for _ in range(tags):
        ethertype, data = number(data, 2, 2), data[4:]
    if node.base == t.NETWORK:
        return number(data, index, node.size)
    return inside.loaded(data, ethertype == 0x86DD, node.base, index, node.size) if ethertype in (0x800, 0x86DD) else None
