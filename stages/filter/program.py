"""Tests asked of the packet's own bytes, as libpcap asks them.

| kernel | does |
|---|---|
| run_test | one TEST row -> FALSE, TRUE, or UNDETERMINED where it would read beyond `caplen` |

What a fragment hides is FALSE to a map that follows libpcap (`libpcap` 1). To the others it is UNDETERMINED; but of a fragment whose first
is known, and behind an IPv6 fragment header, they get the ports and details that the KEY row has.

Nothing is remembered and nothing is taken for granted but what `check_image` has checked; whatever the memo answers, this would.
A test at depth d finds the ethertype at 12 + 4 d whether the packet has d tags or not.
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import (
    FALSE,
    OP_ADDRESS4,
    OP_ALWAYS,
    OP_COMPARE,
    OP_DETAILS,
    OP_ETHERTYPE,
    OP_FIELD,
    OP_FIRST_FRAGMENT,
    OP_GROUP,
    OP_LENGTH,
    OP_LLC,
    OP_MAC,
    OP_NEVER,
    OP_PORTS,
    OP_PROTOCHAIN,
    OP_PROTOCOL,
    OP_SET4,
    OP_SET6,
    OP_TAGGED,
    OP_TUNNEL,
    OP_TUNNEL_ID,
    OP_VLAN,
    TRUE,
    UNDETERMINED,
)
from broker.config.policy.tree import ARP, IP, IP6, RARP
from stages.filter.arithmetic import compare
from stages.filter.chain import chain_has
from stages.filter.locate import locate, type_of
from stages.filter.ports import test_detail, test_port
from stages.filter.properties import is_tag, test_field, test_tunnel, truth_of_code
from stages.filter.tables import pairs_hold, pairs_hold_128, ranges_hold, truth
from stages.jit import kernel
from stages.memory import load8, load32, load64, load_be16, load_be32, load_be64, shift_right
from stages.wire.headers import (
    ARP_DESTINATION,
    ARP_SOURCE,
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    ETH_RARP,
    ETHERTYPE,
    FRAGMENT,
    IP6_BYTES,
    IP6_DESTINATION,
    IP6_NEXT,
    IP6_SOURCE,
    IP_DESTINATION,
    IP_FRAGMENT,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
    IP_SOURCE,
    LENGTH_MAX,
    MAC_SOURCE,
    TAG_BYTES,
)
from stages.wire.place import NO_LINK, link_at, payload_at, type_at

assert image.TEST.fields is not None
_OP, _DEPTH, _LAYER, _SIDE, _KINDS = (image.TEST.fields[name][1] for name in ("op", "depth", "layer", "side", "kinds"))
_A, _B, _C = image.TEST.fields["a"][1], image.TEST.fields["b"][1], image.TEST.fields["c"][1]
TEST_BYTES = image.TEST.itemsize

_SIGN = -(1 << 63)


@kernel
def _kind_bit(ethertype: int) -> int:
    if ethertype == ETH_IP:
        return IP
    if ethertype == ETH_IP6:
        return IP6
    if ethertype == ETH_ARP:
        return ARP
    return RARP if ethertype == ETH_RARP else 0


@kernel
def _test_address4(op: int, test: int, image_at: int, at: int, caplen: int, l3: int, ethertype: int) -> int:
    if load8(test + _KINDS) & _kind_bit(ethertype) == 0:
        return FALSE
    is_source = load8(test + _SIDE) == 0
    if ethertype == ETH_IP:
        field = l3 + (IP_SOURCE if is_source else IP_DESTINATION)
    else:
        field = l3 + (ARP_SOURCE if is_source else ARP_DESTINATION)
    if op == OP_ADDRESS4 and load64(test + _B) == 0:
        return TRUE  # libpcap reads no byte for a net of length 0
    if caplen < field + 4:
        return UNDETERMINED
    if op == OP_ADDRESS4:
        return truth(load_be32(at + field) & load64(test + _B) == load64(test + _A))
    return pairs_hold(image_at + load64(test + _A), load64(test + _B), load_be32(at + field))


@kernel
def _test_address6(op: int, test: int, image_at: int, at: int, caplen: int, l3: int) -> int:
    field = l3 + (IP6_SOURCE if load8(test + _SIDE) == 0 else IP6_DESTINATION)
    if op == OP_SET6:
        if caplen < field + 16:
            return UNDETERMINED
        high, low = load_be64(at + field) ^ _SIGN, load_be64(at + field + 8) ^ _SIGN
        return pairs_hold_128(image_at + load64(test + _A), load64(test + _B), high, low)
    left = load64(test + _C)
    for word in range(4):  # libpcap compares 32 bits at a time and stops at the first difference
        if left <= 0:
            break
        if caplen < field + 4 * word + 4:
            return UNDETERMINED
        wanted = load64(test + (_A if word < 2 else _B))
        wanted = shift_right(wanted, 32) if word & 1 == 0 else wanted & 0xFFFFFFFF
        if shift_right(load_be32(at + field + 4 * word) ^ wanted, max(0, 32 - left)):
            return FALSE
        left -= 32
    return TRUE


@kernel
def _test_protocol(test: int, at: int, caplen: int, l3: int, kind: int) -> int:
    wanted = load64(test + _A)
    if kind == IP:
        if caplen < l3 + IP_PROTOCOL + 1:
            return UNDETERMINED
        return truth(load8(at + l3 + IP_PROTOCOL) == wanted)
    if caplen < l3 + IP6_NEXT + 1:
        return UNDETERMINED
    next_header = load8(at + l3 + IP6_NEXT)
    if next_header == wanted:
        return TRUE
    if next_header != FRAGMENT:
        return FALSE
    if caplen < l3 + IP6_BYTES + 1:
        return UNDETERMINED
    return truth(load8(at + l3 + IP6_BYTES) == wanted)


@kernel
def _test_link(op: int, test: int, at: int, caplen: int, wirelen: int) -> int:
    """What needs no ethertype. `at`: of the link-layer header."""
    if op == OP_LENGTH:
        return truth(load64(test + _A) <= wirelen <= load64(test + _B))
    if op == OP_MAC:
        field = MAC_SOURCE if load8(test + _SIDE) == 0 else 0
        if caplen < field + 6:
            return UNDETERMINED
        value = load_be16(at + field) << 32 | load_be32(at + field + 2)
        return truth(value & load64(test + _B) == load64(test + _A))
    if op == OP_GROUP:
        if caplen < 1:
            return UNDETERMINED
        return truth(load8(at) & 1 != 0)
    return TRUE if op == OP_ALWAYS else FALSE


@kernel
def _test_type(op: int, test: int, image_at: int, at: int, caplen: int, l3: int, sap_at: int, ethertype: int) -> int:
    """What needs no header behind the tag. `sap_at`: behind the ethertype, wherever the payload is."""
    if op == OP_ETHERTYPE:
        return truth(ethertype == load64(test + _A))
    if op == OP_TAGGED:
        return truth(is_tag(ethertype))
    n_bytes = 2
    if op == OP_LLC:
        if ethertype > LENGTH_MAX:
            return FALSE
        n_bytes = load64(test + _B)
        if n_bytes == 1:
            l3 = sap_at
    if caplen < l3 + n_bytes:
        return UNDETERMINED
    value = load8(at + l3) if n_bytes == 1 else load_be16(at + l3)
    if op != OP_LLC:
        return ranges_hold(op, OP_VLAN, test, image_at, value & 0xFFF)
    return truth(value == load64(test + _A))


@kernel
def _test_multicast(at: int, caplen: int, l3: int, kind: int) -> int:
    """libpcap looks at the first byte of the destination only."""
    field = l3 + (IP_DESTINATION if kind == IP else IP6_DESTINATION)
    if caplen < field + 1:
        return UNDETERMINED
    first = load8(at + field)
    return truth(first >= 224 if kind == IP else first == 255)


@kernel
def _test_first_fragment(at: int, caplen: int, l3: int, kind: int, libpcap: int) -> int:
    if kind != IP:
        return TRUE
    if caplen < l3 + IP_FRAGMENT + 2:
        return UNDETERMINED
    if load_be16(at + l3 + IP_FRAGMENT) & IP_OFFSET_BITS:
        return FALSE if libpcap else UNDETERMINED
    return TRUE


@kernel
def run_test(test: int, image_at: int, at: int, caplen: int, wirelen: int, row: int, libpcap: int) -> int:
    op, layer = load8(test + _OP), load32(test + _LAYER)
    if op == OP_COMPARE:
        return compare(image_at + load64(test + _A), at, caplen, wirelen, libpcap)
    if op >= OP_NEVER and layer == 0:
        return _test_link(op, test, at, caplen, wirelen)
    if layer == 0:
        l3 = ETHERTYPE + TAG_BYTES * load8(test + _DEPTH) + 2
        sap_at = l3
        if caplen < l3:
            return UNDETERMINED
        ethertype = load_be16(at + l3 - 2)
    else:
        place = locate(layer, at, caplen)
        if place < 0:
            return truth_of_code(place, libpcap)
        if op >= OP_NEVER:
            link = link_at(place)
            return FALSE if link == NO_LINK else _test_link(op, test, at + link, caplen - link, wirelen)
        l3, sap_at = payload_at(place), type_at(place) + 2
        ethertype = type_of(layer, place, at, caplen)
        if ethertype < 0:
            return UNDETERMINED
    if op >= OP_ETHERTYPE:
        return _test_type(op, test, image_at, at, caplen, l3, sap_at, ethertype)
    kind = _kind_bit(ethertype)
    if op == OP_FIRST_FRAGMENT:
        return _test_first_fragment(at, caplen, l3, kind, libpcap)
    if op == OP_FIELD:
        pairs_at = image_at + load64(test + _A)
        return test_field(load64(test + _C), load8(test + _KINDS), pairs_at, load64(test + _B), ethertype, l3, at, caplen, libpcap)
    if op == OP_TUNNEL or op == OP_TUNNEL_ID:  # noqa: SIM109 - two compares
        pairs_at = 0 if op == OP_TUNNEL else image_at + load64(test + _A)
        return test_tunnel(load64(test + _C), pairs_at, load64(test + _B), ethertype, l3, at, caplen, libpcap)
    if op <= OP_SET4:
        return _test_address4(op, test, image_at, at, caplen, l3, ethertype)
    if op <= OP_SET6:
        return _test_address6(op, test, image_at, at, caplen, l3) if kind == IP6 else FALSE
    if op <= OP_PORTS:
        return test_port(op, test, image_at, at, caplen, l3, kind, row, libpcap)
    if load8(test + _KINDS) & kind == 0:
        return FALSE
    if op <= OP_DETAILS:
        return test_detail(op, test, image_at, at, caplen, l3, kind, row, libpcap)
    if op == OP_PROTOCOL:
        return _test_protocol(test, at, caplen, l3, kind)
    if op == OP_PROTOCHAIN:
        return chain_has(load64(test + _A), kind, at, caplen, l3)
    return _test_multicast(at, caplen, l3, kind)
