"""The one numba policy: ``@kernel``. No other file of the data path calls numba's decorators.

Kernels take int64 addresses and sizes, write into what they are given, allocate nothing, raise nothing and touch no cursor. They read
and write memory only through `stages.memory`. With ``NUMBA_DISABLE_JIT=1`` they run as plain Python over the same addresses, where every
access is checked against the regions that a test registers: the slow, bounds-checked twin of what is compiled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numba

from stages import cache

CACHE_DIRECTORY = cache.use()
# Somebody may have imported numba before us, so telling it by the environment can come too late; it asks at each decoration.
numba.config.CACHE_DIR = str(CACHE_DIRECTORY)  # type: ignore[attr-defined]

F = TypeVar("F", bound=Callable[..., Any])

PLAIN: bool = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined]
"""Kernels run as plain Python."""

_kernels: list[Any] = []


def kernel(function: F) -> F:
    """Compile to machine code at first call, or load it from the cache. No exceptions, no fastmath; int64 in, int64 or nothing out.

    One whose name begins with an underscore is called by kernels only: without the ways in for Python, compiling takes a third less.
    """
    options: Any = {"no_cpython_wrapper": function.__name__.startswith("_"), "no_cfunc_wrapper": True}
    compiled: F = numba.njit(cache=True, error_model="numpy", boundscheck=False, **options)(function)
    _kernels.append(compiled)
    return compiled


def warm_all() -> Iterator[tuple[int, int, str]]:
    """Compile or load the kernels of the modules imported so far; yields (done, of how many, name) after each.

    A kernel whose name begins with an underscore is called by kernels of its module only: it is compiled with them and lies in their code.
    """
    if PLAIN:
        return
    called = [dispatcher for dispatcher in _kernels if not dispatcher.py_func.__name__.startswith("_")]
    for done, dispatcher in enumerate(called, 1):
        n_arguments = len(inspect.signature(dispatcher.py_func).parameters)
        dispatcher.compile((numba.int64,) * n_arguments)
        yield done, len(called), dispatcher.py_func.__qualname__
