"""The bytes of each header, lengths and checksums right. Sources: IEEE 802.3 and 802.1Q; RFC 826, 791, 8200, 9293, 768, 9260, 792, 4443;
tunnels RFC 2784, 2890, 7348, 8926, 3032, 2516, draft-foschiano-erspan, 3GPP TS 29.281."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from broker.config.packet.fields import Fields
from broker.config.packet.values import TCP_FLAGS

Ends = tuple[bytes, bytes]
"""Source and destination address: what a transport checksum also covers. IPv4 or IPv6."""


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data: bytes) -> int:
    """Castagnoli, RFC 9260 appendix A."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def pseudo(ends: Ends, protocol: int, length: int) -> bytes:
    """RFC 9293 section 3.1, RFC 8200 section 8.1."""
    tail = struct.pack("!BBH", 0, protocol, length) if len(ends[0]) == 4 else struct.pack("!I3xB", length, protocol)
    return ends[0] + ends[1] + tail


def _put(header: bytes, at: int, value: int) -> bytes:
    return header[:at] + struct.pack("!H", value) + header[at + 2 :]


def stacked(fields: Fields, *names: str) -> Iterator[tuple[int, ...]]:
    """Of lists that belong together a row for each tag or label, outermost first; a list of one is the same for all."""
    columns = [fields[name] for name in names]
    n = max(map(len, columns))
    for k in range(n):
        yield tuple(column[k] if len(column) == n else column[0] for column in columns)


# ---- link


def station(destination: bytes) -> bytes:
    """The Ethernet address that a packet to this address would have: RFC 1112, RFC 2464."""
    if destination == b"\xff\xff\xff\xff":
        return b"\xff" * 6
    if len(destination) == 4 and destination[0] >> 4 == 0xE:
        return b"\x01\x00\x5e" + bytes((destination[1] & 0x7F, *destination[2:]))
    if len(destination) == 16 and destination[0] == 0xFF:
        return b"\x33\x33" + destination[12:]
    return bytes.fromhex("020000000002")


def ethernet(fields: Fields, destination: bytes, ethertype: int, payload: bytes) -> bytes:
    tags = b"".join(
        struct.pack("!HH", tpid, priority << 13 | dei << 12 | vlan)
        for tpid, priority, dei, vlan in stacked(fields, "vlan.tpid", "vlan.priority", "vlan.dei", "vlan.id")
    )
    tags = tags if fields.first_of("vlan") else b""
    source: bytes = fields["eth.src"]
    return destination + source + tags + struct.pack("!H", ethertype) + payload


def labels(fields: Fields, payload: bytes) -> bytes:
    rows = [label << 12 | traffic_class << 9 | ttl for label, traffic_class, ttl in stacked(fields, "mpls.label", "mpls.exp", "mpls.ttl")]
    rows[-1] |= 1 << 8  # bottom of the stack
    return struct.pack(f"!{len(rows)}I", *rows) + payload


def pppoe(fields: Fields, protocol: int, payload: bytes) -> bytes:
    """Version 1, type 1, code 0: session data; and the PPP protocol."""
    return struct.pack("!BBHHH", 0x11, 0, fields["pppoe.session_id"], len(payload) + 2, protocol) + payload


# ---- network


def arp(fields: Fields) -> bytes:
    """RARP has the same body."""
    sender = fields["arp.src.hw_mac"] or fields["eth.src"]
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, fields["arp.opcode"])
    ends: bytes = sender + fields["arp.src"] + fields["arp.dst.hw_mac"] + fields["arp.dst"]
    return fixed + ends


def ipv4(fields: Fields, protocol: int, payload: bytes) -> bytes:
    flags = fields["ip.flags.rb"] << 15 | fields["ip.flags.df"] << 14 | fields["ip.flags.mf"] << 13 | fields["ip.frag_offset"]
    service = fields["ip.dsfield"] | fields["ip.dsfield.dscp"] << 2 | fields["ip.dsfield.ecn"]
    header = struct.pack("!BBHHHBBH", 0x45, service, 20 + len(payload), fields["ip.id"], flags, fields["ip.ttl"], protocol, 0)
    header += fields["ip.src"] + fields["ip.dst"]
    return _put(header, 10, checksum(header)) + payload


