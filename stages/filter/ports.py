"""Ports, TCP flags and ICMP types, as libpcap looks for them; of fragments, as the KEY row knows them.

| kernel | does |
|---|---|
| test_port, test_detail | a TEST row over the IP header at `l3` -> FALSE, TRUE, UNDETERMINED |
"""

from __future__ import annotations

from broker.config.policy import image
from broker.config.policy.image import FALSE, OP_DETAIL, OP_PORT, UNDETERMINED
from broker.config.policy.tree import IP, IP6
from stages.filter.tables import ranges_hold
from stages.jit import kernel
from stages.memory import load8, load16, load64, load_be16
from stages.wire.headers import (
    ETHERNET_BYTES,
    FRAGMENT,
    ICMP,
    ICMP6,
    IP6_BYTES,
    IP6_NEXT,
    IP_FRAGMENT,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
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
_SIDE, _PROTOCOLS, _C = (image.TEST.fields[name][1] for name in ("side", "protocols", "c"))

assert KEY.fields is not None
_KEY_N_TAGS, _KEY_FRAGMENT, _KEY_DETAIL, _KEY_ODD = (KEY.fields[name][1] for name in ("n_tags", "fragment", "detail", "odd"))
_KEY_SOURCE_PORT, _KEY_DESTINATION_PORT = KEY.fields["source_port"][1], KEY.fields["destination_port"][1]
_KEY_SOURCE_STATE, _KEY_DESTINATION_STATE = KEY.fields["source_state"][1], KEY.fields["destination_state"][1]


@kernel
def _port_bit(protocol: int) -> int:
    if protocol == TCP:
        return 1
    if protocol == UDP:
        return 2
    return 4 if protocol == SCTP else 0


@kernel
def _is_parsed_at(row: int, l3: int) -> bool:
    """The KEY row is about the header at `l3`."""
    return l3 == ETHERNET_BYTES + TAG_BYTES * load8(row + _KEY_N_TAGS)


@kernel
def _port_of_row(op: int, test: int, image_at: int, row: int, l3: int) -> int:
    """A port that only the KEY row knows."""
    side = load8(test + _SIDE)
    state = load8(row + (_KEY_SOURCE_STATE if side == 0 else _KEY_DESTINATION_STATE))
    if state != PORT_SEEN or not _is_parsed_at(row, l3):
        return UNDETERMINED
    return ranges_hold(op, OP_PORT, test, image_at, load16(row + (_KEY_SOURCE_PORT if side == 0 else _KEY_DESTINATION_PORT)))


@kernel
def test_port(op: int, test: int, image_at: int, at: int, caplen: int, l3: int, kind: int, row: int, libpcap: int) -> int:
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
    return ranges_hold(op, OP_PORT, test, image_at, load_be16(at + field))


@kernel
def _is_hidden(row: int, l3: int) -> bool:
    """A first fragment that is not to be believed: too short, or one of several; as far as its header is there to say so."""
    fragment = load8(row + _KEY_FRAGMENT)
    return load8(row + _KEY_ODD) == 0 and fragment in (FRAGMENT_TINY, FRAGMENT_CONFLICT) and _is_parsed_at(row, l3)


@kernel
def _detail_of_row(op: int, test: int, image_at: int, row: int, l3: int) -> int:
    detail = load16(row + _KEY_DETAIL)
    if detail >= DETAIL_NONE or not _is_parsed_at(row, l3):
        return UNDETERMINED
    return ranges_hold(op, OP_DETAIL, test, image_at, detail)


@kernel
def test_detail(op: int, test: int, image_at: int, at: int, caplen: int, l3: int, kind: int, row: int, libpcap: int) -> int:
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
    return ranges_hold(op, OP_DETAIL, test, image_at, base + load8(at + field))
