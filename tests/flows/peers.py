"""How other people's meters differ from what we hold a flow to be: for each, what it makes of a packet, and why that is something else.

`Told` is what a tool counts for a packet; None: nothing. With each goes the set of reasons, keys of REASONS. A tool that does not do as is
said here fails the test, and so does a packet that none of this is about. Nonsense (`makes_sense`) is left out: headers that contradict
themselves, or are cut, mean to each tool what it happens to read.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tests.flows.frames import EXTENSIONS, FRAGMENT, ICMP, ICMP6, IP, IP6, MPLS, SCTP, TAGS, TCP, UDP, Packet, dissect
from tests.flows.reference import Seen
from tests.flows.tools import Counted, Key
from tests.libpcap import Record
from tests.packets import checksum

REASONS = {
    "icmp in a port": "type << 8 | code of ICMP stands in the destination port, and so question and answer are two flows",
    "icmp without ports": "all ICMP between two hosts is one flow",
    "sctp without ports": "all SCTP between two hosts is one flow",
    "length of the frame": "all bytes behind the link header count: padding, trailers and labels too, where IP's own length is shorter",
    "length as it says": "IP's own length counts, be it 0 (segments that the hardware was to cut) or more than was on the wire",
    "later fragment": "a later fragment has no ports, be its first one known or not",
    "first fragment later": "a later fragment has the ports of its first one even if that comes behind it",
    "no first fragment": "later fragments whose first one never comes are not counted",
    "datagram put together": "fragments of IPv4 are one packet when the last has come, of one header and all payload",
    "datagram not complete": "fragments of IPv4 without a first one, or whose last one does not come behind it, are not counted",
    "two tags": "behind two VLAN tags nothing is looked for",
    "extension header": "of IPv6 the protocol is that of the first extension header",
    "chain": "of IPv6 AH and mobility headers are the protocol, and later fragments are of protocol 0",
    "tunnel": "of IP in IP, and in GRE without a key, what is inside counts, and nothing where that is not IP",
    "tunnel in fragments": "IP in IP and GRE that came in fragments are not counted",
    "pptp": "of GRE for PPTP the call is the destination port, and nothing counts where it carries no PPP",
    "pppoe": "IP in PPPoE counts",
    "vntag": "IP behind a VN-Tag counts",
    "fabric": "IP in FabricPath counts",
    "service tag": "behind a tag of 802.1ad nothing is looked for",
    "mpls": "IP behind MPLS labels counts",
    "tcp header": "TCP whose header is longer than the packet is not counted",
    "udp of no length": "UDP in IP of length 0 is not counted",
    "longest": "IP of 65,535 bytes is not counted",
    "jumbogram": "IPv6 of length 0 with a hop-by-hop header is not counted",
}

VNTAG, FABRIC, PPPOE, SERVICE_TAG = 0x8926, 0x8903, 0x8864, 0x88A8
IN_GRE, KEYED = (b"\x08\x00", b"\x86\xdd", b"\x88\x47", b"\x65\x58"), 0x20
"""What in GRE nfpcapd looks into, where there is no key: IP, MPLS, Ethernet."""
PPP = b"\x88\x0b"
NEEDED_BYTES = {TCP: 20, UDP: 8, SCTP: 12, ICMP: 8, ICMP6: 8}

Told = tuple[Key, int] | None
Why = set[str]


def makes_sense(record: Record) -> bool:
    """Whether the headers up to that of the transport are there, and IPv4's checksum is right (or not made yet)."""
    hidden = behind(record)
    packet = hidden[1] if hidden else dissect(record)
    if not isinstance(packet, Packet):
        return int.from_bytes(record.data[12:14], "big") not in (IP, IP6, PPPOE)
    if packet.version == 6 and packet.protocol == FRAGMENT:  # two such headers
        return False
    if packet.version == 6 and (packet.next_header in EXTENSIONS or packet.next_header == FRAGMENT) and len(record.data) < record.wirelen:
        return False
    if packet.version == 4:
        at = len(record.data) - (packet.wire - max(0, record.wirelen - len(record.data)))
        header = record.data[at : at + 4 * (record.data[at] & 15)]
        if checksum(header) != 0 and header[10:12] != b"\0\0":
            return False
    if packet.l4 is not None and packet.protocol == UDP and 0 < int.from_bytes(packet.l4[4:6], "big") < NEEDED_BYTES[UDP]:
        return False
    return packet.l4 is None or len(packet.l4) >= NEEDED_BYTES.get(packet.protocol, 0)


