"""The system call of a receiving kernel. With NUMBA_DISABLE_JIT=1 the same call is ctypes."""

from __future__ import annotations

from typing import Any

from stages.jit import MODE

recvmmsg: Any
"""(fd, mmsghdr[n] at, n, flags, timeout: 0) -> messages, -1: none (why is of no use to a kernel: who polls the socket finds out)."""

if MODE in ("plain", "ahead"):  # ahead: nobody calls them
    import ctypes

    _libc = ctypes.CDLL(None)

    def _recvmmsg(fd: int, vectors_at: int, n: int, flags: int, timeout_at: int) -> int:
        return int(_libc.recvmmsg(fd, ctypes.c_void_p(vectors_at), ctypes.c_uint(n), ctypes.c_int(flags), ctypes.c_void_p(timeout_at)))

    recvmmsg = _recvmmsg

else:
    from numba import types

    # int64 where C has int: a callee looks at the low half only, and kernels know no other type.
    recvmmsg = types.ExternalFunction("recvmmsg", types.int32(types.int64, types.int64, types.int64, types.int64, types.int64))
