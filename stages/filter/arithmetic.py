"""Comparisons of numbers, by the code of `broker.config.policy.arithmetic_code`, as libpcap's machine computes: 32 bits unsigned.

| kernel | does |
|---|---|
| compare | the code at `code_at` -> FALSE, TRUE, or UNDETERMINED where it reads beyond `caplen` or divides by zero |

A number in a tunnel that is not there makes the comparison FALSE. To a map that is told what cannot be told (`libpcap` 0), what a later
fragment has in the place of a transport header cannot be told.
"""

from __future__ import annotations

from broker.config.policy.arithmetic_code import (
    ADD,
    AND,
    BASE_SHIFT,
    CONSTANT_INDEX,
    DIVIDE,
    LAYER_SHIFT,
    LEFT,
    LENGTH,
    LOAD,
    MODULO,
    MULTIPLY,
    NUMBER,
    OPERAND_SHIFT,
    OR,
    RELATIONS,
    RIGHT,
    SIMPLE,
    SUBTRACT,
    SWAPPED,
    TAGS_SHIFT,
    XOR,
)
from broker.config.policy.image import FALSE, TRUE
from broker.config.policy.layers import STEP_BITS, STEP_MASK
from broker.config.policy.tree import BEHIND6, GENEVE, L4, LINK, PAYLOAD, TRANSPORT, TYPE
from stages.filter.locate import locate, type_of
from stages.filter.properties import truth_of_code
from stages.jit import kernel
from stages.memory import load8, load64, load_be16, load_be32
from stages.wire.headers import ETH_IP, ETH_IP6, ETHERNET_BYTES, ETHERTYPE, IP6_BYTES, IP_FRAGMENT, IP_OFFSET_BITS, TAG_BYTES
from stages.wire.place import NO_LINK, link_at, pack_place, payload_at, type_at
from stages.wire.transport import HIDDEN, HIDDEN_BIT, MORE_BIT, NOT_THERE, UNKNOWN, end_of_ip, offset_in, payload_of, transport_of

_ALL = 0xFFFFFFFF
_NO_TYPE = 0xFFFF  # in the place of an ethertype, where the first four bits of the packet are all that says what it is
_EQUAL, _ABOVE = RELATIONS["="], RELATIONS[">"]


@kernel
def _has_geneve(layer: int) -> int:
    found = 0
    while layer:
        found |= layer & STEP_MASK == GENEVE
        layer >>= STEP_BITS
    return found


@kernel
def is_later_fragment(l3: int, frame: int, caplen: int) -> bool:
    """What is behind this IPv4 header is not what its payload begins with."""
    return caplen >= l3 + IP_FRAGMENT + 2 and load_be16(frame + l3 + IP_FRAGMENT) & IP_OFFSET_BITS != 0


@kernel
def _load(at: int, size: int, frame: int) -> int:
    if size == 1:
        return load8(frame + at)
    return load_be16(frame + at) if size == 2 else load_be32(frame + at)


@kernel
def _load_transport(base: int, index: int, size: int, ethertype: int, l3: int, frame: int, caplen: int) -> int:
    if ethertype == UNKNOWN:
        return UNKNOWN
    if ethertype != ETH_IP and ethertype != ETH_IP6:
        return NOT_THERE
    is_ip6 = 1 if ethertype == ETH_IP6 else 0
    found = transport_of(frame, caplen, l3, is_ip6) if base == L4 else payload_of(frame, caplen, l3, is_ip6)
    if found < 0:
        return found
    if found & HIDDEN_BIT:
        return HIDDEN
    end = offset_in(found) + index + size
    if end > end_of_ip(frame, l3, is_ip6):  # what comes then fills up the frame
        return HIDDEN if found & MORE_BIT else NOT_THERE
    return _load(end - size, size, frame) if end <= caplen else UNKNOWN


