"""From KEY rows to policy keys: each field's value, packed into three words. Packets with equal keys get equal answers.

| kernel | does |
|---|---|
| pack_keys | KEY rows -> policy keys int64[n, 4]: three words and the bucket of the memo |

A field that no test asks for costs one look at its `shift`. What is searched has few intervals; what is large is a direct table. The key of
a packet whose headers are not wholly there says less than all about it: it is good for finding rules, not for remembering.
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import CUT, FIELD_NUMBER, FIRST_CLASS, HIDDEN, IMAGE, NONE, TRIE_NEXT, UNKNOWN
from broker.core import layout
from stages.filter.state import POLICY_KEY_BUCKET, POLICY_KEY_BYTES
from stages.jit import kernel
from stages.memory import add64, load8, load16, load32, load64, load_be16, load_be32, mix, prefetch, store64
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETH_QINQ,
    ETH_VLAN,
    ETHERNET_BYTES,
    ETHERTYPE,
    FRAGMENT,
    IP6_NEXT,
    IP_DESTINATION,
    IP_FRAGMENT,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
    IP_SOURCE,
    TAG_BYTES,
)
from stages.wire.key import (
    DETAIL_NONE,
    FRAGMENT6_AT,
    FRAGMENT_CONFLICT,
    FRAGMENT_FOLLOWED,
    FRAGMENT_TINY,
    IP6_AT,
    KEY,
    KIND_IP6,
    KIND_OTHER,
    NOT_IP,
    PORT_SEEN,
)

assert IMAGE.fields is not None
assert KEY.fields is not None
assert layout.PACKET.fields is not None
assert image.FIELD.fields is not None
_AT, _N, _WORD_AT, _SHIFT = (image.FIELD.fields[name][1] for name in ("at", "n", "word_at", "shift"))
_FIELD_BYTES = image.FIELD.itemsize
_DEPTH = IMAGE.fields["depth"][1]


def _field(name: str) -> int:
    """Offset of a FIELD row in the image."""
    return IMAGE.itemsize + FIELD_NUMBER[name] * _FIELD_BYTES


_INPUT, _ETHERTYPE, _PROTOCOL = _field("input"), _field("ethertype"), _field("protocol")
_SOURCE, _SOURCE4, _SOURCE6 = _field("source"), _field("source4"), _field("source6")
_DESTINATION, _DESTINATION4, _DESTINATION6 = _field("destination"), _field("destination4"), _field("destination6")
_SOURCE_PORT, _DESTINATION_PORT, _DETAIL = _field("source_port"), _field("destination_port"), _field("detail")
_LENGTH, _SOURCE_MAC, _DESTINATION_MAC, _GROUP = _field("length"), _field("source_mac"), _field("destination_mac"), _field("group")
_TAG = _field("tag0")

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
_ANY_INPUT = layout.INPUTS
_VLAN_IDS = 4096
_HASH_A, _HASH_B, _HASH_C = 0x3C6EF372FE94F82B, 0x510E527FADE682D1, 0x1F83D9ABFB41BD6B


@kernel
def _put(field: int, key: int, value: int) -> None:
    add64(key + load64(field + _WORD_AT), value << load64(field + _SHIFT))


@kernel
def _search(field: int, image_at: int, value: int) -> int:
    """Class of the interval that holds value; the first interval starts at or below every value."""
    table, n = image_at + load64(field + _AT), load64(field + _N)
    low, count = 0, n
    while count > 1:
        half = count >> 1
        if load64(table + 8 * (low + half)) <= value:
            low += half
        count -= half
    return load64(table + 8 * (n + low))


@kernel
def _search_128(field: int, image_at: int, high: int, low_half: int) -> int:
    table, n = image_at + load64(field + _AT), load64(field + _N)
    low, count = 0, n
    while count > 1:
        half = count >> 1
        start = load64(table + 8 * (low + half))
        if start < high or (start == high and load64(table + 8 * (n + low + half)) <= low_half):
            low += half
        count -= half
    return load64(table + 8 * (2 * n + low))


@kernel
def _walk(field: int, image_at: int, address: int) -> int:
    """Class of an IPv4 address: 16, 8, 8 bits."""
    table = image_at + load64(field + _AT)
    entry = load32(table + 4 * (address >> 16))
    if entry & TRIE_NEXT:
        entry = load32(table + 4 * (65536 + 256 * ((entry ^ TRIE_NEXT) - 1) + (address >> 8 & 255)))
        if entry & TRIE_NEXT:
            entry = load32(table + 4 * (65536 + 256 * ((entry ^ TRIE_NEXT) - 1) + (address & 255)))
    return entry


@kernel
def _address_value(kind: int, field4: int, field6: int, image_at: int, address: int) -> int:
    """`address`: where high and low are."""
    if kind == KIND_OTHER:
        return NONE
    if kind == KIND_IP6:
        if load64(field6 + _SHIFT) < 0:
            return NONE
        return _search_128(field6, image_at, load64(address) ^ _SIGN, load64(address + 8) ^ _SIGN)
    if load64(field4 + _SHIFT) < 0:
        return NONE
    return _walk(field4, image_at, load64(address + 8))


@kernel
def _banked(field: int, image_at: int, bank: int, value: int) -> int:
    return load16(image_at + load64(field + _AT) + 2 * (bank * load64(field + _N) + value))


@kernel
def _absent(state: int, bank: int) -> int:
    """NONE, CUT and HIDDEN are the same numbers in KEY. What libpcap would not look for is not cut off to it."""
    return HIDDEN if bank == 1 and state == CUT else state


@kernel
def _port_value(field: int, image_at: int, bank: int, state: int, port: int) -> int:
    if bank > 1:
        return UNKNOWN
    return _banked(field, image_at, bank, port) if state == PORT_SEEN else _absent(state, bank)


@kernel
def _detail_value(field: int, image_at: int, bank: int, detail: int) -> int:
    if bank > 1:
        return UNKNOWN
    return _banked(field, image_at, bank, detail) if detail < DETAIL_NONE else _absent(detail - DETAIL_NONE, bank)


@kernel
def _bank(fragment: int, protocol: int) -> int:
    """1: libpcap does not see the ports: it looks right behind the fixed IPv6 header only, and not at all in later fragments. 2: it sees
    ports that the KEY row does not show."""
    if fragment in (FRAGMENT_TINY, FRAGMENT_CONFLICT):
        return 2
    return 1 if fragment == FRAGMENT_FOLLOWED or (FRAGMENT6_AT <= protocol < NOT_IP) else 0


@kernel
def _tag_value(field: int, image_at: int, frame: int, tag: int) -> int:
    kind = load_be16(frame + ETHERTYPE + TAG_BYTES * tag)
    row = 0 if kind == ETH_VLAN else 1 if kind == ETH_QINQ else 2
    vlan = load_be16(frame + ETHERTYPE + 2 + TAG_BYTES * tag) & 0xFFF
    return load16(image_at + load64(field + _AT) + 2 * (row * _VLAN_IDS + vlan))


@kernel
def _put_tags(key: int, image_at: int, frame: int, n_tags: int, depth: int) -> None:
    """Tags that any test may ask for; the parser has seen them whole."""
    for i in range(min(n_tags, depth + 1)):
        field = image_at + _TAG + i * _FIELD_BYTES
        if load64(field + _SHIFT) >= 0:
            _put(field, key, _tag_value(field, image_at, frame, i))


@kernel
def _put_link(key: int, image_at: int, frame: int, caplen: int, wirelen: int) -> None:
    field = image_at + _LENGTH
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _search(field, image_at, wirelen))
    whole = caplen >= ETHERTYPE
    field = image_at + _SOURCE_MAC
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _search(field, image_at, load_be16(frame + 6) << 32 | load_be32(frame + 8)) if whole else UNKNOWN)
    field = image_at + _DESTINATION_MAC
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _search(field, image_at, load_be16(frame) << 32 | load_be32(frame + 2)) if whole else UNKNOWN)
    field = image_at + _GROUP
    if load64(field + _SHIFT) >= 0:
        _put(field, key, FIRST_CLASS + (load8(frame) & 1) if whole else UNKNOWN)


@kernel
def _put_headers(key: int, image_at: int, row: int) -> None:
    """What stands behind the tags."""
    kind, protocol = load8(row + _KEY_KIND), load16(row + _KEY_PROTOCOL)
    field = image_at + _SOURCE
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _address_value(kind, image_at + _SOURCE4, image_at + _SOURCE6, image_at, row + _KEY_SOURCE))
    field = image_at + _DESTINATION
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _address_value(kind, image_at + _DESTINATION4, image_at + _DESTINATION6, image_at, row + _KEY_DESTINATION))
    bank = _bank(load8(row + _KEY_FRAGMENT), protocol)
    field = image_at + _SOURCE_PORT
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _port_value(field, image_at, bank, load8(row + _KEY_SOURCE_STATE), load16(row + _KEY_SOURCE_PORT)))
    field = image_at + _DESTINATION_PORT
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _port_value(field, image_at, bank, load8(row + _KEY_DESTINATION_STATE), load16(row + _KEY_DESTINATION_PORT)))
    field = image_at + _PROTOCOL
    if load64(field + _SHIFT) >= 0:
        _put(field, key, load16(image_at + load64(field + _AT) + 2 * min(protocol, NOT_IP)))
    field = image_at + _DETAIL
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _detail_value(field, image_at, bank, load16(row + _KEY_DETAIL)))
    field = image_at + _ETHERTYPE
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _search(field, image_at, load16(row + _KEY_ETHERTYPE)))


@kernel
def _put_if_asked(field: int, key: int, value: int) -> None:
    if load64(field + _SHIFT) >= 0:
        _put(field, key, value)


@kernel
def _put_all(key: int, image_at: int, value: int) -> None:
    """Of everything behind the tags."""
    _put_if_asked(image_at + _ETHERTYPE, key, value)
    _put_if_asked(image_at + _SOURCE, key, value)
    _put_if_asked(image_at + _DESTINATION, key, value)
    _put_if_asked(image_at + _PROTOCOL, key, value)
    _put_if_asked(image_at + _SOURCE_PORT, key, value)
    _put_if_asked(image_at + _DESTINATION_PORT, key, value)
    _put_if_asked(image_at + _DETAIL, key, value)


@kernel
def _put_cut_ip(key: int, image_at: int, frame: int, caplen: int, l3: int) -> None:
    """An IPv4 header that is not wholly there."""
    field = image_at + _PROTOCOL
    if load64(field + _SHIFT) >= 0:
        there = caplen > l3 + IP_PROTOCOL
        _put(field, key, load16(image_at + load64(field + _AT) + 2 * load8(frame + l3 + IP_PROTOCOL)) if there else CUT)
    field = image_at + _SOURCE
    if load64(field + _SHIFT) >= 0:
        value = CUT
        if caplen >= l3 + IP_DESTINATION:
            value = (
                _walk(image_at + _SOURCE4, image_at, load_be32(frame + l3 + IP_SOURCE))
                if load64(image_at + _SOURCE4 + _SHIFT) >= 0
                else NONE
            )
        _put(field, key, value)
    _put_if_asked(image_at + _DESTINATION, key, UNKNOWN if caplen > l3 + IP_DESTINATION else CUT)  # one byte tells a multicast address
    beyond = CUT
    if caplen > l3 + IP_PROTOCOL:
        if load_be16(frame + l3 + IP_FRAGMENT) & IP_OFFSET_BITS:
            beyond = HIDDEN
        elif load8(frame + l3) & 15 < 5:
            beyond = UNKNOWN  # the ports of a header that says it has less than five words may be there all the same
    _put_if_asked(image_at + _SOURCE_PORT, key, beyond)
    _put_if_asked(image_at + _DESTINATION_PORT, key, beyond)
    _put_if_asked(image_at + _DETAIL, key, beyond)


@kernel
def _put_cut_ip6(key: int, image_at: int, frame: int, caplen: int, l3: int) -> None:
    """An IPv6 header, or the fragment header behind it, that is not wholly there."""
    field = image_at + _PROTOCOL
    if load64(field + _SHIFT) >= 0:
        value = CUT
        if caplen > l3 + IP6_NEXT:
            next_header = load8(frame + l3 + IP6_NEXT)
            value = UNKNOWN if next_header == FRAGMENT else load16(image_at + load64(field + _AT) + 2 * (IP6_AT + next_header))
        _put(field, key, value)
    _put_if_asked(image_at + _SOURCE, key, UNKNOWN)
    _put_if_asked(image_at + _DESTINATION, key, UNKNOWN)
    _put_if_asked(image_at + _SOURCE_PORT, key, CUT)
    _put_if_asked(image_at + _DESTINATION_PORT, key, CUT)
    _put_if_asked(image_at + _DETAIL, key, CUT)


@kernel
def _put_odd(key: int, image_at: int, row: int, frame: int, caplen: int, depth: int) -> None:
    """Headers that are not wholly there: as much as is there, so that few rules remain to be run."""
    n_tags = load8(row + _KEY_N_TAGS)
    l3 = ETHERNET_BYTES + TAG_BYTES * n_tags
    if caplen < l3:  # cut in the ethertype, or in the last tag
        whole = max(0, n_tags - 1)
        _put_tags(key, image_at, frame, whole, depth)
        for i in range(whole, min(4, depth + 1)):
            _put_if_asked(image_at + _TAG + i * _FIELD_BYTES, key, CUT if n_tags == 0 else UNKNOWN)
        _put_all(key, image_at, CUT if n_tags == 0 else UNKNOWN)
        return
    _put_tags(key, image_at, frame, n_tags, depth)
    if n_tags > depth:
        return
    ethertype = load16(row + _KEY_ETHERTYPE)
    field = image_at + _ETHERTYPE
    if load64(field + _SHIFT) >= 0:
        _put(field, key, _search(field, image_at, ethertype))
    if ethertype == ETH_IP:
        _put_cut_ip(key, image_at, frame, caplen, l3)
    elif ethertype == ETH_IP6:
        _put_cut_ip6(key, image_at, frame, caplen, l3)
    else:
        _put_if_asked(image_at + _SOURCE, key, UNKNOWN)
        _put_if_asked(image_at + _DESTINATION, key, UNKNOWN)


@kernel
def pack_key(key: int, image_at: int, row: int, packet: int, seed: int) -> int:
    """Returns the hash."""
    store64(key, 0)
    store64(key + 8, 0)
    store64(key + 16, 0)
    frame, caplen, wirelen = load64(row + _KEY_AT), load32(row + _KEY_CAPLEN), load32(packet + _PACKET_WIRELEN)
    n_tags, depth = load8(row + _KEY_N_TAGS), load64(image_at + _DEPTH)
    if load8(row + _KEY_ODD):
        _put_odd(key, image_at, row, frame, caplen, depth)
    else:
        if n_tags > 0:
            _put_tags(key, image_at, frame, n_tags, depth)
        if n_tags <= depth:  # deeper, the tag itself is all that any test can see
            _put_headers(key, image_at, row)
    field = image_at + _INPUT
    if load64(field + _SHIFT) >= 0:
        _put(field, key, load16(image_at + load64(field + _AT) + 2 * min(load16(packet + _PACKET_INPUT), _ANY_INPUT)))
    _put_link(key, image_at, frame, caplen, wirelen)
    return mix(mix(load64(key) ^ seed, load64(key + 8) ^ _HASH_A) ^ _HASH_B, load64(key + 16) ^ _HASH_C)


@kernel
def pack_keys(keys: int, image_at: int, rows: int, packets: int, n: int, seed: int, memo_at: int, memo_mask: int) -> None:
    """Also asks for the memo's line of each key, which is 64 bytes."""
    for i in range(n):
        row, key = rows + i * _KEY_BYTES, keys + i * POLICY_KEY_BYTES
        bucket = pack_key(key, image_at, row, packets + i * _PACKET_BYTES, seed) & memo_mask
        store64(key + POLICY_KEY_BUCKET, bucket)
        prefetch(memo_at + (bucket << 6))
