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
    OP_DETAIL,
    OP_DETAILS,
    OP_ETHERTYPE,
    OP_FIRST_FRAGMENT,
    OP_GROUP,
    OP_LENGTH,
    OP_LLC,
    OP_MAC,
    OP_NEVER,
    OP_PORT,
    OP_PORTS,
    OP_PROTOCHAIN,
    OP_PROTOCOL,
    OP_SET4,
    OP_SET6,
    OP_TAGGED,
    OP_VLAN,
    TRUE,
    UNDETERMINED,
)
from broker.config.policy.tree import ARP, IP, IP6, RARP
from stages.filter.arithmetic import compare
from stages.filter.chain import chain_has
from stages.filter.locate import NOT_THERE, locate, payload_at, type_at, type_of
from stages.jit import kernel
from stages.memory import load8, load16, load32, load64, load_be16, load_be32, load_be64, shift_right
from stages.wire.headers import (
    ARP_DESTINATION,
    ARP_SOURCE,
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    ETH_QINQ,
    ETH_QINQ_OLD,
    ETH_RARP,
    ETH_VLAN,
    ETHERNET_BYTES,
    ETHERTYPE,
    FRAGMENT,
    ICMP,
    ICMP6,
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
    SCTP,
    TAG_BYTES,
    TCP,
    TCP_FLAGS,
    UDP,
)
from stages.wire.key import (
    DETAIL_NONE,
    FRAGMENT_CONFLICT,
    FRAGMENT_TINY,
    ICMP6_AT,
    ICMP_AT,
    KEY,
    PORT_SEEN,
)

assert image.TEST.fields is not None
_OP, _DEPTH, _LAYER, _SIDE, _KINDS = (image.TEST.fields[name][1] for name in ("op", "depth", "layer", "side", "kinds"))
_PROTOCOLS = image.TEST.fields["protocols"][1]
_A, _B, _C = image.TEST.fields["a"][1], image.TEST.fields["b"][1], image.TEST.fields["c"][1]
TEST_BYTES = image.TEST.itemsize

assert KEY.fields is not None
_KEY_N_TAGS, _KEY_FRAGMENT, _KEY_DETAIL = (KEY.fields[name][1] for name in ("n_tags", "fragment", "detail"))
_KEY_SOURCE_PORT, _KEY_DESTINATION_PORT = KEY.fields["source_port"][1], KEY.fields["destination_port"][1]
_KEY_SOURCE_STATE, _KEY_DESTINATION_STATE = KEY.fields["source_state"][1], KEY.fields["destination_state"][1]

_SIGN = -(1 << 63)


@kernel
def _pairs_hold(pairs_at: int, n: int, value: int) -> int:
    """Is value in one of n ascending (first, last)?"""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if load64(pairs_at + 16 * middle) <= value:
            low = middle + 1
        else:
            high = middle
    return TRUE if low > 0 and value <= load64(pairs_at + 16 * (low - 1) + 8) else FALSE


