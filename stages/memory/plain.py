"""Memory as kernels see it when they run as plain Python: ctypes, and nothing outside the regions that a test allows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Literal

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


def _load(n: int, order: Literal["little", "big"]) -> Load:
    def load(at: int) -> int:
        _check(at, n)
        return _signed(int.from_bytes(ctypes.string_at(at, n), order))

    return load


def _store(n: int, order: Literal["little", "big"]) -> Store:
    def store(at: int, value: int) -> None:
        _check(at, n)
        ctypes.memmove(at, (value & ((1 << 8 * n) - 1)).to_bytes(n, order), n)

    return store


load8: Load = _load(1, "little")
load16: Load = _load(2, "little")
load32: Load = _load(4, "little")
load64: Load = _load(8, "little")
load_be16: Load = _load(2, "big")
load_be32: Load = _load(4, "big")
load_be64: Load = _load(8, "big")
load_acquire: Load = _load(8, "little")
store8: Store = _store(1, "little")
store16: Store = _store(2, "little")
store32: Store = _store(4, "little")
store64: Store = _store(8, "little")
store_be16: Store = _store(2, "big")
store_be32: Store = _store(4, "big")
store_be64: Store = _store(8, "big")
store_release: Store = _store(8, "little")


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
