"""Our own tests of a header's fields, and of tunnels.

| kernel | does |
|---|---|
| test_field | tree.Field -> FALSE, TRUE, UNDETERMINED |
| test_tunnel | tree.Tunnel -> the same |
| truth_of_code | what a place or transport header that is not to be had makes of a test |

What is in another fragment is FALSE to a map that follows libpcap, else UNDETERMINED.
"""

from __future__ import annotations

from broker.config.policy.image import FALSE, TRUE, UNDETERMINED
from broker.config.policy.tree import (
    ANY_TUNNEL,
    ATOMIC,
    DSCP,
    ERSPAN,
    EXTENSION,
    FIRST,
    FLOW_LABEL,
    FRAGMENT,
    GRE,
    IP,
    IP6,
    L4_PROTOCOL,
    LATER,
    MAX_TAGS,
    MPLS_TUNNEL,
    NOT_FRAGMENTED,
    PCP,
    TAGS,
    TTL,
)
from stages.filter.tables import pairs_hold
from stages.jit import kernel
from stages.memory import load8, load_be16, load_be32
from stages.wire import headers
from stages.wire.chain import CHAIN_AT, CHAIN_FRAGMENT, chain_of, is_extension
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETH_QINQ,
    ETH_QINQ_OLD,
    ETH_VLAN,
    IP6_BYTES,
    IP6_NEXT,
    IP_MORE_BIT,
    IP_OFFSET_BITS,
    TAG_BYTES,
)
from stages.wire.key import FRAGMENT_NONE
from stages.wire.transport import END, HIDDEN, HIDDEN_BIT, NOT_THERE, UNKNOWN, next_of, offset_in, protocol_in, transport_of
from stages.wire.tunnel import ID_CUT, KIND_BITS, MAX_LABELS, NO_ID, id_of, label_of, tunnel_of

_IP_TOS, _IP_TTL, _IP6_HOP_LIMIT = 1, 8, 7
_IP_FRAGMENT, _FRAGMENT6_OFFSET, _FRAGMENT6_BYTES = headers.IP_FRAGMENT, headers.FRAGMENT_OFFSET, headers.FRAGMENT_BYTES


@kernel
def truth_of_code(code: int, libpcap: int) -> int:
    """UNKNOWN, NOT_THERE or HIDDEN."""
    return FALSE if code == NOT_THERE or (code == HIDDEN and libpcap != 0) else UNDETERMINED


@kernel
def is_tag(ethertype: int) -> bool:
    return ethertype in (ETH_VLAN, ETH_QINQ, ETH_QINQ_OLD)


@kernel
def _n_tags(ethertype: int, l3: int, frame: int, caplen: int) -> int:
    n = 0
    while n < MAX_TAGS and is_tag(ethertype):
        if caplen < l3 + TAG_BYTES:
            return UNKNOWN
        ethertype = load_be16(frame + l3 + 2)
        l3 += TAG_BYTES
        n += 1
    return n


@kernel
def _fragment_of(l3: int, is_ip6: int, frame: int, caplen: int) -> int:
    if is_ip6 == 0:
        if caplen < l3 + _IP_FRAGMENT + 2:
            return UNKNOWN
        bits = load_be16(frame + l3 + _IP_FRAGMENT)
        if bits & IP_OFFSET_BITS:
            return LATER
        return FIRST if bits & IP_MORE_BIT else NOT_FRAGMENTED
    if caplen < l3 + IP6_BYTES:
        return UNKNOWN
    found = chain_of(frame, caplen, l3)
    if found >> CHAIN_FRAGMENT & 255 == FRAGMENT_NONE:
        return UNKNOWN if is_extension(found & 255) else NOT_FRAGMENTED
    at = l3 + (found >> CHAIN_AT)
    if caplen < at + _FRAGMENT6_BYTES:
        return UNKNOWN
    bits = load_be16(frame + at + _FRAGMENT6_OFFSET)
    if bits & headers.FRAGMENT_OFFSET_BITS:
        return LATER
    return FIRST if bits & headers.FRAGMENT_MORE_BIT else ATOMIC