def behind(record: Record) -> tuple[str, Packet] | None:
    """The IP packet behind headers that we do not look behind, so that it is in no flow, and which of REASONS that is."""
    at, data, why = 12, record.data, ""
    while (ethertype := int.from_bytes(data[at : at + 2], "big")) in (*TAGS, VNTAG, FABRIC):
        at += {VNTAG: 6, FABRIC: 16}.get(ethertype, 4)
        why = {VNTAG: "vntag", FABRIC: "fabric"}.get(ethertype, why)
    at += 2
    kind: int | None = ethertype
    if ethertype == PPPOE:
        kind = {b"\x00\x21": IP, b"\x00\x57": IP6}.get(data[at + 6 : at + 8])
        at, why = at + 8, "pppoe"
    elif ethertype in MPLS:
        while len(data) >= at + 4 and not data[at + 2] & 1:
            at += 4
        at, why = at + 4, "mpls"
        kind = {4: IP, 6: IP6}.get(data[at] >> 4) if len(data) > at else None
    if kind not in (IP, IP6) or not why:
        return None
    found = dissect(Record(record.ts_ns, record.wirelen - at + 14, data[:12] + kind.to_bytes(2, "big") + data[at:]))
    return (why, found) if isinstance(found, Packet) else None


def tags_of(record: Record) -> list[int]:
    """Types of the VLAN tags, from the outside in."""
    found: list[int] = []
    while (kind := int.from_bytes(record.data[12 + 4 * len(found) : 14 + 4 * len(found)], "big")) in TAGS:
        found.append(kind)
    return found


def plain(seen: Seen, packet: Packet) -> tuple[Key, int]:
    source, destination = (str(ipaddress.ip_address(at)) for at in (packet.source, packet.destination))
    return (source, destination, *seen.ports, packet.protocol), packet.n_bytes


def _is_icmp(packet: Packet) -> bool:
    return packet.protocol == (ICMP if packet.version == 4 else ICMP6)


def _with(key: Key, ports: tuple[int, int], protocol: int | None = None) -> Key:
    return (key[0], key[1], *ports, key[4] if protocol is None else protocol)


def _icmp_ports(packet: Packet) -> tuple[int, int]:
    shown = packet.l4[:2] if packet.l4 is not None else b""
    return 0, int.from_bytes(shown, "big") if len(shown) == 2 else 0


def _own_length(packet: Packet) -> int:
    return packet.said or (0 if packet.version == 4 else 40)


class Tool:
    """What all of them do alike. `records` and `packets`: all that it is given."""

    sees = frozenset({"mpls"})

    def __init__(self, records: Sequence[Record], packets: Sequence[Seen]) -> None:
        self.records, self.packets = records, packets

    def tell(self, seen: Seen, packet: Packet, why: Why) -> Told:
        raise NotImplementedError

    def explained(self) -> tuple[Counted, Counter[str]]:
        """What the tool should count, and how many packets each reason is about."""
        found, reasons = Counted(), Counter[str]()
        for seen in self.packets:
            why: Why = set()
            packet = seen.packet
            if packet is None and (hidden := behind(self.records[seen.number])) is not None and hidden[0] in self.sees:
                why.add(hidden[0])
                packet = hidden[1]
                seen = replace(seen, packet=packet, ports=packet.ports)
            if packet is not None:
                told = self.tell(seen, packet, why)
                reasons.update(why)
                if told is not None:
                    found.add(told[0], 1, told[1])
        return found, reasons


class Softflowd(Tool):
    def tell(self, seen: Seen, packet: Packet, why: Why) -> Told:
        key, n_bytes = plain(seen, packet)
        if len(tags_of(self.records[seen.number])) > 1:
            why.add("two tags")
            return None
        if _is_icmp(packet):
            key = _with(key, _icmp_ports(packet))
            why.add("icmp in a port")
        if packet.protocol == SCTP:
            key = _with(key, (0, 0))
            why.add("sctp without ports")
        if packet.version == 4 and packet.fragment == "later":
            key = _with(key, (0, 0))
            why.add("later fragment")
        if packet.version == 6 and packet.next_header in (51, 135):
            key = _with(key, (0, 0), packet.next_header)
            why.add("chain")
        elif packet.version == 6 and packet.fragment == "later":
            key = _with(key, (0, 0), 0)
            why.add("chain")
        wire = packet.wire
        if "mpls" in why:
            wire = seen.wirelen - 14
        if wire != n_bytes:
            why.add("length of the frame")
        return key, wire


