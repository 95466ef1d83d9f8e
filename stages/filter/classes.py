"""From KEY rows to policy keys: each field's value, packed into three words. Packets with equal keys get equal answers.

| kernel | does |
|---|---|
| pack_keys | KEY rows of a chunk -> policy keys int64[n, 4]: three words and the bucket of the memo |

Field by field, each for all packets of the chunk: what is the same for all of them is looked at once, and the look-ups of one packet do
not wait for those of another. What a packet does not have is computed all the same and masked out, where that is cheaper than asking.
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import FIRST_CLASS, IMAGE, UNKNOWN
from broker.core import layout
from stages.filter.odd import put_odd
from stages.filter.state import POLICY_KEY_BUCKET, POLICY_KEY_BYTES
from stages.filter.values import (
    AT,
    FIELD_BYTES,
    SHIFT,
    WORD_AT,
    bank_of,
    banked,
    field_at,
    search,
    search_128,
    tag_value,
    walk,
)
from stages.jit import kernel
from stages.memory import add64, load8, load16, load32, load64, load_be16, load_be32, mix, prefetch, store64
from stages.wire.headers import ETHERTYPE, MAC_DESTINATION, MAC_SOURCE, MAX_TAGS
from stages.wire.key import DETAIL_NONE, KEY, KIND_ARP, KIND_IP, KIND_IP6, NOT_IP, PORT_SEEN

assert IMAGE.fields is not None
assert KEY.fields is not None
assert layout.PACKET.fields is not None
assert image.FIELD.fields is not None
_OF_IP, _OF_IP6 = image.FIELD.fields["of_ip"][1], image.FIELD.fields["of_ip6"][1]
_DEPTH = IMAGE.fields["depth"][1]

_INPUT, _ETHERTYPE, _PROTOCOL = field_at("input"), field_at("ethertype"), field_at("protocol")
_SOURCE, _SOURCE4, _SOURCE6 = field_at("source"), field_at("source4"), field_at("source6")
_DESTINATION, _DESTINATION4, _DESTINATION6 = field_at("destination"), field_at("destination4"), field_at("destination6")
_SOURCE_PORT, _DESTINATION_PORT, _DETAIL = field_at("source_port"), field_at("destination_port"), field_at("detail")
_LENGTH, _SOURCE_MAC, _DESTINATION_MAC, _GROUP = (field_at(name) for name in ("length", "source_mac", "destination_mac", "group"))
_TAG = field_at("tag0")

_KEY_BYTES = KEY.itemsize
_KEY_SOURCE, _KEY_DESTINATION = KEY.fields["source_high"][1], KEY.fields["destination_high"][1]
_KEY_AT, _KEY_CAPLEN = KEY.fields["at"][1], KEY.fields["caplen"][1]
_KEY_ETHERTYPE, _KEY_PROTOCOL = KEY.fields["ethertype"][1], KEY.fields["protocol"][1]
_KEY_KIND, _KEY_N_TAGS, _KEY_ODD = KEY.fields["kind"][1], KEY.fields["n_tags"][1], KEY.fields["odd"][1]
_KEY_SOURCE_PORT, _KEY_SOURCE_STATE = KEY.fields["source_port"][1], KEY.fields["source_state"][1]
_KEY_DESTINATION_PORT, _KEY_DESTINATION_STATE = KEY.fields["destination_port"][1], KEY.fields["destination_state"][1]
_KEY_FRAGMENT, _KEY_DETAIL = KEY.fields["fragment"][1], KEY.fields["detail"][1]

_PACKET_BYTES = layout.PACKET.itemsize
_PACKET_WIRELEN, _PACKET_INPUT = layout.PACKET.fields["wirelen"][1], layout.PACKET.fields["input"][1]

_SIGN = -(1 << 63)
_MASK = POLICY_KEY_BUCKET  # until the key is whole
_ANY_INPUT = layout.INPUTS
_HASH_A, _HASH_B, _HASH_C = 0x3C6EF372FE94F82B, 0x510E527FADE682D1, 0x1F83D9ABFB41BD6B


@kernel
def _asked(field: int) -> bool:
    return load64(field + SHIFT) >= 0


@kernel
def _begin(keys: int, image_at: int, rows: int, n: int) -> None:
    """Zero, and in the place of the bucket a mask: all ones where what stands behind the tags is looked at."""
    depth = load64(image_at + _DEPTH)
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        store64(key, 0)
        store64(key + 8, 0)
        store64(key + 16, 0)
        store64(key + _MASK, -1 if load8(row + _KEY_ODD) == 0 and load8(row + _KEY_N_TAGS) <= depth else 0)


@kernel
def _put_addresses4(keys: int, image_at: int, rows: int, n: int, field: int, field4: int, address: int) -> None:
    """IPv4 and ARP. `address`: where in the row."""
    word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        kind = load8(row + _KEY_KIND)
        value = walk(field4, image_at, load64(row + address + 8) & 0xFFFFFFFF)
        add64(key + word_at, (value & load64(key + _MASK) if kind in (KIND_IP, KIND_ARP) else 0) << shift)


@kernel
def _put_addresses6(keys: int, image_at: int, rows: int, n: int, field: int, field6: int, address: int) -> None:
    word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        if load8(row + _KEY_KIND) == KIND_IP6:
            value = search_128(field6, image_at, load64(row + address) ^ _SIGN, load64(row + address + 8) ^ _SIGN)
            add64(key + word_at, (value & load64(key + _MASK)) << shift)


@kernel
def _put_ports(keys: int, image_at: int, rows: int, n: int, field: int, port: int, state: int) -> None:
    """`port`, `state`: where in the row. NONE, CUT and HIDDEN are the same numbers there."""
    word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        bank = bank_of(load8(row + _KEY_FRAGMENT), load16(row + _KEY_PROTOCOL))
        found = load8(row + state)
        value = banked(field, image_at, bank, load16(row + port), found, 1 if found == PORT_SEEN else 0)
        add64(key + word_at, (value & load64(key + _MASK)) << shift)


@kernel
def _put_details(keys: int, image_at: int, rows: int, n: int, field: int) -> None:
    word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        bank = bank_of(load8(row + _KEY_FRAGMENT), load16(row + _KEY_PROTOCOL))
        detail = load16(row + _KEY_DETAIL)
        value = banked(field, image_at, bank, min(detail, DETAIL_NONE - 1), detail - DETAIL_NONE, 1 if detail < DETAIL_NONE else 0)
        add64(key + word_at, (value & load64(key + _MASK)) << shift)


@kernel
def _put_protocols(keys: int, image_at: int, rows: int, n: int, field: int) -> None:
    table = image_at + load64(field + AT)
    word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        add64(key + word_at, (load16(table + 2 * min(load16(row + _KEY_PROTOCOL), NOT_IP)) & load64(key + _MASK)) << shift)


@kernel
def _put_ethertypes(keys: int, image_at: int, rows: int, n: int, field: int) -> None:
    of_ip, of_ip6 = load64(field + _OF_IP), load64(field + _OF_IP6)
    word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        kind = load8(row + _KEY_KIND)
        value = of_ip if kind == KIND_IP else of_ip6
        if kind != KIND_IP and kind != KIND_IP6:
            value = search(field, image_at, load16(row + _KEY_ETHERTYPE))
        add64(key + word_at, (value & load64(key + _MASK)) << shift)


@kernel
def _put_tags(keys: int, image_at: int, rows: int, n: int, tag: int) -> None:
    """The parser has seen the tags of a whole packet whole."""
    field = image_at + _TAG + tag * FIELD_BYTES
    word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
    for i in range(n):
        row = rows + i * _KEY_BYTES
        if load8(row + _KEY_N_TAGS) > tag and load8(row + _KEY_ODD) == 0:
            add64(keys + i * POLICY_KEY_BYTES + word_at, tag_value(field, image_at, load64(row + _KEY_AT), tag) << shift)


@kernel
def _put_macs(keys: int, image_at: int, rows: int, n: int, field: int, offset: int) -> None:
    word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
    for i in range(n):
        row = rows + i * _KEY_BYTES
        at, value = load64(row + _KEY_AT) + offset, UNKNOWN
        if load32(row + _KEY_CAPLEN) >= ETHERTYPE:
            value = search(field, image_at, load_be16(at) << 32 | load_be32(at + 2))
        add64(keys + i * POLICY_KEY_BYTES + word_at, value << shift)


@kernel
def _put_link(keys: int, image_at: int, rows: int, packets: int, n: int) -> None:
    """What no tag hides."""
    field = image_at + _INPUT
    if _asked(field):
        word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
        for i in range(n):
            value = load16(image_at + load64(field + AT) + 2 * min(load16(packets + i * _PACKET_BYTES + _PACKET_INPUT), _ANY_INPUT))
            add64(keys + i * POLICY_KEY_BYTES + word_at, value << shift)
    field = image_at + _LENGTH
    if _asked(field):
        word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
        for i in range(n):
            add64(
                keys + i * POLICY_KEY_BYTES + word_at,
                (search(field, image_at, load32(packets + i * _PACKET_BYTES + _PACKET_WIRELEN))) << shift,
            )
    if _asked(image_at + _SOURCE_MAC):
        _put_macs(keys, image_at, rows, n, image_at + _SOURCE_MAC, MAC_SOURCE)
    if _asked(image_at + _DESTINATION_MAC):
        _put_macs(keys, image_at, rows, n, image_at + _DESTINATION_MAC, MAC_DESTINATION)
    field = image_at + _GROUP
    if _asked(field):
        word_at, shift = load64(field + WORD_AT), load64(field + SHIFT)
        for i in range(n):
            row = rows + i * _KEY_BYTES
            value = FIRST_CLASS + (load8(load64(row + _KEY_AT)) & 1) if load32(row + _KEY_CAPLEN) >= ETHERTYPE else UNKNOWN
            add64(keys + i * POLICY_KEY_BYTES + word_at, value << shift)


@kernel
def _put_headers(keys: int, image_at: int, rows: int, n: int) -> None:
    """What stands behind the tags."""
    if _asked(image_at + _SOURCE4):
        _put_addresses4(keys, image_at, rows, n, image_at + _SOURCE, image_at + _SOURCE4, _KEY_SOURCE)
    if _asked(image_at + _SOURCE6):
        _put_addresses6(keys, image_at, rows, n, image_at + _SOURCE, image_at + _SOURCE6, _KEY_SOURCE)
    if _asked(image_at + _DESTINATION4):
        _put_addresses4(keys, image_at, rows, n, image_at + _DESTINATION, image_at + _DESTINATION4, _KEY_DESTINATION)
    if _asked(image_at + _DESTINATION6):
        _put_addresses6(keys, image_at, rows, n, image_at + _DESTINATION, image_at + _DESTINATION6, _KEY_DESTINATION)
    if _asked(image_at + _SOURCE_PORT):
        _put_ports(keys, image_at, rows, n, image_at + _SOURCE_PORT, _KEY_SOURCE_PORT, _KEY_SOURCE_STATE)
    if _asked(image_at + _DESTINATION_PORT):
        _put_ports(keys, image_at, rows, n, image_at + _DESTINATION_PORT, _KEY_DESTINATION_PORT, _KEY_DESTINATION_STATE)
    if _asked(image_at + _PROTOCOL):
        _put_protocols(keys, image_at, rows, n, image_at + _PROTOCOL)
    if _asked(image_at + _DETAIL):
        _put_details(keys, image_at, rows, n, image_at + _DETAIL)
    if _asked(image_at + _ETHERTYPE):
        _put_ethertypes(keys, image_at, rows, n, image_at + _ETHERTYPE)


@kernel
def pack_keys(keys: int, image_at: int, rows: int, packets: int, n: int, seed: int, memo_at: int, memo_mask: int) -> None:
    """Also asks for the memo's line of each key, which is 64 bytes."""
    depth = load64(image_at + _DEPTH)
    _begin(keys, image_at, rows, n)
    _put_headers(keys, image_at, rows, n)
    for tag in range(min(depth + 1, MAX_TAGS)):
        if _asked(image_at + _TAG + tag * FIELD_BYTES):
            _put_tags(keys, image_at, rows, n, tag)
    _put_link(keys, image_at, rows, packets, n)
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        if load8(row + _KEY_ODD):
            put_odd(key, image_at, row, load64(row + _KEY_AT), load32(row + _KEY_CAPLEN), depth)
        bucket = mix(mix(load64(key) ^ seed, load64(key + 8) ^ _HASH_A) ^ _HASH_B, load64(key + 16) ^ _HASH_C) & memo_mask
        store64(key + POLICY_KEY_BUCKET, bucket)
        prefetch(memo_at + (bucket << 6))