@kernel
def _test_extension(pairs_at: int, n: int, l3: int, frame: int, caplen: int, libpcap: int) -> int:
    """Is one of them in the chain?"""
    if caplen < l3 + IP6_NEXT + 1:
        return UNDETERMINED
    protocol, at = load8(frame + l3 + IP6_NEXT), l3 + IP6_BYTES
    for _ in range(headers.MAX_CHAIN + 2):
        if pairs_hold(pairs_at, n, protocol) == TRUE:
            return TRUE
        found = next_of(protocol, at, 1, frame, caplen)
        if found == END:
            return FALSE
        if found < 0:
            return UNDETERMINED
        protocol, at = protocol_in(found), offset_in(found)
        if found & HIDDEN_BIT:
            if pairs_hold(pairs_at, n, protocol) == TRUE:
                return TRUE
            return truth_of_code(HIDDEN if is_extension(protocol) else NOT_THERE, libpcap)
    return UNDETERMINED


@kernel
def _l4_protocol(l3: int, is_ip6: int, frame: int, caplen: int) -> int:
    found = transport_of(frame, caplen, l3, is_ip6)
    if found < 0:
        return found
    return HIDDEN if found & HIDDEN_BIT and is_ip6 and is_extension(protocol_in(found)) else protocol_in(found)


@kernel
def _value_of(field: int, l3: int, is_ip6: int, frame: int, caplen: int) -> int:
    """A code, if it is negative."""
    if field == FRAGMENT:
        return _fragment_of(l3, is_ip6, frame, caplen)
    if field == L4_PROTOCOL:
        return _l4_protocol(l3, is_ip6, frame, caplen)
    if field == TTL:
        at = l3 + (_IP6_HOP_LIMIT if is_ip6 else _IP_TTL)
        return load8(frame + at) if caplen > at else UNKNOWN
    if field == FLOW_LABEL:
        return load_be32(frame + l3) & 0xFFFFF if caplen >= l3 + 4 else UNKNOWN
    if caplen < l3 + 2:
        return UNKNOWN
    traffic_class = load_be16(frame + l3) >> 4 & 0xFF if is_ip6 else load8(frame + l3 + _IP_TOS)
    return traffic_class >> 2 if field == DSCP else traffic_class & 3


@kernel
def test_field(field: int, kinds: int, pairs_at: int, n: int, ethertype: int, l3: int, frame: int, caplen: int, libpcap: int) -> int:
    is_ip6 = 1 if ethertype == ETH_IP6 else 0
    if field == TAGS:
        value = _n_tags(ethertype, l3, frame, caplen)
    elif field == PCP:
        if not is_tag(ethertype):
            return FALSE
        value = load8(frame + l3) >> 5 if caplen > l3 else UNKNOWN
    elif (is_ip6 == 0 and ethertype != ETH_IP) or kinds & (IP6 if is_ip6 else IP) == 0:
        return FALSE
    elif field == EXTENSION:
        return _test_extension(pairs_at, n, l3, frame, caplen, libpcap)
    else:
        value = _value_of(field, l3, is_ip6, frame, caplen)
    return truth_of_code(value, libpcap) if value < 0 else pairs_hold(pairs_at, n, value)


@kernel
def _test_label(pairs_at: int, n: int, at: int, frame: int, caplen: int) -> int:
    """Is one of the stack's labels one of these?"""
    for i in range(MAX_LABELS):
        label = label_of(at, i, frame, caplen)
        if label < 0:
            return FALSE if label == NO_ID else UNDETERMINED
        if pairs_hold(pairs_at, n, label) == TRUE:
            return TRUE
    return FALSE


@kernel
def test_tunnel(wanted: int, pairs_at: int, n: int, ethertype: int, l3: int, frame: int, caplen: int, libpcap: int) -> int:
    """`pairs_at` 0: any id."""
    tunnel = tunnel_of(ethertype, l3, frame, caplen)
    if tunnel < 0:
        return truth_of_code(tunnel, libpcap)
    kind, at = tunnel & ((1 << KIND_BITS) - 1), tunnel >> KIND_BITS
    if wanted != ANY_TUNNEL and wanted != kind and not (wanted == GRE and kind == ERSPAN):
        return FALSE
    if pairs_at == 0:
        return TRUE
    if wanted == MPLS_TUNNEL:
        return _test_label(pairs_at, n, at, frame, caplen)
    value = id_of(wanted, at, frame, caplen)
    if value < 0:
        return UNDETERMINED if value == ID_CUT else FALSE
    return pairs_hold(pairs_at, n, value)
