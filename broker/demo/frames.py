"""The few frames that the example needs, as bytes: Ethernet, VLAN, IPv4 and IPv6, TCP, UDP, ICMP, ARP, spanning tree.

Addresses are text; lengths and checksums are right (RFC 1071). Sources: IEEE 802.3 and 802.1D, RFC 791, 768, 792, 826, 8200, 9293.
"""

from __future__ import annotations

import ipaddress
import struct

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, PSH, ACK = 0x01, 0x02, 0x08, 0x10

_IPV4, _ARP, _VLAN, _IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD
_SHORTEST = 60  # a frame on a wire, without its FCS
BROADCAST = b"\xff" * 6


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def mac(address: str) -> bytes:
    """A locally administered MAC that belongs to an address."""
    return b"\x02\x00" + packed(address)[-4:]


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ethernet(destination: bytes, source: bytes, ethertype: int, payload: bytes, vlan: int = 0) -> bytes:
    tag = struct.pack("!HH", _VLAN, vlan) if vlan else b""
    return (destination + source + tag + struct.pack("!H", ethertype) + payload).ljust(_SHORTEST, b"\0")


def _ipv4(source: str, destination: str, protocol: int, payload: bytes, identification: int, fragment: int) -> bytes:
    def header(check: int) -> bytes:
        fixed = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), identification, fragment, 63, protocol, check)
        return fixed + packed(source) + packed(destination)

    return header(checksum(header(0))) + payload


def ip(source: str, destination: str, protocol: int, payload: bytes, *, identification: int = 0, vlan: int = 0, to: bytes = b"") -> bytes:
    """One frame; `to` is a MAC where that of the destination is not meant."""
    if ":" in source:
        fixed = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 63)
        packet = fixed + packed(source) + packed(destination) + payload
        return _ethernet(to or mac(destination), mac(source), _IPV6, packet, vlan)
    packet = _ipv4(source, destination, protocol, payload, identification, 0)
    return _ethernet(to or mac(destination), mac(source), _IPV4, packet, vlan)


def ip_fragments(source: str, destination: str, protocol: int, payload: bytes, *, identification: int, most: int) -> list[bytes]:
    """Frames that carry one payload in IPv4 fragments of `most` bytes, a multiple of 8."""
    found = []
    for at in range(0, len(payload), most):
        more = at + most < len(payload)
        packet = _ipv4(source, destination, protocol, payload[at : at + most], identification, more << 13 | at // 8)
        found.append(_ethernet(mac(destination), mac(source), _IPV4, packet))
    return found


def _pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    ends = packed(source) + packed(destination)
    return ends + (struct.pack("!I3xB", length, protocol) if ":" in source else struct.pack("!BBH", 0, protocol, length))


def tcp(source: tuple[str, int], destination: tuple[str, int], flags: int, seq: int, ack: int, payload: bytes = b"") -> bytes:
    options = struct.pack("!BBH", 2, 4, 1460) if flags & SYN else b""  # maximum segment size

    def segment(check: int) -> bytes:
        words = 5 + len(options) // 4
        fixed = struct.pack("!HHIIBBHHH", source[1], destination[1], seq, ack, words << 4, flags, 64_240, check, 0)
        return fixed + options + payload

    plain = segment(0)
    return segment(checksum(_pseudo(source[0], destination[0], TCP, len(plain)) + plain))


def udp(source: tuple[str, int], destination: tuple[str, int], payload: bytes) -> bytes:
    def datagram(check: int) -> bytes:
        return struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), check) + payload

    plain = datagram(0)
    return datagram(checksum(_pseudo(source[0], destination[0], UDP, len(plain)) + plain) or 0xFFFF)


def echo(*, reply: bool, number: int) -> bytes:
    plain = struct.pack("!BBHHH", 0 if reply else 8, 0, 0, 77, number) + bytes(range(48))
    return plain[:2] + struct.pack("!H", checksum(plain)) + plain[4:]


def arp_question(asker: str, wanted: str) -> bytes:
    body = struct.pack("!HHBBH", 1, _IPV4, 6, 4, 1) + mac(asker) + packed(asker) + bytes(6) + packed(wanted)
    return _ethernet(BROADCAST, mac(asker), _ARP, body)


def arp_answer(asker: str, wanted: str) -> bytes:
    body = struct.pack("!HHBBH", 1, _IPV4, 6, 4, 2) + mac(wanted) + packed(wanted) + mac(asker) + packed(asker)
    return _ethernet(mac(asker), mac(wanted), _ARP, body)


def spanning_tree(bridge: str) -> bytes:
    """A configuration BPDU of a root bridge: a frame with a length where others have an EtherType."""
    identifier = struct.pack("!H", 0x8000) + mac(bridge)
    times = struct.pack("!HHHH", 0, 20 * 256, 2 * 256, 15 * 256)
    body = b"\x42\x42\x03" + struct.pack("!HBBB", 0, 0, 0, 0) + identifier + bytes(4) + identifier + b"\x80\x01" + times
    return _ethernet(bytes.fromhex("0180c2000000"), mac(bridge), len(body), body)
