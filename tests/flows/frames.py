"""What of a captured frame matters to its flow, in plain Python: written from the RFCs, apart from the kernels that do the same.

Ethernet with at most 4 VLAN tags; IPv4 (RFC 791), IPv6 and its extension headers (RFC 8200); tunnels as `stages.wire.tunnel` lists them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from tests.libpcap import Record

TAGS = (0x8100, 0x88A8, 0x9100)
IP, IP6, MPLS = 0x0800, 0x86DD, (0x8847, 0x8848)
ETHERNET = 0x6558  # as a type of GRE: Transparent Ethernet Bridging
TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
EXTENSIONS = (0, 43, 60, 51, 135)  # hop by hop, routing, destination options, authentication, mobility
FRAGMENT = 44
MAX_TAGS, MAX_DEPTH, MAX_CHAIN, MAX_CHAIN_BYTES = 4, 4, 8, 256
NOT_IP, CUT = "not ip", "cut"

PAIRS = {ICMP: {8: 0, 13: 14, 15: 16, 17: 18, 10: 9}, ICMP6: {128: 129, 130: 131, 133: 134, 135: 136, 139: 140, 144: 145}}
"""Types of ICMP that ask, and that answer: Community ID v1."""


@dataclass(frozen=True)
class Packet:
    """An IP packet. `wire`: its bytes on the wire, by the frame; `n_bytes`: by its own word, where that is to be believed."""

    version: int
    source: bytes
    destination: bytes
    protocol: int
    n_bytes: int
    wire: int
    said: int  # what its length field makes it, 0 if that is 0
    tos: int
    ttl: int
    fragment: str = ""  # first, later
    datagram: tuple[int, int, int, bool] = (0, 0, 0, False)  # identification, offset and length of this piece, more of them to come
    l4: bytes | None = None  # as far as it was captured; None: it is not in this packet
    l4_len: int = 0  # on the wire
    vlans: tuple[int, ...] = ()
    tunnel: str = ""
    tunnel_id: int = 0
    next_header: int = 0  # of IPv6: what its fixed header says

    @property
    def ports(self) -> tuple[int, int]:
        """(source, destination); of a later fragment (0, 0)."""
        l4 = self.l4
        if l4 is None:
            return 0, 0
        if self.protocol in (TCP, UDP, SCTP):
            return tuple(int.from_bytes(l4[at : at + 2], "big") if len(l4) >= at + 2 else 0 for at in (0, 2))  # type: ignore[return-value]
        if self.protocol == (ICMP if self.version == 4 else ICMP6) and l4:
            pairs = PAIRS[self.protocol]
            back = {answer: question for question, answer in pairs.items()}
            other = pairs.get(l4[0], back.get(l4[0]))
            return l4[0], other if other is not None else (l4[1] if len(l4) > 1 else 0)
        return 0, 0


def dissect(record: Record, layer: str = "outer", depth: int = MAX_DEPTH) -> Packet | str:
    """The packet that the frame is a packet of, behind `depth` tunnels at most; NOT_IP or CUT where it is of no flow."""
    data, wire, ethertype, vlans = _ethernet(record.data, record.wirelen)
    outer = _ip(ethertype, data, wire) if ethertype is not None else NOT_IP
    found = replace(outer, vlans=vlans) if isinstance(outer, Packet) else outer
    if layer == "outer" or ethertype is None:
        return found
    at: tuple[int, Packet | None, bytes, int] = (ethertype, outer if isinstance(outer, Packet) else None, data, wire)
    for _ in range(depth):
        carried = _carried(*at)
        if carried is None:
            break
        tunnel, tunnel_id, ethertype, data, wire = carried
        if ethertype == ETHERNET:
            data, wire, inner_type, _ = _ethernet(data, wire)
            if inner_type is None:
                break
            ethertype = inner_type
        inner = _ip(ethertype, data, wire)
        if isinstance(inner, Packet):
            found = replace(inner, vlans=vlans, tunnel=tunnel, tunnel_id=tunnel_id)
        at = (ethertype, inner if isinstance(inner, Packet) else None, data, wire)
    return found


def _ethernet(data: bytes, wire: int) -> tuple[bytes, int, int | None, tuple[int, ...]]:
    """What is behind the Ethernet header, its bytes on the wire, the ethertype (None: cut off), the VLAN ids."""
    at, vlans = 12, []
    while len(data) >= at + 2:
        ethertype = int.from_bytes(data[at : at + 2], "big")
        if ethertype not in TAGS or len(vlans) == MAX_TAGS:
            return data[at + 2 :], max(0, wire - at - 2), ethertype, tuple(vlans)
        if len(data) < at + 4:
            break
        vlans.append(int.from_bytes(data[at + 2 : at + 4], "big") & 0xFFF)
        at += 4
    return b"", 0, None, tuple(vlans)


def _ip(ethertype: int, data: bytes, wire: int) -> Packet | str:
    if ethertype == IP:
        return _ip4(data, wire)
    return _ip6(data, wire) if ethertype == IP6 else NOT_IP


def _ip4(data: bytes, wire: int) -> Packet | str:
    if len(data) < 20:
        return CUT
    first, tos, said, identification, where, ttl, protocol, _, source, destination = struct.unpack("!BBHHHBBH4s4s", data[:20])
    header = 4 * (first & 15)
    if first >> 4 != 4 or header < 20:
        return NOT_IP
    n_bytes = said if 0 < said <= wire else wire
    offset, more = (where & 0x1FFF) * 8, bool(where & 0x2000)
    fragment = "later" if offset else "first" if more else ""
    l4 = None if fragment == "later" else data[header:n_bytes]
    piece = (identification, offset, max(0, n_bytes - header), more)
    return Packet(
        4, source, destination, protocol, n_bytes, wire, said, tos, ttl, fragment, piece, l4, max(0, n_bytes - header)
    )  # fmt: skip


def _ip6(data: bytes, wire: int) -> Packet | str:
    if len(data) < 40:
        return CUT
    first, length, protocol, ttl, source, destination = struct.unpack("!IHBB16s16s", data[:40])
    if first >> 28 != 6:
        return NOT_IP
    said = length + 40 if length else 0
    n_bytes = said if 0 < said <= wire else wire
    at, fragment, piece, complete = 40, "", (0, 0, 0, False), True
    n_headers = 0
    while protocol in EXTENSIONS or (protocol == FRAGMENT and not fragment):
        n_headers += 1
        if len(data) < at + 8 or n_headers > MAX_CHAIN or at - 40 >= MAX_CHAIN_BYTES:
            complete = False
            break
        if protocol == FRAGMENT:
            where, identification = struct.unpack("!HI", data[at + 2 : at + 8])
            offset, more = where & 0xFFF8, bool(where & 1)
            fragment = "later" if offset else "first" if more else "atomic"
            piece = (identification, offset, max(0, n_bytes - at - 8), more)
            protocol, at = data[at], at + 8
            if fragment == "later":
                break
        else:
            size = 4 * (data[at + 1] + 2) if protocol == 51 else 8 * (data[at + 1] + 1)
            protocol, at = data[at], at + size
    fragment = "" if fragment == "atomic" else fragment
    l4 = data[at:n_bytes] if complete and fragment != "later" and at <= len(data) else None
    tos = first >> 20 & 0xFF
    l4_len = max(0, n_bytes - at)
    return Packet(6, source, destination, protocol, n_bytes, wire, said, tos, ttl, fragment, piece, l4, l4_len, next_header=data[6])


Carried = tuple[str, int, int, bytes, int]
"""Kind and number of the tunnel, the type of what it carries, that as far as it was captured, and its bytes on the wire."""


def _carried(ethertype: int, packet: Packet | None, data: bytes, wire: int) -> Carried | None:
    if ethertype in MPLS:
        return _mpls(data, wire)
    if packet is None or packet.l4 is None:
        return None
    l4, wire = packet.l4, packet.l4_len
    if packet.protocol in (4, 41):
        return ("ipip", 0, _by_nibble(l4), l4, wire) if l4 else None
    if packet.protocol == 47:
        return _gre(l4, wire)
    if packet.protocol != UDP or len(l4) < 8:
        return None
    port, body, wire = int.from_bytes(l4[2:4], "big"), l4[8:], max(0, wire - 8)
    if port == 4754:
        return _gre(body, wire)
    if port == 6635:
        return _mpls(body, wire)
    if len(body) < 8:
        return None
    vni = int.from_bytes(body[4:7], "big")
    if port in (4789, 4790) and body[0] & 8:
        kinds = {1: IP, 2: IP6, 3: ETHERNET}
        kind = kinds.get(body[3]) if port == 4790 and body[0] & 4 else ETHERNET
        return ("vxlan", vni, kind, body[8:], max(0, wire - 8)) if kind else None
    if port == 6081 and body[0] >> 6 == 0:
        size = 8 + 4 * (body[0] & 0x3F)
        return "geneve", vni, int.from_bytes(body[2:4], "big"), body[size:], max(0, wire - size)
    if port == 2152 and body[0] & 0xF0 == 0x30 and body[1] == 255:
        return _gtp(body, wire)
    return None


def _by_nibble(data: bytes) -> int:
    return IP6 if data[0] >> 4 == 6 else IP


def _gre(data: bytes, wire: int) -> Carried | None:
    if len(data) < 4:
        return None
    flags, kind = struct.unpack("!HH", data[:4])
    if flags & 7 > 1 or flags & 0x4000:  # source routes
        return None
    at = 4 + (4 if flags & 0x8000 else 0)
    key = int.from_bytes(data[at : at + 4], "big") if flags & 0x2000 else 0
    at += (4 if flags & 0x2000 else 0) + (4 if flags & 0x1000 else 0) + (4 if flags & 7 == 1 and flags & 0x80 else 0)
    if kind not in (0x88BE, 0x22EB):
        return "gre", key, kind, data[at:], max(0, wire - at)
    if kind == 0x88BE and not flags & 0x1000:
        return "erspan", 0, ETHERNET, data[at:], max(0, wire - at)
    head = data[at:]
    if len(head) < (12 if kind == 0x22EB else 8):
        return None
    session, inside = int.from_bytes(head[2:4], "big") & 0x3FF, ETHERNET
    at += 8
    if kind == 0x22EB:
        at += 4 + (8 if head[11] & 1 else 0)
        if (int.from_bytes(head[10:12], "big") >> 10) & 0x1F == 2:
            inside = _by_nibble(data[at : at + 1] or b"\0")
    return "erspan", session, inside, data[at:], max(0, wire - at)


def _gtp(body: bytes, wire: int) -> Carried | None:
    teid, at = int.from_bytes(body[4:8], "big"), 8
    if body[0] & 7:
        at, following = 12, body[11] if len(body) > 11 and body[0] & 4 else 0
        while following:
            if len(body) <= at or body[at] == 0 or len(body) < at + 4 * body[at]:
                return None
            at += 4 * body[at]
            following = body[at - 1]
    return ("gtp", teid, _by_nibble(body[at:]), body[at:], max(0, wire - at)) if len(body) > at else None


def _mpls(data: bytes, wire: int) -> Carried | None:
    at = 0
    while len(data) >= at + 4 and not data[at + 2] & 1:
        at += 4
    at += 4
    if len(data) <= at:
        return None
    label = int.from_bytes(data[:3], "big") >> 4
    nibble = data[at] >> 4
    if nibble in (4, 6):
        return "mpls", label, _by_nibble(data[at:]), data[at:], max(0, wire - at)
    at += 4 if nibble == 0 else 0
    return "mpls", label, ETHERNET, data[at:], max(0, wire - at)
