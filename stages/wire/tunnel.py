"""Which tunnel a packet is, and where the packet begins that it carries.

| kernel | does |
|---|---|
| tunnel_of | ethertype and what follows it -> kind of tunnel | offset of its header << KIND_BITS; or a code of transport.py |
| id_of | key, VNI, session id or TEID; NO_ID; ID_CUT beyond `caplen` |
| label_of | one MPLS label of a stack; NO_ID, ID_CUT |
| carried_by | the place of the packet inside; or a code |

| tunnel | where | header | carries |
|---|---|---|---|
| GRE | protocol 47; UDP 4754 (RFC 8086) | RFC 2784, 2890; version 1: RFC 2637 | what its ethertype says |
| ERSPAN | GRE 0x88be (type I without sequence number, type II with), 0x22eb (III) | draft-foschiano-erspan | Ethernet; type III IP, too |
| VXLAN | UDP 4789, 4790 (GPE), with the bit that says there is a VNI | RFC 7348, draft-ietf-nvo3-vxlan-gpe | Ethernet; GPE IP, too |
| Geneve | UDP 6081, version 0 | RFC 8926 | what its ethertype says |
| GTP | UDP 2152, version 1, G-PDU | 3GPP TS 29.281 | IP |
| MPLS | ethertypes 0x8847, 0x8848; UDP 6635 (RFC 7510) | RFC 3032 | IP, or Ethernet with or without control word (RFC 4448) |
| IPIP | protocols 4 and 41 (RFC 2003, 4213, 2473) | | IP |

Ports are those of the destination. The tunnel is looked for behind MAX_TAGS tags and extension headers. In a later fragment it is HIDDEN.
"""

from __future__ import annotations

from broker.config.policy.tree import ERSPAN, GENEVE_TUNNEL, GRE, GTP, IPIP, MPLS_TUNNEL, VXLAN
from stages.jit import kernel
from stages.memory import load8, load_be16, load_be32
from stages.wire.chain import is_extension
from stages.wire.headers import (
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    ETH_MPLS,
    ETH_MPLS_MULTICAST,
    ETH_PPP,
    ETH_QINQ,
    ETH_QINQ_OLD,
    ETH_VLAN,
    ETHERTYPE,
    MAX_TAGS,
    TAG_BYTES,
    UDP,
)
from stages.wire.place import NO_LINK, bare_place, ethernet_place, pack_place
from stages.wire.transport import HIDDEN, HIDDEN_BIT, NOT_THERE, UNKNOWN, offset_in, protocol_in, transport_of

KIND_BITS = 8
NO_ID, ID_CUT = -1, -2
MAX_LABELS = 16

_ETH_ETHERNET, _ETH_ERSPAN, _ETH_ERSPAN3 = 0x6558, 0x88BE, 0x22EB
_IN_IP, _IN_IP6, _IN_GRE = 4, 41, 47
_UDP_PORT, _UDP_BYTES = 2, 8
_PORT_VXLAN, _PORT_VXLAN_GPE, _PORT_GENEVE, _PORT_GTP, _PORT_GRE, _PORT_MPLS = 4789, 4790, 6081, 2152, 4754, 6635

