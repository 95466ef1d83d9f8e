"""Where the network layer of a frame begins, and frames without some of their layers: nothing is copied but a head of a few bytes.

| kernel | does |
|---|---|
| network_of | frame -> ethertype | offset of what it names << NETWORK_AT, behind tags and labels; or a code of wire/transport.py |
| strip_layers | frame -> a shape without the tags, labels and tunnels that `what` names |
| push_tag | a shape -> the same with one more tag, outermost |

A **shape** is what leaves: the first `head_len` bytes of `out`, then the bytes [window_at, window_end) of the frame. It is one int64, read
by `head_len_of`, `window_at_of`, `window_end_of`, `strip_code_of`. WHOLE is the frame as it is: no head, the window from 0 to
NO_WINDOW_END. `window_end` is where the innermost stripped IP header says that its packet ends: behind it there was only padding. It may
lie beyond `caplen`, and beyond `wirelen`: who sends takes min(caplen, window_end), and min(wirelen, window_end) for the original length.

`what` is a number of tags, or ALL_TAGS, and STRIP_* bits:

| removed | from |
|---|---|
| tags | the outermost ones of the frame that leaves: of the inner one where a tunnel is stripped. 0x8100, 0x88a8, 0x9100 |
| VN-tags | the same frame (0x8926, 4 bytes behind the type). They count as tags for MAX_TAGS only |
| MPLS | all labels, on the link or in UDP 6635: IP by its version nibble, or the Ethernet frame of a pseudowire (RFC 4448) |
| tunnels | from the outside, up to MAX_TUNNELS of them, ending at the first one that is not named |

A packet without Ethernet that comes out of a tunnel gets the outer MAC addresses and its ethertype; out of labels on the link also the
tags before them. A code leaves in place what it speaks of, with all that is inside; what is outside of it is stripped as asked:

| code | there is something that may have to be stripped, but |
|---|---|
| STRIP_DONE | (nothing: all that was named is gone, or was not there) |
| STRIP_CUT | its headers are not wholly within `caplen` or not to be understood, or no Ethernet frame can hold what is inside (PPP) |
| STRIP_FRAGMENT | the packet is a fragment: who receives it can put it together, and only then is the inner packet whole |
| STRIP_DEEP | there are more than MAX_TAGS tags or MAX_TUNNELS tunnels |
"""

from __future__ import annotations

from broker.config.policy.tree import ERSPAN, GENEVE_TUNNEL, GRE, GTP, IPIP, MPLS_TUNNEL, VXLAN
from stages.jit import kernel
from stages.memory import copy, load8, load_be16, store_be16
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETH_MPLS,
    ETH_MPLS_MULTICAST,
    ETH_PPP,
    ETH_QINQ,
    ETH_QINQ_OLD,
    ETH_VLAN,
    ETHERTYPE,
    IP6_BYTES,
    IP_BYTES,
    LENGTH_MAX,
    MAX_TAGS,
    TAG_BYTES,
)
from stages.wire.place import NO_LINK, link_at, payload_at, type_at
from stages.wire.transport import HIDDEN, HIDDEN_BIT, MORE_BIT, UNKNOWN, end_of_ip, transport_of
from stages.wire.tunnel import KIND_BITS, carried_by, tunnel_of

NETWORK_AT = 16
HEAD_ROOM = 64

ALL_TAGS = 7
STRIP_VNTAG = 1 << 3
_TUNNELS_AT = 4  # the bit of a kind of tunnel
STRIP_GRE, STRIP_ERSPAN, STRIP_VXLAN, STRIP_GENEVE, STRIP_GTP, STRIP_MPLS, STRIP_IPIP = (
    1 << _TUNNELS_AT + kind for kind in (GRE, ERSPAN, VXLAN, GENEVE_TUNNEL, GTP, MPLS_TUNNEL, IPIP)
)
_IP_TUNNELS = STRIP_GRE | STRIP_ERSPAN | STRIP_VXLAN | STRIP_GENEVE | STRIP_GTP | STRIP_IPIP
MAX_TUNNELS = 4
STRIP_DONE, STRIP_CUT, STRIP_FRAGMENT, STRIP_DEEP = range(4)

_ETH_VNTAG, _VNTAG_BYTES = 0x8926, 6  # its type and 4 bytes
_MACS_BYTES = ETHERTYPE
_NIBBLE_IP, _NIBBLE_IP6 = 4, 6

