"""The slow twin's layers: where headers are by libpcap's rules, and what bytes say, by recursion over the steps."""

from __future__ import annotations

from dataclasses import dataclass

from broker.config.policy import tree as t

PPP = {0x21: 0x800, 0x57: 0x86DD}


class CannotTellError(Exception):
    pass


class NoTunnelError(Exception):
    """There is nothing that the test could be about: it is false."""


def number(data: bytes, at: int, size: int) -> int:
    if at < 0 or at + size > len(data):
        raise CannotTellError
    return int.from_bytes(data[at : at + size], "big")


@dataclass(frozen=True)
class Place:
    link: int
    type: int
    payload: int


def place(data: bytes, layer: t.Layer) -> Place:
    if not layer:
        return Place(0, 12, 14)
    outer, step = place(data, layer[:-1]), layer[-1]
    if step == t.VLAN:
        return Place(outer.link, outer.type + 4, outer.payload + 4)
    if step == t.MPLS:
        return Place(outer.link, outer.type, outer.payload + 4)
    if step == t.PPPOE:
        return Place(outer.payload + 6, outer.payload + 6, outer.payload + 8)
    header = geneve(data, outer, ethertype(data, layer[:-1]))
    inside = header + 8 + 4 * (number(data, header, 1) % 64)
    if number(data, header + 2, 2) == 0x6558:
        return Place(inside, inside + 12, inside + 14)
    return Place(inside, header + 2, inside)


def geneve(data: bytes, outer: Place, kind: int) -> int:
    l3 = outer.payload
    if kind == 0x800:
        is_udp = number(data, l3 + 9, 1) == 17 and number(data, l3 + 6, 2) % 8192 == 0
        l4 = l3 + number(data, l3, 1) % 16 * 4
    elif kind == 0x86DD:
        is_udp, l4 = number(data, l3 + 6, 1) == 17, l3 + 40
    else:
        raise NoTunnelError
    if not is_udp or (number(data, l4, 12) and (number(data, l4 + 2, 2) != 6081 or number(data, l4 + 8, 1) >= 64)):
        raise NoTunnelError
    return l4 + 8


def ethertype(data: bytes, layer: t.Layer) -> int:
    where = place(data, layer)
    if t.MPLS in layer:
        last_tunnel = max((i for i, step in enumerate(layer) if step == t.GENEVE), default=-1)
        if t.MPLS not in layer[last_tunnel + 1 :]:
            raise CannotTellError
        if number(data, where.payload - 2, 1) % 2 == 0:
            return 0
        return {4: 0x800, 6: 0x86DD}.get(number(data, where.payload, 1) // 16, 0)
    found = number(data, where.type, 2)
    if [step for step in layer if step in (t.PPPOE, t.GENEVE)][-1:] == [t.PPPOE]:
        return PPP.get(found, -found if found in PPP.values() else found)
    return found


def loaded(data: bytes, node: t.Load, index: int, libpcap: bool) -> int:
    where = place(data, node.layer)
    starts = {t.LINK: where.link, t.TYPE: where.type, t.NETWORK: where.payload, t.BEHIND6: where.payload + 40, t.TRANSPORT: where.payload}
    known, computed = starts[node.base], 0
    if node.base == t.TRANSPORT:
        if not libpcap and len(data) >= where.payload + 8 and number(data, where.payload + 6, 2) % 8192:
            raise CannotTellError  # a later fragment begins with something else
        computed = number(data, where.payload, 1) % 16 * 4
    if t.GENEVE in node.layer:
        known, computed = 0, known + computed
    if isinstance(node.index, t.Number):
        return number(data, (known + index) % 2**32 + computed, node.size)
    return number(data, (computed + index) % 2**32 + known, node.size)


def in_chain(data: bytes, l3: int, node: t.ProtoChain, kind: int) -> bool:
    """As libpcap goes along it; RFC 4302 would go on elsewhere behind AH."""
    if kind != (0x800 if node.kinds == t.IP else 0x86DD):
        return False
    four = kind == 0x800
    protocol, at = number(data, l3 + (9 if four else 6), 1), number(data, l3, 1) % 16 * 4 if four else 40
    for _ in range(256):
        if protocol == node.value:
            return True
        if protocol == 51:
            number(data, l3 + at, 2)
            protocol, at = data[l3 + at], (data[l3 + at + 1] + 2) * 4
        elif not four and protocol in (0, 43, 44, 60):
            number(data, l3 + at, 2)
            protocol, at = data[l3 + at], at + (data[l3 + at + 1] + 1) * 8
        else:
            return False
    raise CannotTellError