_GRE_BYTES, _GRE_TYPE = 4, 2
_GRE_CHECKSUM, _GRE_ROUTING, _GRE_KEY, _GRE_SEQUENCE, _GRE_ACKNOWLEDGES, _GRE_VERSION = 0x8000, 0x4000, 0x2000, 0x1000, 0x0080, 7
_PPTP = 1
_ERSPAN_SESSION, _ERSPAN_BYTES, _ERSPAN3_BYTES, _ERSPAN3_FLAGS, _ERSPAN3_MORE_BYTES = 2, 8, 12, 10, 8
_ERSPAN3_TYPE, _ERSPAN3_TYPE_BITS, _ERSPAN3_IP, _SESSION_BITS = 10, 0x1F, 2, 0x3FF
_VXLAN_BYTES, _VXLAN_HAS_VNI, _VXLAN_HAS_TYPE, _VXLAN_TYPE, _VXLAN_ETHERNET = 8, 8, 4, 3, 3
_VXLAN_TYPES_OF_IP = (1, 2)
_GENEVE_BYTES, _GENEVE_TYPE = 8, 2
_VNI = 4  # of VXLAN and Geneve
_GTP_BYTES, _GTP_TEID, _GTP_OPTIONAL, _GTP_OPTIONAL_BYTES, _GTP_EXTENDED = 8, 4, 7, 4, 4
_GTP_PDU, _GTP_VERSION_AND_PRIME, _GTP_MAX_EXTENSIONS = 255, 0x30, 8
_LABEL_BYTES, _LABEL_BOTTOM, _LABEL_SHIFT = 4, 1 << 8, 12
_CONTROL_WORD_BYTES = 4
_NIBBLE_CONTROL, _NIBBLE_CHANNEL, _NIBBLE_IP, _NIBBLE_IP6 = 0, 1, 4, 6  # RFC 4385: control word, associated channel header


@kernel
def _is_tag(ethertype: int) -> bool:
    return ethertype in (ETH_VLAN, ETH_QINQ, ETH_QINQ_OLD)


@kernel
def _found(kind: int, header: int) -> int:
    return kind | header << KIND_BITS


@kernel
def _gre_at(at: int, frame: int, caplen: int) -> int:
    if caplen < at + _GRE_BYTES:
        return UNKNOWN
    if load_be16(frame + at) & _GRE_VERSION > _PPTP:
        return NOT_THERE
    type_ = load_be16(frame + at + _GRE_TYPE)
    return _found(ERSPAN if type_ in (_ETH_ERSPAN, _ETH_ERSPAN3) else GRE, at)


@kernel
def _udp_at(l4: int, frame: int, caplen: int) -> int:
    if caplen < l4 + _UDP_PORT + 2:
        return UNKNOWN
    port, at = load_be16(frame + l4 + _UDP_PORT), l4 + _UDP_BYTES
    if port not in (_PORT_VXLAN, _PORT_VXLAN_GPE, _PORT_GENEVE, _PORT_GTP, _PORT_GRE, _PORT_MPLS):
        return NOT_THERE
    if caplen < at + 2:
        return UNKNOWN
    flags = load8(frame + at)
    if port == _PORT_GRE:
        return _gre_at(at, frame, caplen)
    if port == _PORT_MPLS:
        return _found(MPLS_TUNNEL, at)
    if port == _PORT_VXLAN or port == _PORT_VXLAN_GPE:  # noqa: SIM109 - two compares
        return _found(VXLAN, at) if flags & _VXLAN_HAS_VNI else NOT_THERE
    if port == _PORT_GENEVE:
        return _found(GENEVE_TUNNEL, at) if flags >> 6 == 0 else NOT_THERE
    return _found(GTP, at) if flags & 0xF0 == _GTP_VERSION_AND_PRIME and load8(frame + at + 1) == _GTP_PDU else NOT_THERE


@kernel
def tunnel_of(ethertype: int, l3: int, frame: int, caplen: int) -> int:
    for _ in range(MAX_TAGS):
        if _is_tag(ethertype):
            if caplen < l3 + TAG_BYTES:
                return UNKNOWN
            ethertype = load_be16(frame + l3 + 2)
            l3 += TAG_BYTES
    if ethertype in (ETH_MPLS, ETH_MPLS_MULTICAST):
        return _found(MPLS_TUNNEL, l3)
    if ethertype not in (ETH_IP, ETH_IP6):
        return NOT_THERE
    found = transport_of(frame, caplen, l3, 1 if ethertype == ETH_IP6 else 0)
    if found < 0:
        return found
    protocol, l4 = protocol_in(found), offset_in(found)
    if found & HIDDEN_BIT:
        may_be = protocol in (_IN_IP, _IN_IP6, _IN_GRE, UDP) or (ethertype == ETH_IP6 and is_extension(protocol))
        return HIDDEN if may_be else NOT_THERE
    if protocol == _IN_GRE:
        return _gre_at(l4, frame, caplen)
    if protocol == UDP:
        return _udp_at(l4, frame, caplen)
    return _found(IPIP, l4) if protocol in (_IN_IP, _IN_IP6) else NOT_THERE


