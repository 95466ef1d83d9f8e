"""How kernels read and write memory: by int64 address, little-endian unless the name says ``be``.

| call | does |
|---|---|
| load8 load16 load32 load64 (at) | unsigned value widened to int64 (64 bits: as they are); no alignment needed |
| load_be16 load_be32 load_be64 (at) | the same from network order |
| store8 store16 store32 store64 (at, value) | the low bits of value |
| store_be16 store_be32 store_be64 (at, value) | the same in network order |
| add64(at, n) | `*at += n`, not atomic: only for memory that one process writes |
| copy(to, from_, n) | n bytes, not overlapping |
| prefetch(at) | a hint |
| shift_right(x, n) | unsigned shift of an int64, 0 <= n < 64 |
| trailing_zeros(x) | position of the lowest set bit; 64 for 0 |
| mix(a, b) | high xor low half of the 128-bit product: a fast hash step |
| order_stores() | the compiler moves no load or store over it; no instruction, for what one process leaves to the next |
| load_acquire store_release fetch_add compare_swap (at, ...) fence() | 64-bit atomics between processes; `fence` is full |

Values are int64 everywhere: in numba uint64 + int64 is float64. LLVM moves plain loads out of polling loops, so whatever another
process writes is read with `load_acquire` only (tests/stages/test_memory.py looks for it in the machine code).

`compiled.py` has them for numba. Under ``NUMBA_DISABLE_JIT=1`` the same calls are ctypes (`plain.py`), and each access must lie in a region
given to `allow`. Where kernels were compiled ahead nobody calls any of them, and numba stays out of the process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from stages.jit import MODE
from stages.memory.plain import Load, OutOfBoundsError, Store, allow, forbid_all

__all__ = ["OutOfBoundsError", "allow", "forbid_all"]

_calls: Any = importlib.import_module("stages.memory.plain" if MODE in ("plain", "ahead") else "stages.memory.compiled")

load8: Load = _calls.load8
load16: Load = _calls.load16
load32: Load = _calls.load32
load64: Load = _calls.load64
load_be16: Load = _calls.load_be16
load_be32: Load = _calls.load_be32
load_be64: Load = _calls.load_be64
load_acquire: Load = _calls.load_acquire
store8: Store = _calls.store8
store16: Store = _calls.store16
store32: Store = _calls.store32
store64: Store = _calls.store64
store_be16: Store = _calls.store_be16
store_be32: Store = _calls.store_be32
store_be64: Store = _calls.store_be64
store_release: Store = _calls.store_release
add64: Store = _calls.add64
copy: Callable[[int, int, int], None] = _calls.copy
prefetch: Callable[[int], None] = _calls.prefetch
shift_right: Callable[[int, int], int] = _calls.shift_right
trailing_zeros: Callable[[int], int] = _calls.trailing_zeros
mix: Callable[[int, int], int] = _calls.mix
fetch_add: Callable[[int, int], int] = _calls.fetch_add
compare_swap: Callable[[int, int, int], int] = _calls.compare_swap
fence: Callable[[], None] = _calls.fence
order_stores: Callable[[], None] = _calls.order_stores
