"""The sockets of a tunnel input: raw GRE, or UDP; one for each family of addresses that packets are taken from (raw(7), udp(7)).

The kernel reassembles fragments and verifies UDP checksums before a datagram comes here. A UDP checksum of zero is taken over IPv6 too, as
tunnels may send it (RFC 6935, RFC 6936). The time of a datagram is that of its arrival in this host's network stack.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
import struct

from broker.core.model import Input
from broker.privileges import asking
from stages.capture.endpoint_kernels import SO_TIMESTAMPNS
from stages.capture.errors import SourceError

_IPPROTO_GRE, _IPPROTO_UDP, _UDP_NO_CHECK6_RX = 47, 17, 102  # linux/udp.h
_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MEMINFO = 26, 27, 55  # asm-generic/socket.h
_MEMINFO_DROPS, _MEMINFO_WORDS = 8, 9  # linux/sock_diag.h
_BPF_RETURN = 0x06  # linux/filter.h BPF_RET | BPF_K


def families(input_: Input) -> list[socket.AddressFamily]:
    """Of its own address; without one, those of the nets that packets are taken from."""
    written = [input_.address] if input_.address else [net.partition("/")[0] for net in input_.senders]
    versions = {ipaddress.ip_address(text).version for text in written}
    return [family for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)) if version in versions]


def open_socket(input_: Input, family: socket.AddressFamily, lane: int) -> socket.socket:
    """Bound, and with a large buffer; that of a worker before us, if the opener has kept it. SourceError in words; OSError when it may be
    kept and cannot be had: to be tried again, for another would leave behind what it holds."""
    name = described(input_)
    kept = _kept_as(lane, family)
    wanted = f"{name} {input_.buffer_bytes}"
    if found := asking.find_kept(kept, wanted):
        found.setblocking(False)
        _take_all(found)
        return found
    raw = input_.listen == "gre"
    try:
        opened = asking.open_socket(
            family,
            socket.SOCK_RAW if raw else socket.SOCK_DGRAM,
            _IPPROTO_GRE if raw else _IPPROTO_UDP,
            receive_buffer=input_.buffer_bytes,
        )
    except PermissionError:
        raise SourceError(name, None, "receiving GRE needs the capability CAP_NET_RAW (or root); gre-udp needs none") from None
    except TimeoutError:  # the opener hangs: that may pass
        raise
    except OSError as error:
        raise SourceError(name, None, os.strerror(error.errno or 0)) from None
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if family == socket.AF_INET6 and not raw:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(_IPPROTO_UDP, _UDP_NO_CHECK6_RX, 1)
        with contextlib.suppress(OSError):  # then a worker that dies costs what its socket held
            asking.keep(kept, wanted, opened)
        opened.bind((input_.address, 0 if raw else input_.port))
    except OSError as error:
        end(opened, lane)
        raise SourceError(name, None, _in_words(error, input_)) from None
    return opened


def _kept_as(lane: int, family: int) -> str:
    return f"tunnel-{lane}-{int(family)}"


def end(opened: socket.socket, lane: int) -> None:
    """Close it for good: nobody is to take it over."""
    family = opened.family
    opened.close()
    with contextlib.suppress(OSError):
        asking.drop_kept(_kept_as(lane, family))


def described(input_: Input) -> str:
    """`gre`, `vxlan on 192.0.2.1 port 4789`: how messages and the log call an input."""
    return input_.listen + (f" on {input_.address}" if input_.address else "") + (f" port {input_.port}" if input_.port else "")


def reject_all(opened: socket.socket) -> None:
    """From now on nothing new comes; what the socket holds stays."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(instruction)))


def _take_all(opened: socket.socket) -> None:
    with contextlib.suppress(FileNotFoundError):  # it had rejected nothing
        opened.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def identity(opened: socket.socket) -> int:
    """No other socket has it, while this one is open anywhere."""
    return os.fstat(opened.fileno()).st_ino


def dropped(opened: socket.socket) -> int:
    """Datagrams that the kernel has dropped at this socket since it was opened; 32 bits."""
    raw = opened.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
    return int(struct.unpack(f"{len(raw) // 4}I", raw)[_MEMINFO_DROPS])


def take_error(opened: socket.socket) -> None:
    """As long as an error is pending, whoever polls is woken at once. None of them is about a datagram that came."""
    opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _in_words(error: OSError, input_: Input) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"UDP port {input_.port} is taken by another program, or by a tunnel device of this host"
        case errno.EADDRNOTAVAIL:
            return f"{input_.address} is no address of this host"
        case errno.EACCES | errno.EPERM:
            return f"UDP port {input_.port} needs the capability CAP_NET_BIND_SERVICE (or root)"
        case _:
            return os.strerror(error.errno or 0)
