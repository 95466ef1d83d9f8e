"""Policy keys of packets whose headers are not wholly there: as much as is there, so that few rules remain to be run.

Such a key is good for finding rules, not for remembering: packets with the same one may be answered differently.
"""

from __future__ import annotations

from broker.config.policy.image import CUT, HIDDEN, NONE, UNKNOWN
from stages.filter.values import AT, FIELD_BYTES, SHIFT, WORD_AT, field_at, search, tag_value, walk
from stages.jit import kernel
from stages.memory import add64, load8, load16, load64, load_be16, load_be32
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETHERNET_BYTES,
    FRAGMENT,
    IP6_NEXT,
    IP_DESTINATION,
    IP_FRAGMENT,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
    IP_SOURCE,
    TAG_BYTES,
)
from stages.wire.key import IP6_AT, KEY

assert KEY.fields is not None
_KEY_N_TAGS, _KEY_ETHERTYPE = KEY.fields["n_tags"][1], KEY.fields["ethertype"][1]
_ETHERTYPE, _PROTOCOL, _TAG = field_at("ethertype"), field_at("protocol"), field_at("tag0")
_SOURCE, _SOURCE4, _DESTINATION = field_at("source"), field_at("source4"), field_at("destination")
_SOURCE_PORT, _DESTINATION_PORT, _DETAIL = field_at("source_port"), field_at("destination_port"), field_at("detail")


@kernel
def _put(field: int, key: int, value: int) -> None:
    add64(key + load64(field + WORD_AT), value << load64(field + SHIFT))


@kernel
def _put_tags(key: int, image_at: int, frame: int, n_tags: int, depth: int) -> None:
    """Tags that any test may ask for; the parser has seen them whole."""
    for i in range(min(n_tags, depth + 1)):
        field = image_at + _TAG + i * FIELD_BYTES
        if load64(field + SHIFT) >= 0:
            _put(field, key, tag_value(field, image_at, frame, i))


@kernel
def _put_if_asked(field: int, key: int, value: int) -> None:
    if load64(field + SHIFT) >= 0:
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
    if load64(field + SHIFT) >= 0:
        there = caplen > l3 + IP_PROTOCOL
        _put(field, key, load16(image_at + load64(field + AT) + 2 * load8(frame + l3 + IP_PROTOCOL)) if there else CUT)
    field = image_at + _SOURCE
    if load64(field + SHIFT) >= 0:
        value = CUT
        if caplen >= l3 + IP_DESTINATION:
            value = (
                walk(image_at + _SOURCE4, image_at, load_be32(frame + l3 + IP_SOURCE)) if load64(image_at + _SOURCE4 + SHIFT) >= 0 else NONE
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
    if load64(field + SHIFT) >= 0:
        value = CUT
        if caplen > l3 + IP6_NEXT:
            next_header = load8(frame + l3 + IP6_NEXT)
            value = UNKNOWN if next_header == FRAGMENT else load16(image_at + load64(field + AT) + 2 * (IP6_AT + next_header))
        _put(field, key, value)
    _put_if_asked(image_at + _SOURCE, key, UNKNOWN)
    _put_if_asked(image_at + _DESTINATION, key, UNKNOWN)
    _put_if_asked(image_at + _SOURCE_PORT, key, CUT)
    _put_if_asked(image_at + _DESTINATION_PORT, key, CUT)
    _put_if_asked(image_at + _DETAIL, key, CUT)


@kernel
def put_odd(key: int, image_at: int, row: int, frame: int, caplen: int, depth: int) -> None:
    """Headers that are not wholly there: as much as is there, so that few rules remain to be run."""
    n_tags = load8(row + _KEY_N_TAGS)
    l3 = ETHERNET_BYTES + TAG_BYTES * n_tags
    if caplen < l3:  # cut in the ethertype, or in the last tag
        whole = max(0, n_tags - 1)
        _put_tags(key, image_at, frame, whole, depth)
        for i in range(whole, min(4, depth + 1)):
            _put_if_asked(image_at + _TAG + i * FIELD_BYTES, key, CUT if n_tags == 0 else UNKNOWN)
        _put_all(key, image_at, CUT if n_tags == 0 else UNKNOWN)
        return
    _put_tags(key, image_at, frame, n_tags, depth)
    if n_tags > depth:
        return
    ethertype = load16(row + _KEY_ETHERTYPE)
    field = image_at + _ETHERTYPE
    if load64(field + SHIFT) >= 0:
        _put(field, key, search(field, image_at, ethertype))
    if ethertype == ETH_IP:
        _put_cut_ip(key, image_at, frame, caplen, l3)
    elif ethertype == ETH_IP6:
        _put_cut_ip6(key, image_at, frame, caplen, l3)
    else:
        _put_if_asked(image_at + _SOURCE, key, UNKNOWN)
        _put_if_asked(image_at + _DESTINATION, key, UNKNOWN)
