"""Packets by hand: bytes from `struct` and the RFCs, nothing of ours. What the data path must understand is built here.

Layers take the layer above as their payload and give bytes. Addresses are text. Lengths and checksums are right unless told otherwise::

    ethernet(ipv4("10.0.0.1", "10.0.0.2", TCP, tcp(4000, 443, ends=("10.0.0.1", "10.0.0.2"))))
    tcp_frame("10.0.0.1", 4000, "10.0.0.2", 443, b"hello", vlans=(30,))

| layer | source |
|---|---|
| ethernet, vlan | IEEE 802.3, 802.1Q |
| arp | RFC 826 |
| ipv4, fragments | RFC 791 |
| ipv6, hop_by_hop, routing, fragment_header, authentication | RFC 8200, RFC 4302 |
| tcp, udp, sctp, icmp, icmp6 | RFC 9293, 768, 9260, 792, 4443 |
| gre, nvgre | RFC 2784, RFC 2890, RFC 7637 |
| erspan2, erspan3 | draft-foschiano-erspan-03 |
| vxlan, geneve | RFC 7348, RFC 8926 |
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence

HOPOPTS, ICMP, IPIP, TCP, UDP, IPV6, ROUTING, FRAGMENT, GRE, ESP, AH, ICMP6, NONE, DSTOPTS, SCTP = (
    0, 1, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132,
)  # fmt: skip
"""IANA protocol numbers."""

ETH_IP, ETH_ARP, ETH_TEB, ETH_VLAN, ETH_IP6, ETH_MPLS, ETH_QINQ = 0x0800, 0x0806, 0x6558, 0x8100, 0x86DD, 0x8847, 0x88A8
"""EtherTypes."""

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
"""TCP flags."""

MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"

Ends = tuple[str, str]
"""Source and destination address: what a transport checksum also covers."""


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def address(text: str) -> bytes:
    """4 or 16 bytes in network order."""
    return ipaddress.ip_address(text).packed


def checksum(data: bytes) -> int:
    """Internet checksum, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(ends: Ends, protocol: int, length: int) -> bytes:
    """RFC 9293 section 3.1 for IPv4, RFC 8200 section 8.1 for IPv6."""
    source, destination = (address(end) for end in ends)
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!I3xB", length, protocol)


