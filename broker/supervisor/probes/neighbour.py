"""Neighbour: who has this address? By ARP (RFC 826) or neighbour solicitation (RFC 4861 section 4.3), of the tool, or of the router that it
is behind.

The kernel's own table is not asked: it believes in a neighbour for up to a minute after its last word.
"""

from __future__ import annotations

import select
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from broker.core.model import Tool
from broker.privileges import asking
from broker.supervisor.probes.probe import ICMP_FILTER, SO_BINDTODEVICE, CannotAskError, Probe, only_type
from broker.supervisor.probes.routes import Hop, first_hop

_ETHERTYPE_ARP = 0x0806
_ETHERNET = 1  # linux/if_arp.h
_REPLY = 2
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOURCE_LINK_LAYER = b"\x01\x01"  # option 1, 1 * 8 bytes
_HOPS = 255  # what comes from further away is not believed
_BROADCAST = b"\xff" * 6


def ask(tool: Tool) -> Probe:
    """CannotAskError without CAP_NET_RAW, and where there is nothing like ARP; OSError as the kernel puts it."""
    assert tool.tunnel is not None
    hop = first_hop(tool.tunnel)
    try:
        hardware = _hardware(hop.interface)
        return _arp(hop, hop.address, hardware) if isinstance(hop.address, IPv4Address) else _solicit(hop, hop.address, hardware)
    except PermissionError:
        raise CannotAskError("packet sockets and raw sockets need CAP_NET_RAW") from None


def _hardware(interface: str) -> bytes:
    """Its Ethernet address."""
    with asking.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM) as looking:
        looking.bind((interface, 0))
        _, _, _, kind, address = looking.getsockname()
    if kind != _ETHERNET:
        raise CannotAskError(f"there are no neighbours on interface {interface}: it is no Ethernet")
    return bytes(address)


def _arp(hop: Hop, address: IPv4Address, hardware: bytes) -> Probe:
    ours = hop.source.packed if isinstance(hop.source, IPv4Address) else bytes(4)
    opened = asking.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        opened.bind((hop.interface, _ETHERTYPE_ARP))
        question = _ARP.pack(_ETHERNET, 0x0800, 6, 4, 1, hardware, ours, bytes(6), address.packed)
        opened.sendto(question, (hop.interface, _ETHERTYPE_ARP, 0, 0, _BROADCAST))
    except OSError:
        opened.close()
        raise

    def answered() -> bool:
        packet = opened.recv(2048)
        if len(packet) < _ARP.size:
            return False
        _, _, _, _, operation, theirs, sender, _, _ = _ARP.unpack_from(packet)
        return bool(operation == _REPLY and sender == address.packed and theirs != hardware)

    return Probe(opened, select.POLLIN, answered)


def _solicit(hop: Hop, address: IPv6Address, hardware: bytes) -> Probe:
    opened = asking.open_socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    try:
        opened.setsockopt(*ICMP_FILTER[socket.AF_INET6], only_type(_ADVERTISEMENT, 8))
        opened.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, hop.interface.encode())
        for option in (socket.IPV6_MULTICAST_HOPS, socket.IPV6_UNICAST_HOPS):
            opened.setsockopt(socket.IPPROTO_IPV6, option, _HOPS)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        question = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + address.packed + _SOURCE_LINK_LAYER + hardware
        index = socket.if_nametoindex(hop.interface)
        opened.sendto(question, (_all_who_may_have(address), 0, 0, index))
    except OSError:
        opened.close()
        raise

    def answered() -> bool:
        packet, ancillary, _, _ = opened.recvmsg(2048, 64)
        hops = [struct.unpack("=i", value)[0] for _, kind, value in ancillary if kind == socket.IPV6_HOPLIMIT]
        return packet[:1] == bytes([_ADVERTISEMENT]) and packet[8:24] == address.packed and hops == [_HOPS]

    return Probe(opened, select.POLLIN, answered)


def _all_who_may_have(address: IPv6Address) -> str:
    """The solicited-node multicast address (RFC 4291 section 2.7.1)."""
    return str(IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + address.packed[13:]))
