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

Under ``NUMBA_DISABLE_JIT=1`` the same calls are ctypes, and each access must lie in a region given to `allow`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from stages.jit import PLAIN

_MASK64 = (1 << 64) - 1
Load = Callable[[int], int]
Store = Callable[[int, int], None]


class OutOfBoundsError(Exception):
    """A kernel run as plain Python touched memory outside every allowed region."""


_regions: list[tuple[int, int]] = []


def allow(at: int, size: int) -> None:
    """Let plain kernels touch [at, at + size). Tests only; compiled kernels are not checked."""
    _regions.append((at, at + size))


def forbid_all() -> None:
    _regions.clear()


def _check(at: int, n: int) -> None:
    if n < 0 or not any(lo <= at and at + n <= hi for lo, hi in _regions):
        raise OutOfBoundsError(f"{n} bytes at {at:#x}")


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _plain_load(n: int, order: Any) -> Any:
    def load(at: int) -> int:
        _check(at, n)
        return _signed(int.from_bytes(ctypes.string_at(at, n), order))

    return load


def _plain_store(n: int, order: Any) -> Any:
    def store(at: int, value: int) -> None:
        _check(at, n)
        ctypes.memmove(at, (value & ((1 << 8 * n) - 1)).to_bytes(n, order), n)

    return store


def _pointer(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _load(bits: int, *, swap: bool = False, ordering: str = "") -> Any:
    if PLAIN:
        return _plain_load(bits // 8, "big" if swap else "little")

    @intrinsic
    def load(typing_context, at):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            pointer = _pointer(builder, args[0], bits)
            value = builder.load_atomic(pointer, ordering, bits // 8) if ordering else builder.load(pointer, align=1)
            if swap:
                value = builder.bswap(value)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.int64(types.int64), generate

    return load


def _store(bits: int, *, swap: bool = False, ordering: str = "") -> Any:
    if PLAIN:
        return _plain_store(bits // 8, "big" if swap else "little")

    @intrinsic
    def store(typing_context, at, value):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            what = args[1] if bits == 64 else builder.trunc(args[1], ir.IntType(bits))
            if swap:
                what = builder.bswap(what)
            pointer = _pointer(builder, args[0], bits)
            if ordering:
                builder.store_atomic(what, pointer, ordering, bits // 8)
            else:
                builder.store(what, pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return store


load8: Load = _load(8)
load16: Load = _load(16)
load32: Load = _load(32)
load64: Load = _load(64)
load_be16: Load = _load(16, swap=True)
load_be32: Load = _load(32, swap=True)
load_be64: Load = _load(64, swap=True)
load_acquire: Load = _load(64, ordering="acquire")
store8: Store = _store(8)
store16: Store = _store(16)
store32: Store = _store(32)
store64: Store = _store(64)
store_be16: Store = _store(16, swap=True)
store_be32: Store = _store(32, swap=True)
store_be64: Store = _store(64, swap=True)
store_release: Store = _store(64, ordering="release")


if PLAIN:

    def add64(at: int, n: int) -> None:
        store64(at, load64(at) + n)

    def copy(to: int, from_: int, n: int) -> None:
        if n > 0:
            _check(to, n)
            _check(from_, n)
            ctypes.memmove(to, from_, n)

    def prefetch(at: int) -> None:
        pass

    def shift_right(x: int, n: int) -> int:
        return _signed((x & _MASK64) >> n)

    def trailing_zeros(x: int) -> int:
        return (x & -x).bit_length() - 1 if x else 64

    def mix(a: int, b: int) -> int:
        product = (a & _MASK64) * (b & _MASK64)
        return _signed((product >> 64) ^ product)

    def fetch_add(at: int, n: int) -> int:
        before: int = load64(at)
        store64(at, before + n)
        return before

    def compare_swap(at: int, expected: int, new: int) -> int:
        before: int = load64(at)
        if before == expected:
            store64(at, new)
        return before

    def fence() -> None:
        pass

    def order_stores() -> None:
        pass

else:

    @intrinsic
    def add64(typing_context, at, n):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            pointer = _pointer(builder, args[0], 64)
            builder.store(builder.add(builder.load(pointer, align=1), args[1]), pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    @intrinsic
    def copy(typing_context, to, from_, n):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            byte = ir.IntType(8).as_pointer()
            function = builder.module.declare_intrinsic("llvm.memcpy", [byte, byte, ir.IntType(64)])
            to, from_ = (builder.inttoptr(a, byte) for a in args[:2])
            builder.call(function, [to, from_, args[2], ir.Constant(ir.IntType(1), 0)])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    @intrinsic
    def prefetch(typing_context, at):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            function_type = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            function = builder.module.declare_intrinsic("llvm.prefetch", [byte], function_type)
            constants = [ir.Constant(word, c) for c in (0, 3, 1)]  # read, keep in all caches, data
            builder.call(function, [builder.inttoptr(args[0], byte), *constants])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    @intrinsic
    def shift_right(typing_context, x, n):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            return builder.lshr(args[0], args[1])

        return types.int64(types.int64, types.int64), generate

    @intrinsic
    def trailing_zeros(typing_context, x):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

        return types.int64(types.int64), generate

    @intrinsic
    def mix(typing_context, a, b):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            wide, word = ir.IntType(128), ir.IntType(64)
            product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
            high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
            return builder.xor(high, builder.trunc(product, word))

        return types.int64(types.int64, types.int64), generate

    @intrinsic
    def fetch_add(typing_context, at, n):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            return builder.atomic_rmw("add", _pointer(builder, args[0], 64), args[1], "seq_cst")

        return types.int64(types.int64, types.int64), generate

    @intrinsic
    def compare_swap(typing_context, at, expected, new):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            pair = builder.cmpxchg(_pointer(builder, args[0], 64), args[1], args[2], "seq_cst", "seq_cst")
            return builder.extract_value(pair, 0)

        return types.int64(types.int64, types.int64, types.int64), generate

    @intrinsic
    def fence(typing_context):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return types.void(), generate

    @intrinsic
    def order_stores(typing_context):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
            builder.fence("seq_cst", "singlethread")
            return context.get_dummy_value()

        return types.void(), generate
