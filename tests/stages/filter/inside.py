"""What a packet carries, and where its transport header is: worked out slowly, with slices, from the RFCs and apart from the kernels."""

from __future__ import annotations

from dataclasses import dataclass

from broker.config.policy import tree as t
from tests.stages.filter.twin_layers import CannotTellError, number

TAGS = (0x8100, 0x88A8, 0x9100)
EXTENSIONS = (0, 43, 60, 135)
MOVABLE = (*EXTENSIONS, 51)  # AH as well
NO_TYPE = -1  # a tunnel that says 0: it is known, and nobody's


class HiddenError(Exception):
    """In another fragment."""


@dataclass(frozen=True)
class Packet:
    """From its Ethernet header on; or without one, if `ethertype` says what it is (0: its first four bits do)."""

    data: bytes
    ethertype: int | None = None


def network(packet: Packet) -> tuple[int, bytes]:
    """Ethertype and what it is about. 0: nothing known."""
    if packet.ethertype is None:
        return number(packet.data, 12, 2), packet.data[14:]
    if packet.ethertype:
        return packet.ethertype, packet.data
    return {4: 0x800, 6: 0x86DD}.get(number(packet.data, 0, 1) >> 4, 0), packet.data


@dataclass(frozen=True)
class Transport:
    """`at`: from the start of the IP header. `hidden`: a later fragment; `more`: a first one."""

    protocol: int
    at: int
    hidden: bool
    more: bool


def steps(ip: bytes, six: bool) -> Transport:
    """Without a limit to their number."""
    if not six:
        protocol, bits, at = number(ip, 9, 1), number(ip, 6, 2), 4 * (ip[0] % 16)
        if bits % 0x2000:
            return Transport(protocol, at, True, False)
        if at < 20:
            raise CannotTellError
        more = bits & 0x2000 != 0
    else:
        protocol, at, more = number(ip, 6, 1), 40, False
    found: list[int] = []
    start = at
    while protocol == 51 or (six and (protocol in EXTENSIONS or protocol == 44)):
        found.append(protocol)
        if protocol == 44:
            bits = number(ip, at + 2, 2)
            number(ip, at + 4, 4)
            protocol, at = ip[at], at + 8
            if bits >> 3:
                return Transport(protocol, at, True, False)
            more |= bits & 1 == 1
        else:
            length = number(ip, at + 1, 1)
            protocol, at = ip[at], at + (4 * (length + 2) if protocol == 51 else 8 * (length + 1))
        if len([header for header in found if header != 44]) > 8 or found.count(44) > 1 or at - start > 256:
            raise CannotTellError
    return Transport(protocol, at, False, more)


def transport(ip: bytes, six: bool) -> Transport | None:
    found = steps(ip, six)
    return None if found.protocol == 59 and not found.hidden else found


def payload(ip: bytes, six: bool) -> Transport | None:
    found = transport(ip, six)
    if found is None:
        return None
    lengths = {17: 8, 136: 8, 132: 12, (58 if six else 1): 8, 6: 0}
    if found.protocol not in lengths:
        if found.hidden and six and found.protocol in MOVABLE:
            raise HiddenError
        return None
    if found.hidden:
        raise HiddenError
    length = lengths[found.protocol]
    if found.protocol == 6:
        length = number(ip, found.at + 12, 1) // 16 * 4
        if length < 20:
            raise CannotTellError
    return Transport(found.protocol, found.at + length, False, found.more)


def loaded(ip: bytes, six: bool, base: int, index: int, size: int) -> int | None:
    """Bytes of transport header or payload; None where the IP header says that they are not there."""
    found = transport(ip, six) if base == t.L4 else payload(ip, six)
    if found is None:
        return None
    if found.hidden:
        raise HiddenError
    length = number(ip, 4, 2) + 40 if six else number(ip, 2, 2)
    if length != (40 if six else 0) and found.at + index + size > length:
        if found.more:
            raise HiddenError
        return None
    return number(ip, found.at + index, size)


# ---- tunnels


@dataclass(frozen=True)
class Outer:
    """A tunnel's header. `ids`: what may be asked for, by kind; None: cut off."""

    kind: int
    ids: dict[int, list[int] | None]
    header: bytes
    is_gpe: bool = False


def outer(packet: Packet) -> Outer | None:
    ethertype, data = network(packet)
    for _ in range(4):
        if ethertype in TAGS:
            ethertype, data = number(data, 2, 2), data[4:]
    if ethertype in (0x8847, 0x8848):
        return Outer(t.MPLS_TUNNEL, {t.MPLS_TUNNEL: labels(data)}, data)
    if ethertype not in (0x800, 0x86DD):
        return None
    six = ethertype == 0x86DD
    found = transport(data, six)
    if found is None:
        return None
    if found.hidden:
        if found.protocol in (4, 41, 47, 17) or (six and found.protocol in MOVABLE):
            raise HiddenError
        return None
    body = data[found.at :]
    if found.protocol in (4, 41):
        return Outer(t.IPIP, {}, body)
    if found.protocol == 47:
        return gre(body)
    return udp(body) if found.protocol == 17 else None


