"""Internet checksums (RFC 1071) over any length, by 64-bit loads."""

from __future__ import annotations

from stages.jit import kernel
from stages.memory import load8, load16, load32, load64, shift_right


@kernel
def fold(total: int) -> int:
    """A sum of 16-bit words, below 2^62, as its 16-bit one's complement sum."""
    total = (total & 0xFFFF_FFFF) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@kernel
def sum_words(at: int, n_bytes: int) -> int:
    """One's complement sum, 0..0xFFFF, of the big-endian words of [at, at + n_bytes); an odd last byte counts as if a zero followed.

    The sum is taken in little-endian order and turned at the end, which gives the same (RFC 1071 section 2 (B)). Each 32-bit half is
    added to a 64-bit sum of its own, which cannot overflow below 16 GiB.
    """
    low = 0
    high = 0
    end = at + n_bytes
    while at + 32 <= end:
        a, b, c, d = load64(at), load64(at + 8), load64(at + 16), load64(at + 24)
        low += (a & 0xFFFF_FFFF) + (b & 0xFFFF_FFFF) + (c & 0xFFFF_FFFF) + (d & 0xFFFF_FFFF)
        high += shift_right(a, 32) + shift_right(b, 32) + shift_right(c, 32) + shift_right(d, 32)
        at += 32
    while at + 4 <= end:
        low += load32(at)
        at += 4
    if at + 2 <= end:
        low += load16(at)
        at += 2
    if at < end:
        low += load8(at)
    words = fold(fold(low) + fold(high))
    return (words & 0xFF) << 8 | words >> 8
