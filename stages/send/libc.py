"""System calls from kernels. With NUMBA_DISABLE_JIT=1 the same calls are ctypes."""

from __future__ import annotations

from typing import Any

from stages.jit import MODE

sendmmsg: Any
writev: Any
errno_location: Any
"""Gives the address of the errno of the last call."""

if MODE in ("plain", "ahead"):  # ahead: nobody calls them
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)

    def _sendmmsg(fd: int, vectors_at: int, n: int, flags: int) -> int:
        return int(_libc.sendmmsg(ctypes.c_int(fd), ctypes.c_void_p(vectors_at), ctypes.c_uint(n), ctypes.c_int(flags)))

    def _writev(fd: int, vectors_at: int, n: int) -> int:
        return int(_libc.writev(ctypes.c_int(fd), ctypes.c_void_p(vectors_at), ctypes.c_int(n)))

    _errno = ctypes.c_int()

    def _errno_location() -> int:
        _errno.value = ctypes.get_errno()
        return ctypes.addressof(_errno)

    sendmmsg, writev, errno_location = _sendmmsg, _writev, _errno_location

else:
    from numba import types

    # int64 where C has int: a callee looks at the low half only, and kernels know no other type.
    sendmmsg = types.ExternalFunction("sendmmsg", types.int32(types.int64, types.int64, types.int64, types.int64))
    writev = types.ExternalFunction("writev", types.int64(types.int64, types.int64, types.int64))
    errno_location = types.ExternalFunction("__errno_location", types.int64())