def gre(data: bytes) -> Outer | None:
    flags, kind = number(data, 0, 2), number(data, 2, 2)
    if flags % 8 > 1:
        return None
    try:
        key = [number(data, 8 if flags & 0xC000 else 4, 4)] if flags & 0x2000 and kind != 0x880B else []
    except CannotTellError:
        key = None  # type: ignore[assignment]
    if kind not in (0x88BE, 0x22EB):
        return Outer(t.GRE, {t.GRE: key}, data)
    session: list[int] | None = []
    if kind == 0x22EB or flags & 0x1000:
        try:
            session = [number(data, gre_length(flags) + 2, 2) % 1024]
        except CannotTellError:
            session = None
    return Outer(t.ERSPAN, {t.GRE: key, t.ERSPAN: session}, data)


def gre_length(flags: int) -> int:
    acknowledged = flags % 8 == 1 and flags & 0x80 != 0
    return 4 + 4 * (bool(flags & 0xC000) + bool(flags & 0x2000) + bool(flags & 0x1000) + acknowledged)


def udp(data: bytes) -> Outer | None:
    port, inside = number(data, 2, 2), data[8:]
    kinds = {4789: t.VXLAN, 4790: t.VXLAN, 6081: t.GENEVE_TUNNEL, 2152: t.GTP, 6635: t.MPLS_TUNNEL, 4754: t.GRE}
    if port not in kinds:
        return None
    first = number(inside, 0, 2) >> 8
    if port == 4754:
        return gre(inside)
    if port == 6635:
        return Outer(t.MPLS_TUNNEL, {t.MPLS_TUNNEL: labels(inside)}, inside)
    fits = {4789: bool(first & 8), 4790: bool(first & 8), 6081: first < 64, 2152: first // 16 == 3 and inside[1] == 255}[port]
    if not fits:
        return None
    try:
        word = number(inside, 4, 4)
        ids: list[int] | None = [word if port == 2152 else word >> 8]
    except CannotTellError:
        ids = None
    return Outer(kinds[port], {kinds[port]: ids}, inside, port == 4790)


def labels(data: bytes) -> list[int] | None:
    """All that are there; with a None in it where the stack is cut off before its bottom."""
    found: list[int] = []
    for at in range(0, 64, 4):
        if at + 4 > len(data):
            return [*found, -1]
        word = number(data, at, 4)
        found.append(word >> 12)
        if word & 0x100:
            break
    return found


def inside(packet: Packet) -> Packet | None:
    """What the packet carries, if it is a tunnel."""
    found = outer(packet)
    if found is None:
        return None
    if found.kind == t.VXLAN:
        return in_vxlan(found.header, found.is_gpe)
    if found.kind == t.IPIP:
        return Packet(found.header, 0)
    of_kind = {t.GRE: in_gre, t.ERSPAN: in_erspan, t.GENEVE_TUNNEL: in_geneve, t.GTP: in_gtp, t.MPLS_TUNNEL: in_mpls}
    return of_kind[found.kind](found.header)


def by_type(ethertype: int, data: bytes) -> Packet:
    if ethertype == 0x6558:
        return Packet(data)
    return Packet(data, 0 if ethertype in (0x800, 0x86DD) else ethertype or NO_TYPE)


def in_gre(data: bytes) -> Packet | None:
    flags = number(data, 0, 2)
    return None if flags & 0x4000 else by_type(number(data, 2, 2), data[gre_length(flags) :])


def in_erspan(data: bytes) -> Packet | None:
    flags = number(data, 0, 2)
    header = data[gre_length(flags) :]
    if data[2:4] == b"\x88\xbe":
        return Packet(header[8:] if flags & 0x1000 else header)
    bits = number(header, 10, 2)
    body = header[20 if bits % 2 else 12 :]
    return Packet(body, 0 if bits >> 10 & 31 == 2 else None)


def in_vxlan(data: bytes, is_gpe: bool) -> Packet | None:
    kind = number(data, 3, 1)
    if not is_gpe or data[0] & 4 == 0 or kind == 3:
        return Packet(data[8:])
    return Packet(data[8:], 0) if kind in (1, 2) else None


def in_geneve(data: bytes) -> Packet | None:
    return by_type(number(data, 2, 2), data[8 + data[0] % 64 * 4 :])


def in_gtp(data: bytes) -> Packet | None:
    if data[0] % 8 == 0:
        return Packet(data[8:], 0)
    number(data, 8, 4)
    following, data = data[11] if data[0] & 4 else 0, data[12:]
    for _ in range(7):
        if not following:
            break
        length = 4 * number(data, 0, 1)
        if length == 0:
            raise CannotTellError
        following, data = number(data, length - 1, 1), data[length:]
    if following:
        raise CannotTellError
    return Packet(data, 0)


def in_mpls(data: bytes) -> Packet | None:
    for at in range(4, 68, 4):
        if number(data, at - 4, 4) & 0x100:
            body = data[at:]
            nibble = number(body, 0, 1) >> 4
            if nibble in (4, 6):
                return Packet(body, 0)
            if nibble == 1:
                return None
            known = (0x800, 0x86DD, 0x806, 0x8847, 0x8848, *TAGS)
            return Packet(body[4:] if nibble == 0 and number(body, 12, 2) not in known else body)
    raise CannotTellError
