"""The one way to make a kernel: ``@kernel``. No other file of the data path calls numba's decorators.

Kernels take int64 addresses and sizes, write into what they are given, allocate nothing, raise nothing and touch no cursor. They read
and write memory only through `stages.memory`.

| MODE | a kernel is | when |
|---|---|---|
| ahead | what `python -m stages compile` has compiled; numba is not imported | the shared object is there (`ahead.py`) |
| jit | compiled by numba at its first call, or taken from numba's cache | there is none, or ``NUMBA_BOUNDSCHECK`` is set |
| compile | about to go into the shared object | in the process that makes it (`build.py`) |
| plain | the plain Python function | ``NUMBA_DISABLE_JIT=1`` |

TAPMESH_KERNELS=ahead or jit asks for one of them. Plain kernels work on the same addresses, and every access is checked against the
regions that a test registers: the slow, bounds-checked twin of what is compiled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from stages import ahead, cache

F = TypeVar("F", bound=Callable[..., Any])

MODE, _compiled = ahead.choose()

PLAIN: bool = MODE == "plain"
"""Kernels run as plain Python."""

_kernels: list[Any] = []

if MODE == "jit":
    # Somebody may have imported numba before us, so telling it by the environment can come too late; it asks at each decoration.
    import numba

    numba.config.CACHE_DIR = str(cache.use())  # type: ignore[attr-defined]


def kernel(function: F) -> F:
    """No exceptions, no fastmath; int64 in; int64, bool or nothing out.

    One whose name begins with an underscore is called by kernels only, and Python has no way into it.
    """
    inner = function.__name__.startswith("_")
    if MODE == "plain":
        return function
    if MODE == "ahead":
        return function if inner else ahead.call_of(_compiled, function)
    import numba

    # In the shared object Python gets in by ways of its own; without those of numba compiling takes a third less.
    options: Any = {"no_cpython_wrapper": inner or MODE == "compile", "no_cfunc_wrapper": True, "cache": MODE == "jit"}
    compiled: F = numba.njit(error_model="numpy", boundscheck=False, **options)(function)
    _kernels.append(compiled)
    return compiled


def compile_all() -> Iterator[tuple[int, int, Callable[..., Any], Any]]:
    """Compile or load the kernels of the modules imported so far; yields (done, of how many, the function, what numba made of it).

    In mode jit those whose name begins with an underscore are compiled with the kernels that call them.
    """
    import numba

    wanted = [dispatcher for dispatcher in _kernels if MODE == "compile" or not dispatcher.py_func.__name__.startswith("_")]
    for done, dispatcher in enumerate(wanted, 1):
        types = (numba.int64,) * len(inspect.signature(dispatcher.py_func).parameters)
        dispatcher.compile(types)
        if MODE == "compile":
            # Else numba translates it once more for each constant that a kernel calls it with, which LLVM sees without that.
            dispatcher.disable_compile()
        yield done, len(wanted), dispatcher.py_func, dispatcher.overloads[types]