# ---- ids


@kernel
def _gre_bytes(flags: int) -> int:
    n_bytes = _GRE_BYTES
    if flags & (_GRE_CHECKSUM | _GRE_ROUTING):
        n_bytes += 4
    if flags & _GRE_KEY:
        n_bytes += 4
    if flags & _GRE_SEQUENCE:
        n_bytes += 4
    return n_bytes + 4 if flags & _GRE_VERSION == _PPTP and flags & _GRE_ACKNOWLEDGES else n_bytes


@kernel
def _word(at: int, frame: int, caplen: int) -> int:
    return load_be32(frame + at) if caplen >= at + 4 else ID_CUT


@kernel
def id_of(kind: int, at: int, frame: int, caplen: int) -> int:
    """Not of MPLS, which has several. NO_ID, ID_CUT. `kind` GRE also asks for the key of ERSPAN's GRE."""
    if kind == GTP:
        return _word(at + _GTP_TEID, frame, caplen)
    if kind == VXLAN or kind == GENEVE_TUNNEL:  # noqa: SIM109 - two compares
        word = _word(at + _VNI, frame, caplen)
        return word if word < 0 else word >> 8
    if kind != GRE and kind != ERSPAN:
        return NO_ID
    flags = load_be16(frame + at)
    if kind == GRE:
        if flags & _GRE_KEY == 0 or load_be16(frame + at + _GRE_TYPE) == ETH_PPP:  # PPTP has a length and a call there
            return NO_ID
        return _word(at + _GRE_BYTES + (4 if flags & (_GRE_CHECKSUM | _GRE_ROUTING) else 0), frame, caplen)
    if load_be16(frame + at + _GRE_TYPE) == _ETH_ERSPAN and flags & _GRE_SEQUENCE == 0:
        return NO_ID
    session = at + _gre_bytes(flags) + _ERSPAN_SESSION
    return load_be16(frame + session) & _SESSION_BITS if caplen >= session + 2 else ID_CUT


@kernel
def label_of(at: int, n: int, frame: int, caplen: int) -> int:
    """The n-th label of the stack that begins at `at`. NO_ID: it has fewer; ID_CUT."""
    if n >= MAX_LABELS or (n > 0 and load_be32(frame + at + _LABEL_BYTES * (n - 1)) & _LABEL_BOTTOM):
        return NO_ID
    word = _word(at + _LABEL_BYTES * n, frame, caplen)
    return word if word < 0 else word >> _LABEL_SHIFT


# ---- what is inside


@kernel
def _in_gre(at: int, frame: int) -> int:
    flags, type_ = load_be16(frame + at), load_be16(frame + at + _GRE_TYPE)
    inside = at + _gre_bytes(flags)
    if flags & _GRE_ROUTING:
        return NOT_THERE  # RFC 1701; nobody says how long its routing is
    if type_ == _ETH_ETHERNET:
        return ethernet_place(inside)
    if type_ == ETH_IP or type_ == ETH_IP6:  # noqa: SIM109 - two compares
        return bare_place(inside)
    return pack_place(NO_LINK, at + _GRE_TYPE, inside)


@kernel
def _in_erspan(at: int, frame: int, caplen: int) -> int:
    flags, header = load_be16(frame + at), at + _gre_bytes(load_be16(frame + at))
    if load_be16(frame + at + _GRE_TYPE) == _ETH_ERSPAN:
        return ethernet_place(header + _ERSPAN_BYTES if flags & _GRE_SEQUENCE else header)
    if caplen < header + _ERSPAN3_BYTES:
        return UNKNOWN
    flags = load_be16(frame + header + _ERSPAN3_FLAGS)
    inside = header + _ERSPAN3_BYTES + (_ERSPAN3_MORE_BYTES if flags & 1 else 0)
    return bare_place(inside) if flags >> _ERSPAN3_TYPE & _ERSPAN3_TYPE_BITS == _ERSPAN3_IP else ethernet_place(inside)


