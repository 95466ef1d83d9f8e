"""seccomp(2): from when a process enters its role on, the kernel refuses (EPERM) every system call that the role has no need of.

The filter is made and loaded by libseccomp, which knows the numbers of every architecture. Where that library or the kernel's support is
missing, `enter` says so and the process goes on without. It is inherited by what a process starts, and can only become narrower.

`TAPMESH_SECCOMP=off` leaves it out, for debuggers and for finding out whether it is to blame.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

from broker.privileges import syscalls
from broker.privileges.syscalls import Argument, Role

_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000  # seccomp.h: SCMP_ACT_*
_NO_NEW_PRIVS, _SSB, _OPTIMIZE = 3, 7, 8  # SCMP_FLTATR_*
_COMPARE = {"==": 4, "&==": 7}  # SCMP_CMP_EQ, SCMP_CMP_MASKED_EQ


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


@dataclass(frozen=True)
class _Library:
    handle: ctypes.CDLL

    def check(self, status: int) -> None:
        if status < 0:
            raise OSError(-status, os.strerror(-status))


def enter(name: str) -> str:
    """Take on the role `name` of `syscalls.ROLES`, in every thread that is started from here. Why it could not be done, in words; empty:
    done. Main thread, before others."""
    if os.environ.get("TAPMESH_SECCOMP") == "off":
        return "TAPMESH_SECCOMP=off"
    try:
        library = _library()
    except OSError:
        return "libseccomp.so.2 is not installed"
    try:
        _load(library, syscalls.ROLES[name])
    except OSError as error:
        return f"the kernel takes no filter: {error.strerror}"
    return ""


def _library() -> _Library:
    handle = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    handle.seccomp_init.restype = ctypes.c_void_p
    handle.seccomp_init.argtypes = [ctypes.c_uint32]
    handle.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    handle.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    handle.seccomp_load.argtypes = handle.seccomp_release.argtypes = [ctypes.c_void_p]
    handle.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    return _Library(handle)


def _load(library: _Library, role: Role) -> None:
    handle, check = library.handle, library.check
    context = handle.seccomp_init(_ERRNO | errno.EPERM)
    if not context:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    try:
        check(handle.seccomp_attr_set(context, _NO_NEW_PRIVS, 1))
        # No code of strangers runs here, and without this older kernels slow all of ours down (speculative store bypass).
        check(handle.seccomp_attr_set(context, _SSB, 1))
        check(handle.seccomp_attr_set(context, _OPTIMIZE, 2))
        for name in role.allowed:
            _add(library, context, _ALLOW, name, ())
        for name, wanted in role.allowed_if:
            _add(library, context, _ALLOW, name, wanted)
        for name in role.unknown:
            _add(library, context, _ERRNO | errno.ENOSYS, name, ())
        check(handle.seccomp_load(context))
    finally:
        handle.seccomp_release(context)


def _add(library: _Library, context: int, action: int, name: str, wanted: tuple[Argument, ...]) -> None:
    number = library.handle.seccomp_syscall_resolve_name(name.encode())
    if number < 0:
        return  # this architecture has no such call, or the library is older than it
    compares = (_Compare * len(wanted))()
    for compare, one in zip(compares, wanted, strict=True):
        compare.arg, compare.op = one.number, _COMPARE["&==" if one.mask else "=="]
        compare.a, compare.b = (one.mask, one.value) if one.mask else (one.value, 0)
    library.check(library.handle.seccomp_rule_add_array(context, action, number, len(wanted), compares))