class Pmacctd(Tool):
    sees = frozenset({"mpls", "pppoe", "vntag", "fabric"})

    def __init__(self, records: Sequence[Record], packets: Sequence[Seen]) -> None:
        super().__init__(records, packets)
        self.first = {self._datagram(s.packet): s.ports for s in packets if s.packet is not None and s.packet.fragment == "first"}

    @staticmethod
    def _datagram(packet: Packet) -> object:
        return packet.source, packet.destination, packet.protocol, packet.datagram[0]

    def tell(self, seen: Seen, packet: Packet, why: Why) -> Told:
        key, n_bytes = plain(seen, packet)
        if SERVICE_TAG in tags_of(self.records[seen.number]):
            why.add("service tag")
            return None
        if packet.version == 6 and packet.said == 0 and packet.next_header == 0:
            why.add("jumbogram")
            return None
        if packet.said == 65_535:
            why.add("longest")
            return None
        if packet.version == 4 and packet.fragment == "later":
            ports = self.first.get(self._datagram(packet))
            if ports is None:
                why.add("no first fragment")
                return None
            if ports != seen.ports:
                key = _with(key, ports)
                why.add("first fragment later")
        if _is_icmp(packet):
            key = _with(key, (0, 0))
            why.add("icmp without ports")
        if packet.protocol == SCTP:
            key = _with(key, (0, 0))
            why.add("sctp without ports")
        if _own_length(packet) != n_bytes:
            why.add("length as it says")
        return key, _own_length(packet)


class Nfpcapd(Tool):
    sees = frozenset({"mpls", "pppoe"})

    def __init__(self, records: Sequence[Record], packets: Sequence[Seen]) -> None:
        super().__init__(records, packets)
        self.pieces: dict[object, dict[int, tuple[int, tuple[int, int]]]] = {}

    def tell(self, seen: Seen, packet: Packet, why: Why) -> Told:
        if SERVICE_TAG in tags_of(self.records[seen.number]):
            why.add("service tag")
            return None
        chained = packet.version == 6 and (packet.next_header in EXTENSIONS or packet.next_header == FRAGMENT)
        if packet.protocol in (4, 41, 47) and not packet.fragment and not chained:
            inside = None if why & self.sees else self._inside(seen, packet)
            why.add("tunnel")
            if inside is None:
                return None
            seen, packet = replace(seen, packet=inside, ports=inside.ports), inside
        key, n_bytes = plain(seen, packet)
        if packet.protocol == 47 and packet.l4 is not None and packet.l4[1] & 7 == 1:
            why.add("pptp")
            if packet.l4[2:4] != PPP:
                return None
            key = _with(key, (0, int.from_bytes(packet.l4[6:8], "big")))
        if packet.version == 6 and (packet.next_header in EXTENSIONS or packet.next_header == FRAGMENT):
            why.add("extension header")
            return _with(key, (0, 0), packet.next_header), _own_length(packet)
        if packet.version == 4 and packet.fragment:
            return self._put_together(seen, packet, key, why)
        if _is_icmp(packet):
            key = _with(key, _icmp_ports(packet))
            why.add("icmp in a port")
        if packet.protocol == SCTP:
            key = _with(key, (0, 0))
            why.add("sctp without ports")
        if packet.protocol == TCP and packet.l4 is not None and 4 * (packet.l4[12] >> 4) > len(packet.l4):
            why.add("tcp header")
            return None
        if packet.protocol == UDP and packet.said == 0:
            why.add("udp of no length")
            return None
        if _own_length(packet) != n_bytes:
            why.add("length as it says")
        return key, _own_length(packet)

    def _inside(self, seen: Seen, packet: Packet) -> Packet | None:
        """Behind all the tunnels that it knows; None: not IP."""
        found = packet
        for depth in range(1, 5):
            if found.protocol not in (4, 41, 47) or (found.protocol == 47 and found.l4 and found.l4[1] & 7 == 1):
                break
            if found.protocol == 47 and not (found.l4 and not found.l4[0] & KEYED and found.l4[2:4] in IN_GRE):
                return None
            inside = dissect(self.records[seen.number], "inner", depth)
            if isinstance(inside, Packet) and not inside.tunnel:  # labels, in GRE
                inside = dissect(self.records[seen.number], "inner", depth + 1)
            if not isinstance(inside, Packet) or inside.tunnel not in ("gre", "ipip", "mpls") or inside == found:
                return None
            found = inside
        return found

    def _put_together(self, seen: Seen, packet: Packet, key: Key, why: Why) -> Told:
        identification, at, n_bytes, more = packet.datagram
        datagram = (packet.source, packet.destination, identification, packet.protocol)
        pieces = self.pieces.setdefault(datagram, {})
        pieces[at] = (n_bytes, _icmp_ports(packet) if _is_icmp(packet) else seen.ports)
        if more or 0 not in pieces:
            why.add("datagram not complete")
            return None
        why.add("datagram put together")  # be there holes in it or not
        del self.pieces[datagram]
        if packet.protocol in (4, 41, 47):
            why.add("tunnel in fragments")
            return None
        return _with(key, pieces[0][1]), at + packet.wire  # with what pads the last one