@kernel
def _in_vxlan(at: int, frame: int, caplen: int) -> int:
    if caplen < at + _VXLAN_TYPE + 1:
        return UNKNOWN
    is_gpe = load_be16(frame + at - _UDP_BYTES + _UDP_PORT) == _PORT_VXLAN_GPE and load8(frame + at) & _VXLAN_HAS_TYPE != 0
    type_ = load8(frame + at + _VXLAN_TYPE)
    if not is_gpe or type_ == _VXLAN_ETHERNET:
        return ethernet_place(at + _VXLAN_BYTES)
    return bare_place(at + _VXLAN_BYTES) if type_ in _VXLAN_TYPES_OF_IP else NOT_THERE


@kernel
def _in_geneve(at: int, frame: int, caplen: int) -> int:
    if caplen < at + _GENEVE_TYPE + 2:
        return UNKNOWN
    inside, type_ = at + _GENEVE_BYTES + 4 * (load8(frame + at) & 0x3F), load_be16(frame + at + _GENEVE_TYPE)
    if type_ == _ETH_ETHERNET:
        return ethernet_place(inside)
    if type_ == ETH_IP or type_ == ETH_IP6:  # noqa: SIM109 - two compares
        return bare_place(inside)
    return pack_place(NO_LINK, at + _GENEVE_TYPE, inside)


@kernel
def _in_gtp(at: int, frame: int, caplen: int) -> int:
    flags, inside = load8(frame + at), at + _GTP_BYTES
    if flags & _GTP_OPTIONAL == 0:
        return bare_place(inside)
    inside += _GTP_OPTIONAL_BYTES
    if caplen < inside:
        return UNKNOWN
    type_ = load8(frame + inside - 1) if flags & _GTP_EXTENDED else 0
    for _ in range(_GTP_MAX_EXTENSIONS):
        if type_ == 0:
            return bare_place(inside)
        if caplen <= inside:
            return UNKNOWN
        n_bytes = 4 * load8(frame + inside)
        if n_bytes == 0 or caplen < inside + n_bytes:
            return UNKNOWN
        type_ = load8(frame + inside + n_bytes - 1)
        inside += n_bytes
    return UNKNOWN


@kernel
def _is_known_type(ethertype: int) -> bool:
    return ethertype in (ETH_IP, ETH_IP6, ETH_ARP, ETH_VLAN, ETH_QINQ, ETH_QINQ_OLD, ETH_MPLS, ETH_MPLS_MULTICAST)


@kernel
def _in_mpls(at: int, frame: int, caplen: int) -> int:
    for _ in range(MAX_LABELS):
        if caplen < at + _LABEL_BYTES:
            return UNKNOWN
        at += _LABEL_BYTES
        if load_be32(frame + at - _LABEL_BYTES) & _LABEL_BOTTOM:
            if caplen <= at:
                return UNKNOWN
            nibble = load8(frame + at) >> 4
            if nibble == _NIBBLE_IP or nibble == _NIBBLE_IP6:  # noqa: SIM109 - two compares
                return bare_place(at)
            if nibble == _NIBBLE_CHANNEL:
                return NOT_THERE
            if nibble == _NIBBLE_CONTROL:  # or a MAC address that begins with 0
                if caplen < at + ETHERTYPE + 2:
                    return UNKNOWN
                if not _is_known_type(load_be16(frame + at + ETHERTYPE)):
                    at += _CONTROL_WORD_BYTES
            return ethernet_place(at)
    return UNKNOWN


@kernel
def carried_by(kind: int, at: int, frame: int, caplen: int) -> int:
    """`kind`, `at`: from `tunnel_of`."""
    if kind == GRE:
        return _in_gre(at, frame)
    if kind == ERSPAN:
        return _in_erspan(at, frame, caplen)
    if kind == VXLAN:
        return _in_vxlan(at, frame, caplen)
    if kind == GENEVE_TUNNEL:
        return _in_geneve(at, frame, caplen)
    if kind == GTP:
        return _in_gtp(at, frame, caplen)
    return _in_mpls(at, frame, caplen) if kind == MPLS_TUNNEL else bare_place(at)
