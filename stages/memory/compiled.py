"""Memory for kernels that numba compiles: an intrinsic for each access."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from stages.memory.plain import Load, Store


def _pointer(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _load(bits: int, *, swap: bool = False, ordering: str = "") -> Any:
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
