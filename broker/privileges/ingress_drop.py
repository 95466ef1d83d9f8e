"""Frames on a dedicated interface end once the packet sockets have them: a tc filter at its ingress that drops everything (tc-bpf(8)).

Behind the tap each frame would go on to the IP stack, which costs more than capturing it and is for nothing where nobody on this host wants
what arrives. The filter outlives whoever installed it. It is known again by its preference and handle, so the next start takes it over
and a regular stop removes it; the handle also says whether the queueing discipline that it hangs on was made with it, and goes with it.
By hand: ``tc filter del dev IF ingress pref 65520``.

The one instruction is classic BPF: more kernels have cls_bpf than matchall, which needs a module for its action, too.
"""

from __future__ import annotations

import errno
import socket
import struct

from broker.core import netlink

_GETLINK, _GETADDR, _NEWQDISC, _DELQDISC, _NEWFILTER, _DELFILTER, _GETFILTER = 18, 22, 36, 37, 44, 45, 46
_LINK, _ADDRESS = struct.Struct("=BxHiII"), struct.Struct("=4BI")  # ifinfomsg; ifaddrmsg: family, prefix, flags, scope, index
_TC = struct.Struct("=BxxxiIII")  # tcmsg: family, ifindex, handle, parent, info
_IFLA_NAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_INFO, _INFO_KIND = 3, 5, 10, 18, 1
_IFA_ADDRESS, _IFA_LOCAL, _SCOPE_LINK = 1, 2, 253
_KIND, _OPTIONS, _OPS_LEN, _OPS, _FLAGS, _DIRECT = 1, 2, 4, 5, 8, 1
_CLSACT, _INGRESS, _EGRESS = 0xFFFF_FFF1, 0xFFFF_FFF2, 0xFFFF_FFF3
_DISCIPLINE = 0xFFFF_0000

_PREFERENCE = 65_520  # behind all others
_INFO = _PREFERENCE << 16 | socket.htons(0x0003)  # for all protocols
_ON_THEIRS, _ON_OURS = 0x7461_7000, 0x7461_7001
"""Handles of the filter: the queueing discipline was there before, or came with it."""

_SHOT = struct.pack("=HBBI", 0x06, 0, 0, 2)  # return TC_ACT_SHOT


def use_of(name: str) -> str:
    """What else on this host lives from what arrives on the interface, in words; empty: nothing that is to be seen. An address of its
    own (but link-local ones, which every interface gives itself), a bridge or bond that it is a port of, a VLAN device on it."""
    number = socket.if_nametoindex(name)
    for body in netlink.dump(_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        family, prefix, _, scope, index = _ADDRESS.unpack_from(body)
        if index == number and scope != _SCOPE_LINK:
            values = netlink.attributes(body, _ADDRESS.size)
            return f"it has the address {socket.inet_ntop(family, values.get(_IFA_LOCAL) or values[_IFA_ADDRESS])}/{prefix}"
    for body in netlink.dump(_GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
        _, _, index, _, _ = _LINK.unpack_from(body)
        values = netlink.attributes(body, _LINK.size)
        kind = netlink.attributes(values.get(_IFLA_INFO, b"")).get(_INFO_KIND, b"")
        if index == number and _IFLA_MASTER in values:
            return f"it is a port of {socket.if_indextoname(struct.unpack('=I', values[_IFLA_MASTER])[0])}"
        if _IFLA_LINK in values and struct.unpack("=I", values[_IFLA_LINK])[0] == number != index and not kind.startswith(b"veth"):
            return f"{values[_IFLA_NAME].rstrip(bytes(1)).decode(errors='replace')} is on top of it"
    return ""


def install(name: str) -> None:
    """Have it there, whoever has put it there. OSError as the kernel puts it."""
    index = socket.if_nametoindex(name)
    if _ours(index):
        return
    handle = _ON_OURS
    try:
        body = _TC.pack(0, index, _DISCIPLINE, _CLSACT, 0) + netlink.attribute(_KIND, b"clsact\0")
        netlink.order(_NEWQDISC, body, netlink.CREATE | netlink.EXCLUSIVE)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        handle = _ON_THEIRS
    options = (
        netlink.attribute(_OPS_LEN, struct.pack("=H", 1))
        + netlink.attribute(_OPS, _SHOT)
        + netlink.attribute(_FLAGS, struct.pack("=I", _DIRECT))
    )
    body = _TC.pack(0, index, handle, _INGRESS, _INFO) + netlink.attribute(_KIND, b"bpf\0") + netlink.attribute(_OPTIONS, options)
    try:
        netlink.order(_NEWFILTER, body, netlink.CREATE | netlink.EXCLUSIVE)
    except OSError:
        if handle == _ON_OURS:
            _remove_discipline(index)
        raise


def remove(name: str) -> bool:
    """Take away what `install` has put there, and nothing else. False: there was nothing. OSError as the kernel puts it."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return False  # the interface is gone, and it with it
    found = _ours(index)
    for handle in found:
        netlink.order(_DELFILTER, _TC.pack(0, index, handle, _INGRESS, _INFO) + netlink.attribute(_KIND, b"bpf\0"))
    if _ON_OURS in found and not _filters(index, _INGRESS) and not _filters(index, _EGRESS):
        _remove_discipline(index)
    return bool(found)


def _remove_discipline(index: int) -> None:
    netlink.order(_DELQDISC, _TC.pack(0, index, _DISCIPLINE, _CLSACT, 0))


def _ours(index: int) -> list[int]:
    """Handles of our filters there."""
    return [handle for handle, info in _filters(index, _INGRESS) if info == _INFO and handle in (_ON_THEIRS, _ON_OURS)]


def _filters(index: int, parent: int) -> list[tuple[int, int]]:
    """(handle, preference and protocol) of every filter there."""
    try:
        bodies = netlink.dump(_GETFILTER, _TC.pack(0, index, 0, parent, 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # no discipline to hang filters on
            return []
        raise
    return [(handle, info) for _, _, handle, _, info in map(_TC.unpack_from, bodies)]


def in_words(error: OSError) -> str:
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return "it needs the capability CAP_NET_ADMIN (or root)"
        case errno.ENOENT | errno.EOPNOTSUPP:
            return "the kernel has no clsact queueing discipline or no bpf classifier (sch_ingress, cls_bpf)"
        case errno.EEXIST | errno.EINVAL:
            return f"another filter has the preference {_PREFERENCE} at its ingress"
        case _:
            return str(error)
