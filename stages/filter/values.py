"""The value that a field of the key has, by the tables of the image.

| kernel | does |
|---|---|
| search, search_128, walk, banked, tag_value | content of a field -> its value: a class, or what it is instead |
| bank_of | which of both banks of values the ports and the detail of a packet are in |

What is searched has few intervals; what is large is a direct table.
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import CUT, FIELD_NUMBER, HIDDEN, IMAGE, TRIE_NEXT, UNKNOWN
from stages.jit import kernel
from stages.memory import load16, load32, load64, load_be16
from stages.wire.headers import ETH_QINQ, ETH_VLAN, ETHERTYPE, TAG_BYTES
from stages.wire.key import (
    FRAGMENT6_AT,
    FRAGMENT_CONFLICT,
    FRAGMENT_FOLLOWED,
    FRAGMENT_TINY,
    NOT_IP,
)

assert image.FIELD.fields is not None
AT, N, WORD_AT, SHIFT = (image.FIELD.fields[name][1] for name in ("at", "n", "word_at", "shift"))
FIELD_BYTES = image.FIELD.itemsize
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
def search_128(field: int, image_at: int, high: int, low_half: int) -> int:
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
def banked(field: int, image_at: int, bank: int, content: int, state: int, is_there: int) -> int:
    """Of a port or a detail: the value of its content, or of its state. What libpcap would not look for is not cut off to it."""
    value = load16(image_at + load64(field + AT) + 2 * ((bank & 1) * load64(field + N) + content))
    if is_there == 0:
        value = HIDDEN if bank == 1 and state == CUT else state
    return UNKNOWN if bank > 1 else value


@kernel
def bank_of(fragment: int, protocol: int) -> int:
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
