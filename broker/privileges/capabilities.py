"""Capabilities of this process (capabilities(7)): what it holds, and giving up for good all but a few.

Main thread only, before other threads are started: each thread has capabilities of its own.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
from collections.abc import Collection

NET_ADMIN, NET_RAW = 12, 13
"""linux/capability.h"""
NAMES = {NET_ADMIN: "CAP_NET_ADMIN", NET_RAW: "CAP_NET_RAW"}

_VERSION_3 = 0x2008_0522
_SETPCAP = 8
_SET_DUMPABLE, _SET_KEEPCAPS, _CAPBSET_DROP, _SET_SECUREBITS, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 4, 8, 24, 28, 38, 47  # linux/prctl.h
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_ROOT_IS_NOBODY = 0b1111  # linux/securebits.h: NOROOT and NO_SETUID_FIXUP, both locked
_libc = ctypes.CDLL(None, use_errno=True)


def held() -> frozenset[int]:
    """Numbers of the permitted ones."""
    return _bits(_get()[1])


def become(user: str) -> None:
    """Be `user`, with its groups and home, and keep the capabilities. KeyError: there is no such user; OSError as the kernel puts it."""
    entry = pwd.getpwnam(user)
    _prctl(_SET_KEEPCAPS, 1)
    os.initgroups(user, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    _, permitted, inheritable = _get()
    _set(permitted, permitted, inheritable)
    _prctl(_SET_DUMPABLE, 1)  # else what /proc shows of us is root's, and we look there
    os.environ["HOME"] = entry.pw_dir
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        os.environ.pop(name, None)


def hand_on(numbers: Collection[int]) -> None:
    """Programs that are started from here have these, which must be held. OSError as the kernel puts it."""
    effective, permitted, _ = _get()
    _set(effective, permitted, _mask(numbers))
    for number in numbers:
        _prctl(_CAP_AMBIENT, _AMBIENT_RAISE, number)


def keep(wanted: Collection[int]) -> frozenset[int]:
    """Give up all but `wanted`, of what is held, and the possibility to get more by starting a program. Returns those that are left.

    OSError as the kernel puts it.
    """
    left = held() & frozenset(wanted)
    if _SETPCAP in held():  # without it the kernel allows neither, and a program of root's would still gain nothing: see below
        for number in range(_last() + 1):
            if number not in left:
                _prctl(_CAPBSET_DROP, number)
        _prctl(_SET_SECUREBITS, _ROOT_IS_NOBODY)
    _prctl(_SET_NO_NEW_PRIVS, 1)
    _prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    _set(_mask(left), _mask(left), 0)
    return left


def hide_memory() -> None:
    """No core dump of this process, and no other of the same user may look into its memory (PR_SET_DUMPABLE)."""
    _prctl(_SET_DUMPABLE, 0)


def _last() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def _mask(numbers: Collection[int]) -> int:
    return sum(1 << number for number in numbers)


def _bits(mask: int) -> frozenset[int]:
    return frozenset(number for number in range(64) if mask >> number & 1)


def _get() -> tuple[int, int, int]:
    """Masks: effective, permitted, inheritable."""
    header, data = struct.pack("=Ii", _VERSION_3, 0), ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data))
    low, high = struct.unpack("=3I", data.raw[:12]), struct.unpack("=3I", data.raw[12:])
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def _set(*masks: int) -> None:
    data = struct.pack("=3I", *(m & 0xFFFF_FFFF for m in masks)) + struct.pack("=3I", *(m >> 32 for m in masks))
    _check(_libc.capset(struct.pack("=Ii", _VERSION_3, 0), data))


def _prctl(option: int, *arguments: int) -> None:
    four = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(option, *four))


def _check(status: int) -> None:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