# a shape: head_len | window_at << 7 | window_end << 28 | code << 49
_WINDOW_AT, _WINDOW_END, _CODE = 7, 28, 49
_HEAD_BITS, _OFFSET_BITS = (1 << 7) - 1, (1 << 21) - 1
NO_WINDOW_END = _OFFSET_BITS
WHOLE = NO_WINDOW_END << _WINDOW_END


@kernel
def pack_shape(head_len: int, window_at: int, window_end: int, code: int) -> int:
    return head_len | window_at << _WINDOW_AT | window_end << _WINDOW_END | code << _CODE


@kernel
def head_len_of(shape: int) -> int:
    return shape & _HEAD_BITS


@kernel
def window_at_of(shape: int) -> int:
    return shape >> _WINDOW_AT & _OFFSET_BITS


@kernel
def window_end_of(shape: int) -> int:
    return shape >> _WINDOW_END & _OFFSET_BITS


@kernel
def strip_code_of(shape: int) -> int:
    return shape >> _CODE


@kernel
def tag_bytes(ethertype: int) -> int:
    """How long the tag is that begins with this type, the type with it; 0: it is none."""
    if ethertype in (ETH_VLAN, ETH_QINQ, ETH_QINQ_OLD):
        return TAG_BYTES
    return _VNTAG_BYTES if ethertype == _ETH_VNTAG else 0


@kernel
def skip_tags(frame: int, caplen: int, at: int) -> int:
    """`at`: where a type stands. The offset of the type behind at most MAX_TAGS tags, VN-tags too; UNKNOWN: cut."""
    for _ in range(MAX_TAGS):
        if caplen < at + 2:
            return UNKNOWN
        n_bytes = tag_bytes(load_be16(frame + at))
        if n_bytes == 0:
            return at
        at += n_bytes
    return at if caplen >= at + 2 else UNKNOWN


@kernel
def _bare_type(frame: int, caplen: int, at: int) -> int:
    """The ethertype of what its version nibble says to be IP; UNKNOWN."""
    if caplen <= at:
        return UNKNOWN
    nibble = load8(frame + at) >> 4
    if nibble == _NIBBLE_IP:
        return ETH_IP
    return ETH_IP6 if nibble == _NIBBLE_IP6 else UNKNOWN


@kernel
def network_of(frame: int, caplen: int) -> int:
    """Ethertype | offset << NETWORK_AT; a type up to LENGTH_MAX is the length of an IEEE 802.3 frame.

    UNKNOWN: cut in the tags or labels, or labels carry neither IP nor Ethernet that can be told. An Ethernet frame behind labels is looked
    into, labels in that are not.
    """
    at = skip_tags(frame, caplen, ETHERTYPE)
    if at < 0:
        return UNKNOWN
    type_ = load_be16(frame + at)
    if type_ not in (ETH_MPLS, ETH_MPLS_MULTICAST):
        return type_ | (at + 2) << NETWORK_AT
    place = carried_by(MPLS_TUNNEL, at + 2, frame, caplen)
    if place < 0:
        return UNKNOWN
    if link_at(place) == NO_LINK:
        type_ = _bare_type(frame, caplen, payload_at(place))
        return UNKNOWN if type_ < 0 else type_ | payload_at(place) << NETWORK_AT
    at = skip_tags(frame, caplen, type_at(place))
    return UNKNOWN if at < 0 else load_be16(frame + at) | (at + 2) << NETWORK_AT


# ---- strip


@kernel
def _code_of(found: int) -> int:
    return STRIP_FRAGMENT if found == HIDDEN else STRIP_CUT


@kernel
def _end_of_outer(frame: int, caplen: int, l3: int, ethertype: int, window_end: int) -> int:
    """The end of an IP packet that is to be stripped, at most `window_end`; HIDDEN: a fragment; UNKNOWN."""
    is_ip6 = 1 if ethertype == ETH_IP6 else 0
    if caplen < l3 + (IP6_BYTES if is_ip6 else IP_BYTES):
        return UNKNOWN
    if transport_of(frame, caplen, l3, is_ip6) & (MORE_BIT | HIDDEN_BIT):
        return HIDDEN
    return min(end_of_ip(frame, l3, is_ip6), window_end)


@kernel
def _write_head(frame: int, macs: int, tags: int, tags_end: int, what: int, out: int) -> int:
    """MAC addresses and the tags that stay; returns their length."""
    copy(out, frame + macs, _MACS_BYTES)
    head_len, n_removed = _MACS_BYTES, 0
    while tags < tags_end:
        n_bytes = tag_bytes(load_be16(frame + tags))
        if n_bytes == _VNTAG_BYTES:
            stays = what & STRIP_VNTAG == 0
        else:
            stays = n_removed >= what & ALL_TAGS
            n_removed += 1
        if stays:
            copy(out + head_len, frame + tags, n_bytes)
            head_len += n_bytes
        tags += n_bytes
    return head_len


