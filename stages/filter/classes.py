"""From KEY rows to policy keys: each field's value, packed into three words. Packets with equal keys get equal answers.

| kernel | does |
|---|---|
| pack_keys | KEY rows -> policy keys int64[n, 4]: three words and the bucket of the memo |

A field that no test asks for costs one look at its `shift`. What is searched has few intervals; what is large is a direct table. The key of
a packet whose headers are not wholly there says less than all about it: it is good for finding rules, not for remembering.
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
    address_value,
    bank,
    detail_value,
    field_at,
    port_value,
    search,
    tag_value,
)
from stages.jit import kernel
from stages.memory import load8, load16, load32, load64, load_be16, load_be32, mix, prefetch, store64
from stages.wire.headers import ETHERTYPE
from stages.wire.key import KEY, KIND_IP, KIND_IP6, NOT_IP

assert IMAGE.fields is not None
assert KEY.fields is not None
assert layout.PACKET.fields is not None
assert image.FIELD.fields is not None
_OF_IP, _OF_IP6 = image.FIELD.fields["of_ip"][1], image.FIELD.fields["of_ip6"][1]
_DEPTH, _N_KEY_WORDS = IMAGE.fields["depth"][1], IMAGE.fields["n_key_words"][1]

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

_ANY_INPUT = layout.INPUTS
_HASH_A, _HASH_B, _HASH_C = 0x3C6EF372FE94F82B, 0x510E527FADE682D1, 0x1F83D9ABFB41BD6B


@kernel
def _tags_in(word: int, image_at: int, frame: int, n: int) -> int:
    """Tags that any test may ask for; the parser has seen them whole."""
    found = 0
    for i in range(n):
        field = image_at + _TAG + i * FIELD_BYTES
        if load64(field + WORD_AT) == word:
            found += tag_value(field, image_at, frame, i) << load64(field + SHIFT)
    return found


@kernel
def _mac_value(field: int, image_at: int, at: int, caplen: int) -> int:
    return search(field, image_at, load_be16(at) << 32 | load_be32(at + 2)) if caplen >= ETHERTYPE else UNKNOWN


@kernel
def _link_in(word: int, image_at: int, frame: int, caplen: int, packet: int) -> int:
    found, field = 0, image_at + _INPUT
    if load64(field + WORD_AT) == word:
        value = load16(image_at + load64(field + AT) + 2 * min(load16(packet + _PACKET_INPUT), _ANY_INPUT))
        found += value << load64(field + SHIFT)
    field = image_at + _LENGTH
    if load64(field + WORD_AT) == word:
        found += search(field, image_at, load32(packet + _PACKET_WIRELEN)) << load64(field + SHIFT)
    field = image_at + _SOURCE_MAC
    if load64(field + WORD_AT) == word:
        found += _mac_value(field, image_at, frame + 6, caplen) << load64(field + SHIFT)
    field = image_at + _DESTINATION_MAC
    if load64(field + WORD_AT) == word:
        found += _mac_value(field, image_at, frame, caplen) << load64(field + SHIFT)
    field = image_at + _GROUP
    if load64(field + WORD_AT) == word:
        found += (FIRST_CLASS + (load8(frame) & 1) if caplen >= ETHERTYPE else UNKNOWN) << load64(field + SHIFT)
    return found


@kernel
def _ethertype_value(field: int, image_at: int, kind: int, ethertype: int) -> int:
    if kind == KIND_IP:
        return load64(field + _OF_IP)
    return load64(field + _OF_IP6) if kind == KIND_IP6 else search(field, image_at, ethertype)


@kernel
def _headers_in(word: int, image_at: int, row: int) -> int:
    """What stands behind the tags."""
    kind, protocol = load8(row + _KEY_KIND), load16(row + _KEY_PROTOCOL)
    found, field = 0, image_at + _SOURCE
    if load64(field + WORD_AT) == word:
        value = address_value(kind, image_at + _SOURCE4, image_at + _SOURCE6, image_at, row + _KEY_SOURCE)
        found += value << load64(field + SHIFT)
    field = image_at + _DESTINATION
    if load64(field + WORD_AT) == word:
        value = address_value(kind, image_at + _DESTINATION4, image_at + _DESTINATION6, image_at, row + _KEY_DESTINATION)
        found += value << load64(field + SHIFT)
    of = bank(load8(row + _KEY_FRAGMENT), protocol)
    field = image_at + _SOURCE_PORT
    if load64(field + WORD_AT) == word:
        value = port_value(field, image_at, of, load8(row + _KEY_SOURCE_STATE), load16(row + _KEY_SOURCE_PORT))
        found += value << load64(field + SHIFT)
    field = image_at + _DESTINATION_PORT
    if load64(field + WORD_AT) == word:
        value = port_value(field, image_at, of, load8(row + _KEY_DESTINATION_STATE), load16(row + _KEY_DESTINATION_PORT))
        found += value << load64(field + SHIFT)
    field = image_at + _PROTOCOL
    if load64(field + WORD_AT) == word:
        found += load16(image_at + load64(field + AT) + 2 * min(protocol, NOT_IP)) << load64(field + SHIFT)
    field = image_at + _DETAIL
    if load64(field + WORD_AT) == word:
        found += detail_value(field, image_at, of, load16(row + _KEY_DETAIL)) << load64(field + SHIFT)
    field = image_at + _ETHERTYPE
    if load64(field + WORD_AT) == word:
        found += _ethertype_value(field, image_at, kind, load16(row + _KEY_ETHERTYPE)) << load64(field + SHIFT)
    return found


@kernel
def _whole_in(word: int, image_at: int, row: int, packet: int, frame: int, caplen: int) -> int:
    n_tags, depth, found = load8(row + _KEY_N_TAGS), load64(image_at + _DEPTH), 0
    if n_tags > 0:
        found = _tags_in(word, image_at, frame, min(n_tags, depth + 1))
    if n_tags <= depth:  # deeper, the tag itself is all that any test can see
        found += _headers_in(word, image_at, row)
    return found + _link_in(word, image_at, frame, caplen, packet)


@kernel
def pack_key(key: int, image_at: int, row: int, packet: int, seed: int) -> int:
    """Returns the hash."""
    frame, caplen = load64(row + _KEY_AT), load32(row + _KEY_CAPLEN)
    one, two, three = 0, 0, 0
    if load8(row + _KEY_ODD):
        store64(key, _link_in(0, image_at, frame, caplen, packet))
        store64(key + 8, _link_in(8, image_at, frame, caplen, packet))
        store64(key + 16, _link_in(16, image_at, frame, caplen, packet))
        put_odd(key, image_at, row, frame, caplen, load64(image_at + _DEPTH))
        return 0
    one = _whole_in(0, image_at, row, packet, frame, caplen)
    if load64(image_at + _N_KEY_WORDS) > 1:
        two, three = _whole_in(8, image_at, row, packet, frame, caplen), _whole_in(16, image_at, row, packet, frame, caplen)
    store64(key, one)
    store64(key + 8, two)
    store64(key + 16, three)
    return mix(mix(one ^ seed, two ^ _HASH_A) ^ _HASH_B, three ^ _HASH_C)


@kernel
def pack_keys(keys: int, image_at: int, rows: int, packets: int, n: int, seed: int, memo_at: int, memo_mask: int) -> None:
    """Also asks for the memo's line of each key, which is 64 bytes."""
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        bucket = pack_key(key, image_at, row, packets + i * _PACKET_BYTES, seed) & memo_mask
        store64(key + POLICY_KEY_BUCKET, bucket)
        prefetch(memo_at + (bucket << 6))