@kernel
def load_number(what: int, index: int, frame: int, caplen: int, libpcap: int) -> int:
    """What `what` says, `index` bytes in. UNKNOWN, NOT_THERE, HIDDEN."""
    layer, base = what >> LAYER_SHIFT, what >> BASE_SHIFT & 255
    if layer == 0:
        moved = TAG_BYTES * (what >> TAGS_SHIFT & 255)
        place = pack_place(0, ETHERTYPE + moved, ETHERNET_BYTES + moved)
    else:
        place = locate(layer, frame, caplen)
        if place < 0:
            return place
    fixed, variable = payload_at(place), 0
    if base == LINK:
        fixed = link_at(place)
        if fixed == NO_LINK:
            return NOT_THERE
    elif base == TYPE:
        if fixed == type_at(place):
            return _NO_TYPE
        fixed = type_at(place)
    elif base == L4 or base == PAYLOAD:  # noqa: SIM109 - two compares
        return _load_transport(base, index, what & 255, type_of(layer, place, frame, caplen), fixed, frame, caplen)
    elif base == TRANSPORT:
        if caplen <= fixed or (libpcap == 0 and is_later_fragment(fixed, frame, caplen)):
            return UNKNOWN
        variable = 4 * (load8(frame + fixed) & 15)
    elif base == BEHIND6:
        fixed += IP6_BYTES
    if layer and _has_geneve(layer):
        fixed, variable = 0, fixed + variable
    # libpcap adds a constant to what it knows of the offset, and what it computed to what it does not know: it shows where they overflow
    at = ((fixed + index) & _ALL) + variable if what & CONSTANT_INDEX else ((variable + index) & _ALL) + fixed
    size = what & 255
    return _load(at, size, frame) if at + size <= caplen else UNKNOWN


@kernel
def calculate(operation: int, a: int, b: int) -> int:
    """32 bits of both; UNKNOWN: a division by zero."""
    if operation == ADD:
        a += b
    elif operation == SUBTRACT:
        a -= b
    elif operation == MULTIPLY:
        a *= b  # may overflow; its low half is right
    elif operation == DIVIDE or operation == MODULO:  # noqa: SIM109 - two compares
        if b == 0:
            return UNKNOWN
        a = a // b if operation == DIVIDE else a % b
    elif operation == AND:
        a &= b
    elif operation == OR:
        a |= b
    elif operation == XOR:
        a ^= b
    elif operation == LEFT:
        a = a << b if b < 32 else 0
    elif operation == RIGHT:
        a = a >> b if b < 32 else 0
    return a & _ALL


@kernel
def _relate(relation: int, left: int, right: int, libpcap: int) -> int:
    if left < 0:
        return truth_of_code(left, libpcap)
    if relation == _EQUAL:
        return TRUE if left == right else FALSE
    if relation == _ABOVE:
        return TRUE if left > right else FALSE
    return TRUE if left >= right else FALSE


@kernel
def compare(code_at: int, frame: int, caplen: int, wirelen: int, libpcap: int) -> int:
    head = load64(code_at)
    if head & SIMPLE:
        left = load_number(load64(code_at + 8), load64(code_at + 16), frame, caplen, libpcap)
        if left >= 0:
            left &= load64(code_at + 24)
        return _relate(head & 255, left, load64(code_at + 32), libpcap)
    s0, s1, s2, s3, s4, s5, s6, s7 = 0, 0, 0, 0, 0, 0, 0, 0  # STACK values, the top first
    at, end = code_at + 8, code_at + 8 * (head >> OPERAND_SHIFT)
    while at < end:
        word = load64(at)
        operation = word & 255
        at += 8
        if operation <= LENGTH:
            s7, s6, s5, s4, s3, s2, s1 = s6, s5, s4, s3, s2, s1, s0
            s0 = word >> OPERAND_SHIFT if operation == NUMBER else wirelen & _ALL
            continue
        if operation == LOAD:
            s0 = load_number(load64(at), s0, frame, caplen, libpcap)
            at += 8
        else:
            s0 = calculate(operation, s0, s1) if word & SWAPPED else calculate(operation, s1, s0)
            s1, s2, s3, s4, s5, s6 = s2, s3, s4, s5, s6, s7
        if s0 < 0:
            return _relate(0, s0, 0, libpcap)
    return _relate(head & 255, s0, s1, libpcap) if head & SWAPPED else _relate(head & 255, s1, s0, libpcap)