def ipv6(fields: Fields, protocol: int, payload: bytes) -> bytes:
    chain = []  # number and header without its first byte; the order is that of RFC 8200 section 4.1
    padding = b"\x00\x01\x04" + bytes(4)  # length 0 units more, PadN of 4
    if "ipv6.hopopts" in fields:
        chain.append((0, padding))
    if "ipv6.routing" in fields:
        chain.append((43, b"\x00\xfd\x00" + bytes(4)))  # an experiment's type (RFC 4727)
    if any(name.startswith("ipv6.fraghdr") for name in fields.names):
        offset = fields["ipv6.fraghdr.offset"] << 3 | fields["ipv6.fraghdr.more"]
        chain.append((44, struct.pack("!xHI", offset, fields["ipv6.fraghdr.ident"])))
    if "ipv6.dstopts" in fields:
        chain.append((60, padding))
    nexts = [*(number for number, _ in chain[1:]), protocol]
    payload = b"".join(bytes((following,)) + rest for following, (_, rest) in zip(nexts, chain, strict=False)) + payload
    service = fields["ipv6.tclass"] | fields["ipv6.tclass.dscp"] << 2 | fields["ipv6.tclass.ecn"]
    first = chain[0][0] if chain else protocol
    fixed = struct.pack("!IHBB", 6 << 28 | service << 20 | fields["ipv6.flow"], len(payload), first, fields["ipv6.hlim"])
    ends: bytes = fields["ipv6.src"] + fields["ipv6.dst"]
    return fixed + ends + payload


# ---- transport


def tcp(fields: Fields, ends: Ends, payload: bytes) -> bytes:
    flags = fields["tcp.flags"]
    single = {name.rpartition(".")[2]: on for name, on in fields.given.items() if name.startswith("tcp.flags.")}
    if flags is None and single:
        flags = 0
    elif flags is None:
        flags = TCP_FLAGS["ack"] | (TCP_FLAGS["psh"] if payload else 0)
    for name, on in single.items():
        flags = flags | TCP_FLAGS[name] if on else flags & ~TCP_FLAGS[name]
    ports = fields["tcp.srcport"], fields["tcp.dstport"]
    sequence = fields["tcp.seq"], fields["tcp.ack"] if flags & TCP_FLAGS["ack"] or "tcp.ack" in fields else 0
    header = struct.pack("!HHIIHHHH", *ports, *sequence, 5 << 12 | flags, fields["tcp.window_size_value"], 0, 0)
    whole = header + payload
    return _put(whole, 16, checksum(pseudo(ends, 6, len(whole)) + whole))


def udp(fields: Fields, ends: Ends, payload: bytes, port: int) -> bytes:
    """`port`: where it goes to unless the fields say so."""
    to = port if fields["udp.dstport"] is None else fields["udp.dstport"]
    whole = struct.pack("!HHHH", fields["udp.srcport"], to, 8 + len(payload), 0) + payload
    return _put(whole, 6, checksum(pseudo(ends, 17, len(whole)) + whole) or 0xFFFF)


def sctp(fields: Fields, payload: bytes) -> bytes:
    header = struct.pack("!HHI", fields["sctp.srcport"], fields["sctp.dstport"], fields["sctp.verification_tag"])
    return header + struct.pack("<I", crc32c(header + bytes(4) + payload)) + payload


def icmp(fields: Fields, payload: bytes) -> bytes:
    whole = struct.pack("!BBHHH", fields["icmp.type"], fields["icmp.code"], 0, fields["icmp.ident"], fields["icmp.seq"]) + payload
    return _put(whole, 2, checksum(whole))


def icmpv6(fields: Fields, ends: Ends, payload: bytes) -> bytes:
    echo = fields["icmpv6.echo.identifier"], fields["icmpv6.echo.sequence_number"]
    whole = struct.pack("!BBHHH", fields["icmpv6.type"], fields["icmpv6.code"], 0, *echo) + payload
    return _put(whole, 2, checksum(pseudo(ends, 58, len(whole)) + whole))


# ---- tunnels


def gre(fields: Fields, protocol: int, payload: bytes, sequence: int | None) -> bytes:
    """`sequence`: the number unless the fields say so; None: without."""
    number = fields["gre.sequence_number"]
    number = sequence if number is None else number
    key, summed = fields["gre.key"], fields["gre.flags.checksum"]
    flags = summed << 15 | (key is not None) << 13 | (number is not None) << 12
    options = b"".join(struct.pack("!I", value) for value in (key, number) if value is not None)
    whole = struct.pack("!HH", flags, protocol) + (bytes(4) if summed else b"") + options + payload
    return _put(whole, 4, checksum(whole)) if summed else whole


def erspan(fields: Fields, payload: bytes) -> bytes:
    """Types I (no header), II and III; of III without a time."""
    version, vlan, session = fields["erspan.version"], fields["erspan.vlan"], fields["erspan.spanid"]
    if version == 0:
        return payload
    header = struct.pack("!HHI", version << 12 | vlan, session, 0)
    return header + (bytes(4) if version == 2 else b"") + payload


def vxlan(fields: Fields, payload: bytes) -> bytes:
    return struct.pack("!II", 1 << 27, fields["vxlan.vni"] << 8) + payload


def geneve(fields: Fields, protocol: int, payload: bytes) -> bytes:
    return struct.pack("!BBHI", 0, 0, protocol, fields["geneve.vni"] << 8) + payload


def gtp(fields: Fields, payload: bytes) -> bytes:
    """Version 1, no options."""
    return struct.pack("!BBHI", 0x30, fields["gtp.message"], len(payload), fields["gtp.teid"]) + payload
