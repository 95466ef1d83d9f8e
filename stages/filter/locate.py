"""Where a layer's headers begin. libpcap moves its offsets the same way, and like it we ask only Geneve whether it is there; and tunnels.

| kernel | does |
|---|---|
| locate | the place of a layer; UNKNOWN beyond `caplen`, NOT_THERE without the tunnel, HIDDEN where its header is in another fragment |
| type_of | the ethertype of a layer, UNKNOWN beyond `caplen`; PPP numbers and labels told as ethertypes |
"""

from __future__ import annotations

from broker.config.policy.layers import STEP_BITS, STEP_MASK
from broker.config.policy.tree import GENEVE, INNER, MPLS, PPPOE, VLAN
from stages.jit import kernel
from stages.memory import load8, load_be16
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETHERNET_BYTES,
    ETHERTYPE,
    IP6_BYTES,
    IP6_NEXT,
    IP_FRAGMENT,
    IP_OFFSET_BITS,
    IP_PROTOCOL,
    TAG_BYTES,
    UDP,
)
from stages.wire.place import NO_LINK, link_at, pack_place, payload_at, type_at
from stages.wire.transport import NOT_THERE, UNKNOWN
from stages.wire.tunnel import KIND_BITS, carried_by, tunnel_of

_LABEL_BYTES = 4
_LABEL_END = -2  # from what follows the label: the byte with the bottom-of-stack bit
_PPPOE_BYTES = 6  # RFC 2516; then PPP's own number, RFC 1661
_PPP_NUMBER_BYTES = 2
_PPP_IP, _PPP_IP6 = 0x21, 0x57
_NO_TYPE = 1 << 16  # above any ethertype
_UDP_BYTES = 8
_UDP_DESTINATION = 2
_GENEVE_PORT = 6081  # RFC 8926
_GENEVE_TYPE = 2
_GENEVE_BYTES = 8
_ETHERNET_INSIDE = 0x6558


@kernel
def _type_by_version(payload: int, frame: int, neither: int) -> int:
    version = load8(frame + payload) >> 4
    return ETH_IP if version == 4 else ETH_IP6 if version == 6 else neither


@kernel
def type_of(layer: int, place: int, frame: int, caplen: int) -> int:
    labels, link = 0, 0
    while layer:
        step = layer & STEP_MASK
        if step == MPLS:
            labels = 2  # labels follow the last tunnel
        elif step == GENEVE and labels:
            labels = 1
        elif step == INNER:
            labels = 0
        if step == PPPOE or step == GENEVE or step == INNER:  # noqa: SIM109 - three compares
            link = step
        layer >>= STEP_BITS
    payload = payload_at(place)
    if labels == 1:
        return UNKNOWN  # libpcap looks for the label's end in front of all that follows the tunnel
    if labels:
        if caplen <= payload + _LABEL_END:
            return UNKNOWN
        if load8(frame + payload + _LABEL_END) & 1 == 0:
            return 0
        if caplen <= payload:
            return UNKNOWN
        return _type_by_version(payload, frame, 0)
    at = type_at(place)
    if link == INNER and at == payload:
        return _type_by_version(payload, frame, _NO_TYPE) if caplen > payload else UNKNOWN
    if caplen < at + 2:
        return UNKNOWN
    number = load_be16(frame + at)
    if link != PPPOE:
        return number
    if number == _PPP_IP:
        return ETH_IP
    if number == _PPP_IP6:
        return ETH_IP6
    return number | _NO_TYPE if number == ETH_IP or number == ETH_IP6 else number  # noqa: SIM109 - two compares


@kernel
def _geneve_at(layer: int, place: int, frame: int, caplen: int) -> int:
    """Where the Geneve header begins that this layer carries."""
    ethertype, l3 = type_of(layer, place, frame, caplen), payload_at(place)
    if ethertype == UNKNOWN:
        return UNKNOWN
    if ethertype == ETH_IP:
        if caplen < l3 + IP_PROTOCOL + 1:
            return UNKNOWN
        if load8(frame + l3 + IP_PROTOCOL) != UDP or load_be16(frame + l3 + IP_FRAGMENT) & IP_OFFSET_BITS:
            return NOT_THERE
        l4 = l3 + 4 * (load8(frame + l3) & 15)
    elif ethertype == ETH_IP6:
        if caplen < l3 + IP6_NEXT + 1:
            return UNKNOWN
        if load8(frame + l3 + IP6_NEXT) != UDP:
            return NOT_THERE
        l4 = l3 + IP6_BYTES
    else:
        return NOT_THERE
    if caplen < l4 + _UDP_BYTES + _GENEVE_TYPE + 2:
        return UNKNOWN
    if load_be16(frame + l4 + _UDP_DESTINATION) != _GENEVE_PORT or load8(frame + l4 + _UDP_BYTES) >> 6:
        return NOT_THERE
    return l4 + _UDP_BYTES


@kernel
def step_inside(layer: int, place: int, frame: int, caplen: int) -> int:
    """Into the tunnel that the packet is."""
    ethertype = type_of(layer, place, frame, caplen)
    if ethertype < 0:
        return ethertype
    tunnel = tunnel_of(ethertype, payload_at(place), frame, caplen)
    return tunnel if tunnel < 0 else carried_by(tunnel & ((1 << KIND_BITS) - 1), tunnel >> KIND_BITS, frame, caplen)


@kernel
def locate(layer: int, frame: int, caplen: int) -> int:
    place = pack_place(0, ETHERTYPE, ETHERNET_BYTES)
    passed, shift = 0, 0
    while layer:
        step = layer & STEP_MASK
        payload = payload_at(place)
        if step == INNER:
            place = step_inside(passed, place, frame, caplen)
            if place < 0:
                return place
        elif link_at(place) == NO_LINK and (step == VLAN or type_at(place) == payload):
            return NOT_THERE  # nothing says that there is such a header
        elif step == VLAN:
            place = pack_place(link_at(place), type_at(place) + TAG_BYTES, payload + TAG_BYTES)
        elif step == MPLS:
            place = pack_place(link_at(place), type_at(place), payload + _LABEL_BYTES)
        elif step == PPPOE:
            at = payload + _PPPOE_BYTES
            place = pack_place(at, at, at + _PPP_NUMBER_BYTES)
        elif step == GENEVE:
            at = _geneve_at(passed, place, frame, caplen)
            if at < 0:
                return at
            inside = at + _GENEVE_BYTES + 4 * (load8(frame + at) & 0x3F)
            if load_be16(frame + at + _GENEVE_TYPE) == _ETHERNET_INSIDE:
                place = pack_place(inside, inside + ETHERTYPE, inside + ETHERNET_BYTES)
            else:
                place = pack_place(inside, at + _GENEVE_TYPE, inside)
        else:
            return NOT_THERE
        passed |= step << shift
        shift += STEP_BITS
        layer >>= STEP_BITS
    return place
