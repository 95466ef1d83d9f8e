"""Where a tunnel's packets go next: the interface, the two Ethernet addresses, the MTU; as the kernel's own tables have it at present.

The kernel finds the neighbour (ARP, neighbour discovery) and keeps asking whether it is there, as long as somebody sends to it by IP.
So what lies here is only read: where the kernel is not sure of a neighbour, there is no next hop, and who wants to send does it by IP.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass

from broker.core import routes
from broker.core.model import Tunnel
from broker.core.netlink import ask, attribute, attributes, dump

NEWS = 0x1 | 0x4 | 0x40 | 0x400  # RTMGRP_LINK, _NEIGH, _IPV4_ROUTE, _IPV6_ROUTE (linux/rtnetlink.h)

_GET_LINK, _GET_NEIGHBOUR = 18, 30
_METRIC_MTU = 2
_LINK_ADDRESS, _LINK_NAME, _LINK_MTU, _LINK_BELOW, _LINK_MASTER, _LINK_INFO, _LINK_ELSEWHERE = 1, 3, 4, 5, 10, 18, 37  # IFLA_*
_INFO_KIND = 1
_ANY_LINK = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0)
_UNCUT = (b"veth",)
_GET_QUEUE, _TCMSG, _QUEUE_KIND = 38, struct.Struct("=BxxxiIII"), 1  # RTM_GETQDISC, TCA_KIND
_CUTTING = (b"tbf", b"cake")  # tbf_segment, cake_enqueue (net/sched): a run of which one piece is queued counts as sent
_ETHER = 1  # ARPHRD_ETHER
_UP, _LOOPBACK, _RUNNING = 0x1, 0x8, 0x40  # IFF_*
_NEIGHBOUR_DST, _NEIGHBOUR_ADDRESS = 1, 2  # NDA_*
_SURE = 0x02 | 0x08 | 0x10 | 0x40 | 0x80  # NUD_REACHABLE, _DELAY, _PROBE, _NOARP, _PERMANENT (linux/neighbour.h)
_ADDRESS_BYTES = 6


@dataclass(frozen=True, slots=True)
class NextHop:
    interface: str
    index: int
    ethernet: bytes  # the header: destination, source, EtherType
    mtu: int  # of the path


@dataclass(frozen=True, slots=True)
class NoHop:
    """`passing`: the kernel is asking the neighbour, or will when somebody sends."""

    reason: str
    passing: bool = False


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    address: bytes
    mtu: int


def find_next_hop(tunnel: Tunnel, source: bytes = b"") -> NextHop | NoHop:
    """Of packets with this source address, packed; without one: as the configuration says, or any."""
    try:
        return _next_hop(tunnel, source or (ipaddress.ip_address(tunnel.source).packed if tunnel.source else b""))
    except OSError as error:
        return NoHop(f"no route: {os.strerror(error.errno or 0)}")


def keeps_runs(tunnel: Tunnel) -> str:
    """Where by which the tunnel leaves nobody cuts what UDP_SEGMENT joins, or somebody does who keeps to himself what he then drops; in
    words. The far end of a veth, or of lo, gets a run as one long packet, also through a bridge that a veth is a port of, and by a VLAN
    device above one. Where there is no route nobody knows. Empty: it is another."""
    try:
        index = _route(tunnel, ipaddress.ip_address(tunnel.source).packed if tunnel.source else b"").output
        links = dict(map(_kind_of, dump(_GET_LINK, _ANY_LINK)))
        queues = dump(_GET_QUEUE, _TCMSG.pack(0, 0, 0, 0, 0))
    except OSError as error:
        return f"there is no route: {os.strerror(error.errno or 0)}"
    below = _below(index, links)
    for one in below:
        if links[one].is_loopback or links[one].kind in _UNCUT:
            return f"{links[one].name} hands runs on as they are"
    for queue in queues:
        kind = attributes(queue, _TCMSG.size).get(_QUEUE_KIND, b"").rstrip(b"\0")
        if _TCMSG.unpack_from(queue)[1] in below and kind in _CUTTING:
            return f"{kind.decode()} cuts runs and does not say what it drops of them"
    return ""


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    kind: bytes
    is_loopback: bool
    below: int
    master: int


def _kind_of(answer: bytes) -> tuple[int, _Kind]:
    index, flags = struct.unpack_from("=iI", answer, 4)
    found = attributes(answer[16:])
    kind = attributes(found.get(_LINK_INFO, b"")).get(_INFO_KIND, b"").rstrip(b"\0")
    below, master = (int.from_bytes(found.get(what, b""), "little") for what in (_LINK_BELOW, _LINK_MASTER))
    below = 0 if _LINK_ELSEWHERE in found else below  # a number of another namespace
    return index, _Kind(found[_LINK_NAME].rstrip(b"\0").decode(errors="replace"), kind, bool(flags & _LOOPBACK), below, master)


def _below(index: int, links: dict[int, _Kind]) -> list[int]:
    """The interface and all through which it may send: the ports of a bridge or bond, what a VLAN device stands on."""
    found: list[int] = []
    left = [index]
    while left:
        one = left.pop()
        if one not in links or one in found:
            continue
        found.append(one)
        left += [port for port, link in links.items() if link.master == one]
        if links[one].kind not in _UNCUT:  # there it is the far end
            left.append(links[one].below)
    return found


def _route(tunnel: Tunnel, source: bytes) -> routes.Route:
    remote = ipaddress.ip_address(tunnel.remote)
    leave_by = tunnel.interface or getattr(remote, "scope_id", None) or ""
    return routes.route_to(remote, interface=leave_by, source=source, dscp=tunnel.dscp, udp=bool(tunnel.udp_port))


def _next_hop(tunnel: Tunnel, source: bytes) -> NextHop | NoHop:
    remote = ipaddress.ip_address(tunnel.remote)
    v4 = remote.version == 4
    route = _route(tunnel, source)
    found = route.values
    if route.kind != routes.UNICAST or not route.output:
        return NoHop("the address is this host's own, or one of many hosts")
    if not found.keys().isdisjoint((routes.MULTIPATH, routes.VIA, routes.ENCAPSULATION)):
        return NoHop("the route has several ways, or an encapsulation of its own")
    index = route.output
    link = _link(index)
    if isinstance(link, NoHop):
        return link
    neighbour = _neighbour(socket.AF_INET if v4 else socket.AF_INET6, index, found.get(routes.GATEWAY, remote.packed))
    if isinstance(neighbour, NoHop):
        return neighbour
    mtu = int.from_bytes(attributes(found.get(routes.METRICS, b"")).get(_METRIC_MTU, b""), "little")
    ethernet = neighbour + link.address + (b"\x08\x00" if v4 else b"\x86\xdd")
    return NextHop(link.name, index, ethernet, min(mtu or link.mtu, link.mtu))


def _link(index: int) -> _Link | NoHop:
    ((_, answer),) = ask(_GET_LINK, struct.pack("=BBHiII", 0, 0, 0, index, 0, 0))
    kind, flags = struct.unpack_from("=H4xI", answer, 2)
    found = attributes(answer[16:])
    name = found[_LINK_NAME].rstrip(b"\0").decode()
    address = found.get(_LINK_ADDRESS, b"")
    if kind != _ETHER or flags & _LOOPBACK or len(address) != _ADDRESS_BYTES:
        return NoHop(f"{name} is no Ethernet interface")
    if not flags & _UP or not flags & _RUNNING:
        return NoHop(f"{name} is down, or has no carrier", passing=True)
    return _Link(name, address, int.from_bytes(found[_LINK_MTU], "little"))


def _neighbour(family: int, index: int, address: bytes) -> bytes | NoHop:
    asked = struct.pack("=BxHiHBB", family, 0, index, 0, 0, 0) + attribute(_NEIGHBOUR_DST, address)
    try:
        ((_, answer),) = ask(_GET_NEIGHBOUR, asked)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return NoHop("the neighbour is not known yet", passing=True)
    (state,) = struct.unpack_from("=H", answer, 8)
    ethernet = attributes(answer[12:]).get(_NEIGHBOUR_ADDRESS, b"")
    if not state & _SURE or len(ethernet) != _ADDRESS_BYTES:
        return NoHop("the kernel is not sure of the neighbour", passing=True)
    return ethernet
