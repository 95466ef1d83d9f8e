"""The value that a field of the key has, by the tables of the image.

| kernel | does |
|---|---|
| search, walk, address_value, port_value, detail_value, tag_value | content of a field -> its value: a class, or what it is instead |
| bank | which of both banks of values the ports and the detail of a packet are in |

What is searched has few intervals; what is large is a direct table.
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import CUT, FIELD_NUMBER, HIDDEN, IMAGE, NONE, TRIE_NEXT, UNKNOWN
from stages.jit import kernel
from stages.memory import load16, load32, load64, load_be16
from stages.wire.headers import ETH_QINQ, ETH_VLAN, ETHERTYPE, TAG_BYTES
from stages.wire.key import (
    DETAIL_NONE,
    FRAGMENT6_AT,
    FRAGMENT_CONFLICT,
    FRAGMENT_FOLLOWED,
    FRAGMENT_TINY,
    KIND_IP6,
    KIND_OTHER,
    NOT_IP,
    PORT_SEEN,
)

assert image.FIELD.fields is not None
AT, N, WORD_AT, SHIFT = (image.FIELD.fields[name][1] for name in ("at", "n", "word_at", "shift"))
FIELD_BYTES = image.FIELD.itemsize
_SIGN = -(1 << 63)
_VLAN_IDS = 4096


def field_at(name: str) -> int:
    """Offset of a FIELD row in the image."""
    return IMAGE.itemsize + FIELD_NUMBER[name] * FIELD_BYTES


@kernel
def search(field: int, image_at: int, value: int) -> int:
    """Class of the interval that holds value; the first interval starts at or below every value."""
    table, n = image_at + load64(field + AT), load64(field + N)
    low, count = 0, n
    while count > 1:
        half = count >> 1
        if load64(table + 8 * (low + half)) <= value:
            low += half
        count -= half
    return load64(table + 8 * (n + low))


@kernel
def _search_128(field: int, image_at: int, high: int, low_half: int) -> int:
    table, n = image_at + load64(field + AT), load64(field + N)
    low, count = 0, n
    while count > 1:
        half = count >> 1
        start = load64(table + 8 * (low + half))
        if start < high or (start == high and load64(table + 8 * (n + low + half)) <= low_half):
            low += half
        count -= half
    return load64(table + 8 * (2 * n + low))


@kernel
def walk(field: int, image_at: int, address: int) -> int:
    """Class of an IPv4 address: 16, 8, 8 bits."""
    table = image_at + load64(field + AT)
    entry = load32(table + 4 * (address >> 16))
    if entry & TRIE_NEXT:
        entry = load32(table + 4 * (65536 + 256 * ((entry ^ TRIE_NEXT) - 1) + (address >> 8 & 255)))
        if entry & TRIE_NEXT:
            entry = load32(table + 4 * (65536 + 256 * ((entry ^ TRIE_NEXT) - 1) + (address & 255)))
    return entry


@kernel
def address_value(kind: int, field4: int, field6: int, image_at: int, address: int) -> int:
    """`address`: where high and low are."""
    if kind == KIND_OTHER:
        return NONE
    if kind == KIND_IP6:
        if load64(field6 + SHIFT) < 0:
            return NONE
        return _search_128(field6, image_at, load64(address) ^ _SIGN, load64(address + 8) ^ _SIGN)
    if load64(field4 + SHIFT) < 0:
        return NONE
    return walk(field4, image_at, load64(address + 8))


@kernel
def _banked(field: int, image_at: int, bank: int, value: int) -> int:
    return load16(image_at + load64(field + AT) + 2 * (bank * load64(field + N) + value))


@kernel
def _absent(state: int, bank: int) -> int:
    """NONE, CUT and HIDDEN are the same numbers in KEY. What libpcap would not look for is not cut off to it."""
    return HIDDEN if bank == 1 and state == CUT else state


@kernel
def port_value(field: int, image_at: int, bank: int, state: int, port: int) -> int:
    if bank > 1:
        return UNKNOWN
    return _banked(field, image_at, bank, port) if state == PORT_SEEN else _absent(state, bank)


@kernel
def detail_value(field: int, image_at: int, bank: int, detail: int) -> int:
    if bank > 1:
        return UNKNOWN
    return _banked(field, image_at, bank, detail) if detail < DETAIL_NONE else _absent(detail - DETAIL_NONE, bank)


@kernel
def bank(fragment: int, protocol: int) -> int:
    """1: libpcap does not see the ports: it looks right behind the fixed IPv6 header only, and not at all in later fragments. 2: it sees
    ports that the KEY row does not show."""
    if fragment in (FRAGMENT_TINY, FRAGMENT_CONFLICT):
        return 2
    return 1 if fragment == FRAGMENT_FOLLOWED or (FRAGMENT6_AT <= protocol < NOT_IP) else 0


@kernel
def tag_value(field: int, image_at: int, frame: int, tag: int) -> int:
    kind = load_be16(frame + ETHERTYPE + TAG_BYTES * tag)
    row = 0 if kind == ETH_VLAN else 1 if kind == ETH_QINQ else 2
    vlan = load_be16(frame + ETHERTYPE + 2 + TAG_BYTES * tag) & 0xFFF
    return load16(image_at + load64(field + AT) + 2 * (row * _VLAN_IDS + vlan))