@kernel
def _pairs_hold_128(pairs_at: int, n: int, high_half: int, low_half: int) -> int:
    """The same for rows of (first high, first low, last high, last low), all halves with the sign bit flipped."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        first = load64(pairs_at + 32 * middle)
        if first < high_half or (first == high_half and load64(pairs_at + 32 * middle + 8) <= low_half):
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return FALSE
    last = load64(pairs_at + 32 * (low - 1) + 16)
    return TRUE if high_half < last or (high_half == last and low_half <= load64(pairs_at + 32 * (low - 1) + 24)) else FALSE


@kernel
def _truth(holds: bool) -> int:
    return TRUE if holds else FALSE


@kernel
def _port_bit(protocol: int) -> int:
    if protocol == TCP:
        return 1
    if protocol == UDP:
        return 2
    return 4 if protocol == SCTP else 0


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
        return _truth(load_be32(at + field) & load64(test + _B) == load64(test + _A))
    return _pairs_hold(image_at + load64(test + _A), load64(test + _B), load_be32(at + field))


@kernel
def _test_address6(op: int, test: int, image_at: int, at: int, caplen: int, l3: int) -> int:
    field = l3 + (IP6_SOURCE if load8(test + _SIDE) == 0 else IP6_DESTINATION)
    if op == OP_SET6:
        if caplen < field + 16:
            return UNDETERMINED
        high, low = load_be64(at + field) ^ _SIGN, load_be64(at + field + 8) ^ _SIGN
        return _pairs_hold_128(image_at + load64(test + _A), load64(test + _B), high, low)
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
        return _truth(load8(at + l3 + IP_PROTOCOL) == wanted)
    if caplen < l3 + IP6_NEXT + 1:
        return UNDETERMINED
    next_header = load8(at + l3 + IP6_NEXT)
    if next_header == wanted:
        return TRUE
    if next_header != FRAGMENT:
        return FALSE
    if caplen < l3 + IP6_BYTES + 1:
        return UNDETERMINED
    return _truth(load8(at + l3 + IP6_BYTES) == wanted)


@kernel
def _is_parsed_at(row: int, l3: int) -> bool:
    """The KEY row is about the header at `l3`."""
    return l3 == ETHERNET_BYTES + TAG_BYTES * load8(row + _KEY_N_TAGS)


@kernel
def _ranges_hold(op: int, single: int, test: int, image_at: int, value: int) -> int:
    """One range in the row itself, or a table of them."""
    if op == single:
        return _truth(load64(test + _A) <= value <= load64(test + _B))
    return _pairs_hold(image_at + load64(test + _A), load64(test + _B), value)


@kernel
def _port_of_row(op: int, test: int, image_at: int, row: int, l3: int) -> int:
    """A port that only the KEY row knows."""
    side = load8(test + _SIDE)
    state = load8(row + (_KEY_SOURCE_STATE if side == 0 else _KEY_DESTINATION_STATE))
    if state != PORT_SEEN or not _is_parsed_at(row, l3):
        return UNDETERMINED
    return _ranges_hold(op, OP_PORT, test, image_at, load16(row + (_KEY_SOURCE_PORT if side == 0 else _KEY_DESTINATION_PORT)))


@kernel
def _test_port(op: int, test: int, image_at: int, at: int, caplen: int, l3: int, kind: int, row: int, libpcap: int) -> int:
    protocols = load8(test + _PROTOCOLS)
    if kind == IP:
        if caplen < l3 + IP_PROTOCOL + 1:
            return UNDETERMINED
        if _port_bit(load8(at + l3 + IP_PROTOCOL)) & protocols == 0:
            return FALSE
        if load_be16(at + l3 + IP_FRAGMENT) & IP_OFFSET_BITS:
            return FALSE if libpcap else _port_of_row(op, test, image_at, row, l3)
        if libpcap == 0 and _is_hidden(row, l3):
            return UNDETERMINED
        field = l3 + 4 * (load8(at + l3) & 15)
    elif kind == IP6:
        if caplen < l3 + IP6_NEXT + 1:
            return UNDETERMINED
        next_header = load8(at + l3 + IP6_NEXT)
        if next_header == FRAGMENT and libpcap == 0:
            if caplen < l3 + IP6_BYTES + 1:
                return UNDETERMINED
            return _port_of_row(op, test, image_at, row, l3) if _port_bit(load8(at + l3 + IP6_BYTES)) & protocols else FALSE
        if _port_bit(next_header) & protocols == 0:
            return FALSE
        field = l3 + IP6_BYTES
    else:
        return FALSE
    field += 2 * load8(test + _SIDE)
    if caplen < field + 2:
        return UNDETERMINED
    return _ranges_hold(op, OP_PORT, test, image_at, load_be16(at + field))


@kernel
def _is_hidden(row: int, l3: int) -> bool:
    """A first fragment that is not to be believed: too short, or one of several."""
    fragment = load8(row + _KEY_FRAGMENT)
    return fragment in (FRAGMENT_TINY, FRAGMENT_CONFLICT) and _is_parsed_at(row, l3)


@kernel
def _detail_of_row(op: int, test: int, image_at: int, row: int, l3: int) -> int:
    detail = load16(row + _KEY_DETAIL)
    if detail >= DETAIL_NONE or not _is_parsed_at(row, l3):
        return UNDETERMINED
    return _ranges_hold(op, OP_DETAIL, test, image_at, detail)


@kernel
def _test_detail(op: int, test: int, image_at: int, at: int, caplen: int, l3: int, kind: int, row: int, libpcap: int) -> int:
    protocol = load64(test + _C)
    field, base = l3 + IP6_BYTES, ICMP6_AT if protocol == ICMP6 else ICMP_AT if protocol == ICMP else 0
    if kind == IP:
        if caplen < l3 + IP_PROTOCOL + 1:
            return UNDETERMINED
        if load8(at + l3 + IP_PROTOCOL) != protocol:
            return FALSE
        if load_be16(at + l3 + IP_FRAGMENT) & IP_OFFSET_BITS:
            return FALSE if libpcap else _detail_of_row(op, test, image_at, row, l3)
        if libpcap == 0 and _is_hidden(row, l3):
            return UNDETERMINED
        field = l3 + 4 * (load8(at + l3) & 15)
    else:
        if caplen < l3 + IP6_NEXT + 1:
            return UNDETERMINED
        next_header = load8(at + l3 + IP6_NEXT)
        if next_header == FRAGMENT:
            if caplen < l3 + IP6_BYTES + 1:
                return UNDETERMINED
            if libpcap != 0 or load8(at + l3 + IP6_BYTES) != protocol:
                return FALSE
            return _detail_of_row(op, test, image_at, row, l3)
        if next_header != protocol:
            return FALSE
    if protocol == TCP:
        field += TCP_FLAGS
    if caplen < field + 1:
        return UNDETERMINED
    return _ranges_hold(op, OP_DETAIL, test, image_at, base + load8(at + field))


@kernel
def _test_link(op: int, test: int, at: int, caplen: int, wirelen: int) -> int:
    """What needs no ethertype."""
    if op == OP_LENGTH:
        return _truth(load64(test + _A) <= wirelen <= load64(test + _B))
    if op == OP_MAC:
        field = MAC_SOURCE if load8(test + _SIDE) == 0 else 0
        if caplen < field + 6:
            return UNDETERMINED
        return _truth(load_be16(at + field) << 32 | load_be32(at + field + 2) == load64(test + _A))
    if op == OP_GROUP:
        if caplen < 1:
            return UNDETERMINED
        return _truth(load8(at) & 1 != 0)
    return TRUE if op == OP_ALWAYS else FALSE


@kernel
def _test_type(op: int, test: int, at: int, caplen: int, l3: int, sap_at: int, ethertype: int) -> int:
    """What needs no header behind the tag. `sap_at`: behind the ethertype, wherever the payload is."""
    if op == OP_ETHERTYPE:
        return _truth(ethertype == load64(test + _A))
    if op == OP_TAGGED:
        return _truth(ethertype == ETH_VLAN or ethertype == ETH_QINQ or ethertype == ETH_QINQ_OLD)  # noqa: SIM109 - three compares
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
    if op == OP_VLAN:
        value &= 0xFFF
    return _truth(value == load64(test + _A))


@kernel
def _test_multicast(at: int, caplen: int, l3: int, kind: int) -> int:
    """libpcap looks at the first byte of the destination only."""
    field = l3 + (IP_DESTINATION if kind == IP else IP6_DESTINATION)
    if caplen < field + 1:
        return UNDETERMINED
    first = load8(at + field)
    return _truth(first >= 224 if kind == IP else first == 255)


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
    op = load8(test + _OP)
    if op == OP_COMPARE:
        return compare(image_at + load64(test + _A), at, caplen, wirelen, libpcap)
    if op >= OP_NEVER:
        return _test_link(op, test, at, caplen, wirelen)
    layer = load32(test + _LAYER)
    if layer == 0:
        l3 = ETHERTYPE + TAG_BYTES * load8(test + _DEPTH) + 2
        sap_at = l3
        if caplen < l3:
            return UNDETERMINED
        ethertype = load_be16(at + l3 - 2)
    else:
        place = locate(layer, at, caplen)
        if place < 0:
            return FALSE if place == NOT_THERE else UNDETERMINED
        l3, sap_at = payload_at(place), type_at(place) + 2
        ethertype = type_of(layer, place, at, caplen)
        if ethertype < 0:
            return UNDETERMINED
    if op >= OP_ETHERTYPE:
        return _test_type(op, test, at, caplen, l3, sap_at, ethertype)
    kind = _kind_bit(ethertype)
    if op == OP_FIRST_FRAGMENT:
        return _test_first_fragment(at, caplen, l3, kind, libpcap)
    if op <= OP_SET4:
        return _test_address4(op, test, image_at, at, caplen, l3, ethertype)
    if op <= OP_SET6:
        return _test_address6(op, test, image_at, at, caplen, l3) if kind == IP6 else FALSE
    if op <= OP_PORTS:
        return _test_port(op, test, image_at, at, caplen, l3, kind, row, libpcap)
    if load8(test + _KINDS) & kind == 0:
        return FALSE
    if op <= OP_DETAILS:
        return _test_detail(op, test, image_at, at, caplen, l3, kind, row, libpcap)
    if op == OP_PROTOCOL:
        return _test_protocol(test, at, caplen, l3, kind)
    if op == OP_PROTOCHAIN:
        return chain_has(load64(test + _A), kind, at, caplen, l3)
    return _test_multicast(at, caplen, l3, kind)
