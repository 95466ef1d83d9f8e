"""The one numba policy: ``@kernel``. No other file of the data path calls numba's decorators.

Kernels take int64 addresses and sizes, write into what they are given, allocate nothing, raise nothing and touch no cursor. They read
and write memory only through `stages.memory`. With ``NUMBA_DISABLE_JIT=1`` they run as plain Python over the same addresses, where every
access is checked against the regions that a test registers: the slow, bounds-checked twin of what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])

PLAIN: bool = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined]
"""Kernels run as plain Python."""


def kernel(function: F) -> F:
    """Compile to machine code at first call, kept in the cache that `stages.cache` has named. No GIL, no exceptions, no fastmath."""
    compiled: F = numba.njit(cache=True, error_model="numpy", boundscheck=False)(function)  # type: ignore[assignment]
    return compiled
