"""What needs a capability, each done at once by whoever calls it: the opener for all others (`asking`), or a process that has the
capability itself.

| order | needs |
|---|---|
| `open_socket` | CAP_NET_RAW for packet sockets and raw ones; CAP_NET_ADMIN for buffers larger than net.core.rmem_max and wmem_max |
| `open_tap` | CAP_NET_ADMIN |
| `dedicate`, `release` | CAP_NET_ADMIN |
| `rules_passed_by` | CAP_NET_ADMIN |

Promiscuous mode needs none: who has a packet socket may ask for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct

from broker.privileges import ingress_drop, passed_by

_GRE = 47
_OPENED: dict[tuple[int, int], set[int]] = {
    (socket.AF_PACKET, socket.SOCK_RAW): {0},
    (socket.AF_PACKET, socket.SOCK_DGRAM): {0},
    (socket.AF_INET, socket.SOCK_RAW): {_GRE, socket.IPPROTO_UDP, socket.IPPROTO_ICMP},
    (socket.AF_INET6, socket.SOCK_RAW): {_GRE, socket.IPPROTO_UDP, socket.IPPROTO_ICMPV6},
    (socket.AF_INET, socket.SOCK_DGRAM): {0, socket.IPPROTO_UDP},
    (socket.AF_INET6, socket.SOCK_DGRAM): {0, socket.IPPROTO_UDP},
}
"""(family, type): protocols. Nothing else is opened for anybody."""
_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
_IFNAMSIZ = 16  # linux/if.h
_TUN, _TUNSETIFF, _IFF_TAP, _IFF_NO_PI = "/dev/net/tun", 0x4004_54CA, 0x0002, 0x1000  # linux/if_tun.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP, _IFF_NOARP = 0x8913, 0x8914, 0x1, 0x80  # linux/sockios.h, linux/if.h


def open_socket(family: int, kind: int, protocol: int, *, send_buffer: int = 0, receive_buffer: int = 0) -> socket.socket:
    """A new socket, not bound. `kind`: its type, perhaps with SOCK_NONBLOCK. Buffers: bytes, 0 leaves them as they are; as large as may be.

    OSError as the kernel puts it; EPROTONOSUPPORT for what is not opened here.
    """
    bare = kind & ~_FLAGS
    if protocol not in _OPENED.get((family, bare), ()):
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))
    opened = socket.socket(family, bare | socket.SOCK_CLOEXEC, protocol)
    try:
        opened.setblocking(not kind & socket.SOCK_NONBLOCK)
        for force, option, n_bytes in (
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF, send_buffer),
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF, receive_buffer),
        ):
            if n_bytes:
                _set_buffer(opened, force, option, n_bytes)
    except OSError:
        opened.close()
        raise
    return opened


def _check_name(name: str) -> None:
    """OSError (ENODEV) unless an interface may be called so (dev_valid_name, net/core/dev.c): it becomes part of a path."""
    whole = type(name) is str and 0 < len(name.encode(errors="replace")) < _IFNAMSIZ and name not in (".", "..")
    if not whole or any(character in "/:\0" or character.isspace() for character in name):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def _set_buffer(opened: socket.socket, force: int, option: int, n_bytes: int) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, force, n_bytes)
    except PermissionError:  # then net.core.rmem_max or wmem_max is the limit
        opened.setsockopt(socket.SOL_SOCKET, option, n_bytes)


def open_tap(name: str) -> int:
    """A descriptor of the tap device `name`, which is made if it is not there, and is up, without ARP and IPv6. OSError as the kernel puts
    it (Documentation/networking/tuntap.rst)."""
    _check_name(name)
    fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        with contextlib.suppress(OSError), open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
            file.write("1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
            (flags,) = struct.unpack_from("H", answer, 16)
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP | _IFF_NOARP))
    except OSError:
        os.close(fd)
        raise
    return fd


def dedicate(name: str) -> str:
    """Have what arrives on the interface end once packet sockets have it (`ingress_drop`). What on this host lives from it, in words: then
    nothing is done. Empty: done. OSError as the kernel puts it."""
    _check_name(name)
    use = ingress_drop.use_of(name)
    if not use:
        ingress_drop.install(name)
    return use


def release(name: str) -> bool:
    """Undo it. False: there was nothing. OSError as the kernel puts it."""
    _check_name(name)
    return ingress_drop.remove(name)


def rules_passed_by() -> str:
    """Rules of this network namespace that a packet socket would go past, in words; empty: none."""
    return passed_by.rules_passed_by()