@kernel
def strip_layers(frame: int, caplen: int, what: int, out: int) -> int:
    """A shape; `out` has room for HEAD_ROOM bytes. Reads nothing outside of the frame, copies nothing of it but MAC addresses and tags."""
    macs, tags, window_end, code = 0, ETHERTYPE, NO_WINDOW_END, STRIP_DONE
    tags_end = skip_tags(frame, caplen, tags)
    if tags_end < 0:
        return pack_shape(0, 0, NO_WINDOW_END, STRIP_CUT)
    # What leaves: MACs at `macs`, the tags in [tags, tags_end), `ethertype`, and what is at `network`.
    ethertype, network = load_be16(frame + tags_end), tags_end + 2
    for depth in range(MAX_TUNNELS + 1):
        if what >> _TUNNELS_AT == 0:
            break
        if tag_bytes(ethertype):
            code = STRIP_DEEP
            break
        found = tunnel_of(ethertype, network, frame, caplen)
        if found < 0:
            if found == UNKNOWN or (found == HIDDEN and what & _IP_TUNNELS):  # labels on the link are in no fragment
                code = _code_of(found)
            break
        kind, header = found & (1 << KIND_BITS) - 1, found >> KIND_BITS
        if what >> _TUNNELS_AT >> kind & 1 == 0:
            break
        if depth == MAX_TUNNELS:
            code = STRIP_DEEP
            break
        on_link = kind == MPLS_TUNNEL and header == network
        end = window_end if on_link else _end_of_outer(frame, caplen, network, ethertype, window_end)
        place = carried_by(kind, header, frame, caplen) if end >= 0 else end
        if place < 0:
            code = _code_of(place)
            break
        inside = payload_at(place)
        if link_at(place) == NO_LINK:
            type_ = _bare_type(frame, caplen, inside)
            if type_at(place) != inside:
                type_ = load_be16(frame + type_at(place))
            if type_ <= LENGTH_MAX or type_ == ETH_PPP or caplen <= inside or end <= inside:
                code = STRIP_CUT
                break
            if not on_link:
                tags_end = tags
            ethertype, network = type_, inside
        else:
            types = skip_tags(frame, caplen, type_at(place))
            if types < 0 or end < types + 2:
                code = STRIP_CUT
                break
            macs, tags, tags_end = link_at(place), type_at(place), types
            ethertype, network = load_be16(frame + types), types + 2
        window_end = end
    if tag_bytes(ethertype) and (what & ALL_TAGS > MAX_TAGS or what & STRIP_VNTAG):
        code = STRIP_DEEP
    head_len = _write_head(frame, macs, tags, tags_end, what, out)
    if network == tags_end + 2:  # the type stands right before what it names, behind the tags: it can be a part of the window
        if head_len == _MACS_BYTES + tags_end - tags:
            return pack_shape(0, macs, window_end, code)
        return pack_shape(head_len, tags_end, window_end, code)
    store_be16(out + head_len, ethertype)
    return pack_shape(head_len + 2, network, window_end, code)


@kernel
def push_tag(shape: int, frame: int, caplen: int, type_: int, tci: int, out: int) -> int:
    """`out` holds the head of `shape` and gets the new one: `type_` and `tci` right behind the MAC addresses.

    As it was with STRIP_CUT where the MAC addresses are not there, with STRIP_DEEP where the head has no more room.
    """
    head_len, window_at, window_end, code = head_len_of(shape), window_at_of(shape), window_end_of(shape), strip_code_of(shape)
    if head_len == 0:
        if caplen < window_at + _MACS_BYTES:
            return pack_shape(0, window_at, window_end, STRIP_CUT)
        copy(out, frame + window_at, _MACS_BYTES)
        head_len = _MACS_BYTES
        window_at += _MACS_BYTES
    if head_len + TAG_BYTES > HEAD_ROOM:
        return pack_shape(head_len, window_at, window_end, STRIP_DEEP)
    at = head_len - 2
    while at >= _MACS_BYTES:  # a head has an even length
        store_be16(out + at + TAG_BYTES, load_be16(out + at))
        at -= 2
    store_be16(out + _MACS_BYTES, type_)
    store_be16(out + _MACS_BYTES + 2, tci)
    return pack_shape(head_len + TAG_BYTES, window_at, window_end, code)
