"""Kernels that only tests have: numba compiles them even where those of the data path were compiled ahead."""

from __future__ import annotations

from typing import Any

from stages.jit import MODE

memory: Any
kernel: Any

if MODE == "plain":
    from stages.memory import plain as memory

    def kernel(function: Any) -> Any:
        return function
else:
    import numba

    from stages.memory import compiled as memory

    kernel = numba.njit(error_model="numpy")

__all__ = ["kernel", "memory"]