def crc32c(data: bytes) -> int:
    """Castagnoli, bit by bit (RFC 9260 appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# ---- link


def ethernet(
    payload: bytes = b"",
    *,
    type: int = ETH_IP,  # noqa: A002
    source: str = MAC_A,
    destination: str = MAC_B,
    vlans: Sequence[int] = (),
) -> bytes:
    """A frame without FCS and without padding. `vlans` are TCIs (a plain VLAN id will do), outermost first, all of type 0x8100."""
    tags = b"".join(struct.pack("!HH", ETH_VLAN, tci) for tci in vlans)
    return mac(destination) + mac(source) + tags + struct.pack("!H", type) + payload


def vlan(payload: bytes, tci: int, *, type: int = ETH_IP) -> bytes:  # noqa: A002
    """What follows an EtherType of 0x8100 or 0x88a8."""
    return struct.pack("!HH", tci, type) + payload


def padded(frame: bytes, to: int = 60) -> bytes:
    """With the zeros that short frames have on a wire."""
    return frame.ljust(to, b"\0")


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    """(MAC, IPv4 address) of both; operation 1 asks, 2 answers."""
    parts = b"".join(mac(m) + address(a) for m, a in (sender, target))
    return struct.pack("!HHBBH", 1, ETH_IP, 6, 4, operation) + parts


# ---- network


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes = b"",
    *,
    ttl: int = 64,
    tos: int = 0,
    identification: int = 0,
    dont_fragment: bool = False,
    more_fragments: bool = False,
    offset: int = 0,
    options: bytes = b"",
    total_len: int | None = None,
    header_checksum: int | None = None,
    header_words: int | None = None,
) -> bytes:
    """`offset` in bytes, a multiple of 8; `options` a multiple of 4. The last three make a header that lies."""
    assert offset % 8 == 0
    assert len(options) % 4 == 0
    words = 5 + len(options) // 4 if header_words is None else header_words
    length = 20 + len(options) + len(payload) if total_len is None else total_len
    fragment = dont_fragment << 14 | more_fragments << 13 | offset // 8

    def header(check: int) -> bytes:
        fixed = struct.pack("!BBHHHBBH", 4 << 4 | words, tos, length, identification, fragment, ttl, protocol, check)
        return fixed + address(source) + address(destination) + options

    return header(checksum(header(0)) if header_checksum is None else header_checksum) + payload


def fragments(
    source: str, destination: str, protocol: int, payload: bytes, *, size: int, identification: int = 1, ttl: int = 64
) -> list[bytes]:
    """IPv4 packets of at most `size` (a multiple of 8) bytes of payload each."""
    assert size % 8 == 0
    return [
        ipv4(
            source, destination, protocol, payload[at : at + size],
            identification=identification, ttl=ttl, offset=at, more_fragments=at + size < len(payload),
        )
        for at in range(0, len(payload), size)
    ]  # fmt: skip


def ipv6(
    source: str,
    destination: str,
    next_header: int,
    payload: bytes = b"",
    *,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow_label: int = 0,
    payload_len: int | None = None,
) -> bytes:
    """Extension headers are part of the payload; `next_header` is the number of the first one."""
    length = len(payload) if payload_len is None else payload_len
    first = 6 << 28 | traffic_class << 20 | flow_label
    return struct.pack("!IHBB", first, length, next_header, hop_limit) + address(source) + address(destination) + payload


def _options_header(next_header: int, payload: bytes, options: bytes) -> bytes:
    body = options + (b"" if options else b"\1\4\0\0\0\0")  # PadN
    assert (len(body) + 2) % 8 == 0
    return struct.pack("!BB", next_header, (len(body) + 2) // 8 - 1) + body + payload


def hop_by_hop(next_header: int, payload: bytes, options: bytes = b"") -> bytes:
    """`options` of 6 + 8n bytes; by default padding. Destination options (60) look the same."""
    return _options_header(next_header, payload, options)


destination_options = hop_by_hop


def routing(next_header: int, payload: bytes, via: Sequence[str] = ("2001:db8::99",), *, segments_left: int = 0) -> bytes:
    """Type 2 with one address or anything else with many; nobody looks at the type."""
    body = struct.pack("!BB4x", 2, segments_left) + b"".join(address(a) for a in via)
    return struct.pack("!BB", next_header, len(via) * 2) + body + payload


def fragment_header(next_header: int, payload: bytes, *, offset: int = 0, more: bool = False, identification: int = 1) -> bytes:
    assert offset % 8 == 0
    return struct.pack("!BBHI", next_header, 0, offset | more, identification) + payload


def authentication(next_header: int, payload: bytes, *, icv_len: int = 12) -> bytes:
    """AH, RFC 4302; its length counts 32-bit words, minus 2."""
    return struct.pack("!BBHII", next_header, (12 + icv_len) // 4 - 2, 0, 0x100, 1) + bytes(icv_len) + payload


# ---- transport


def tcp(
    source_port: int,
    destination_port: int,
    payload: bytes = b"",
    *,
    flags: int = ACK,
    seq: int = 0,
    ack: int = 0,
    window: int = 65_535,
    options: bytes = b"",
    ends: Ends | None = None,
) -> bytes:
    """Checksum 0 without `ends`."""
    assert len(options) % 4 == 0
    ports = struct.pack("!HHII", source_port, destination_port, seq, ack)
    head = struct.pack("!BBH", (5 + len(options) // 4) << 4, flags, window)

    def segment(check: int) -> bytes:
        return ports + head + struct.pack("!HH", check, 0) + options + payload

    plain = segment(0)
    return segment(checksum(pseudo_header(ends, TCP, len(plain)) + plain)) if ends else plain


def udp(source_port: int, destination_port: int, payload: bytes = b"", *, ends: Ends | None = None, length: int | None = None) -> bytes:
    """Checksum 0 (none) without `ends`."""
    length = 8 + len(payload) if length is None else length

    def datagram(check: int) -> bytes:
        return struct.pack("!HHHH", source_port, destination_port, length, check) + payload

    plain = datagram(0)
    return datagram(checksum(pseudo_header(ends, UDP, len(plain)) + plain) or 0xFFFF) if ends else plain


def sctp(source_port: int, destination_port: int, payload: bytes = b"", *, tag: int = 1, tsn: int = 1) -> bytes:
    """One DATA chunk."""
    chunk = struct.pack("!BBHIHHI", 0, 3, 16 + len(payload), tsn, 0, 0, 0) + payload
    chunk += bytes(-len(chunk) % 4)
    head = struct.pack("!HHI", source_port, destination_port, tag)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def icmp(type: int = 8, code: int = 0, rest: bytes = b"\0\1\0\1", payload: bytes = b"ping") -> bytes:  # noqa: A002
    """`rest` is the second word: identifier and sequence of an echo, what the type says of others."""
    plain = struct.pack("!BBH", type, code, 0) + rest + payload
    return plain[:2] + struct.pack("!H", checksum(plain)) + plain[4:]


def icmp6(ends: Ends, type: int = 128, code: int = 0, rest: bytes = b"\0\1\0\1", payload: bytes = b"ping") -> bytes:  # noqa: A002
    plain = struct.pack("!BBH", type, code, 0) + rest + payload
    return plain[:2] + struct.pack("!H", checksum(pseudo_header(ends, ICMP6, len(plain)) + plain)) + plain[4:]


def gre(
    payload: bytes, *, protocol: int = ETH_TEB, key: int | None = None, sequence: int | None = None, with_checksum: bool = False
) -> bytes:
    flags = with_checksum << 15 | (key is not None) << 13 | (sequence is not None) << 12
    optional = b"".join(struct.pack("!I", value) for value in (key, sequence) if value is not None)

    def packet(check: bytes) -> bytes:
        return struct.pack("!HH", flags, protocol) + check + optional + payload

    return packet(struct.pack("!HH", checksum(packet(bytes(4))), 0)) if with_checksum else packet(b"")


def nvgre(payload: bytes, *, subnet: int, flow: int) -> bytes:
    return gre(payload, key=subnet << 8 | flow)


def erspan2(
    payload: bytes,
    *,
    sequence: int,
    session: int,
    vlan: int = 0,
    cos: int = 0,
    encapsulation: int = 0,
    truncated: bool = False,
    index: int = 0,
) -> bytes:
    head = struct.pack("!HHI", 1 << 12 | vlan, cos << 13 | encapsulation << 11 | truncated << 10 | session, index)
    return gre(head + payload, protocol=0x88BE, sequence=sequence)


def erspan3(
    payload: bytes,
    *,
    sequence: int,
    session: int,
    vlan: int = 0,
    cos: int = 0,
    truncated: bool = False,
    timestamp: int,
    granularity: int,
    hw_id: int = 0,
    egress: bool = False,
    subheader: bytes = b"",
) -> bytes:
    """P is set: the payload is an Ethernet frame."""
    head = struct.pack("!HHI", 2 << 12 | vlan, cos << 13 | truncated << 10 | session, timestamp & 0xFFFF_FFFF)
    last = 1 << 15 | hw_id << 4 | egress << 3 | granularity << 1 | bool(subheader)
    return gre(head + struct.pack("!HH", 0, last) + subheader + payload, protocol=0x22EB, sequence=sequence)


def vxlan(payload: bytes, *, vni: int) -> bytes:
    return struct.pack("!B3xI", 0x08, vni << 8) + payload


def geneve(payload: bytes, *, vni: int, options: bytes = b"") -> bytes:
    return struct.pack("!BBHI", len(options) // 4, 0, ETH_TEB, vni << 8) + options + payload


# ---- whole frames


def ip_frame(source: str, destination: str, protocol: int, payload: bytes = b"", *, vlans: Sequence[int] = ()) -> bytes:
    """Ethernet and IPv4 or IPv6, as the addresses say."""
    if ":" in source:
        return ethernet(ipv6(source, destination, protocol, payload), type=ETH_IP6, vlans=vlans)
    return ethernet(ipv4(source, destination, protocol, payload), vlans=vlans)


def tcp_frame(
    source: str,
    source_port: int,
    destination: str,
    destination_port: int,
    payload: bytes = b"",
    *,
    flags: int = ACK,
    vlans: Sequence[int] = (),
) -> bytes:
    segment = tcp(source_port, destination_port, payload, flags=flags, ends=(source, destination))
    return ip_frame(source, destination, TCP, segment, vlans=vlans)


def udp_frame(
    source: str, source_port: int, destination: str, destination_port: int, payload: bytes = b"", *, vlans: Sequence[int] = ()
) -> bytes:
    datagram = udp(source_port, destination_port, payload, ends=(source, destination))
    return ip_frame(source, destination, UDP, datagram, vlans=vlans)


# ---- captures


def pcap(
    frames: Sequence[bytes | tuple[int, bytes]], *, nanoseconds: bool = True, order: str = "<", linktype: int = 1, snaplen: int = 262_144
) -> bytes:
    """A classic capture (draft-ietf-opsawg-pcap). A frame may come with its time in ns since 1970; by default they are 1 ms apart."""
    unit, magic = (1, 0xA1B23C4D) if nanoseconds else (1000, 0xA1B2C3D4)
    out = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, linktype)]
    for i, item in enumerate(frames):
        ts_ns, frame = item if isinstance(item, tuple) else (1_700_000_000_000_000_000 + i * 1_000_000, item)
        seconds, rest = divmod(ts_ns, 1_000_000_000)
        out += [struct.pack(order + "IIII", seconds, rest // unit, len(frame), len(frame)), frame]
    return b"".join(out)


def read_pcap(data: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """(link type, [(ts_ns, frame)]) of a classic capture of either order and unit."""
    order = "<" if data[:1] in (b"\xd4", b"\x4d") else ">"
    (magic,) = struct.unpack_from(order + "I", data)
    unit = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}[magic]
    (linktype,) = struct.unpack_from(order + "I", data, 20)
    at, found = 24, []
    while at < len(data):
        seconds, rest, caplen, _ = struct.unpack_from(order + "IIII", data, at)
        frame = data[at + 16 : at + 16 + caplen]
        assert len(frame) == caplen, f"cut short at byte {at}"
        found.append((seconds * 1_000_000_000 + rest * unit, frame))
        at += 16 + caplen
    return linktype, found
