"""What a tool must not see is overwritten, in a copy of the packet; card numbers: cards.py.

| kernel | overwrites | returns |
|---|---|---|
| mask_payload | all behind the transport header | bytes overwritten |
| mask_range | bytes at an offset from where the frame, its network or transport header or its payload begins | bytes overwritten |
| fix_checksums | those of the IPv4 header, TCP, UDP, ICMP and ICMPv6, so that they fit what is there now | FIXED_* bits |

Where a mask begins is found in the packet, and where it cannot be found more is masked, never less:

| the packet | its payload begins |
|---|---|
| TCP, UDP, UDP-Lite, SCTP, ICMP, ICMPv6, whole or a first fragment that shows its header | behind that header (stages/wire/transport.py) |
| of another protocol; a later fragment; with a header that is cut or longer than its packet | behind IP, without the IPv6 chain |
| with an IP header that is cut, or of another version than its ethertype says | behind the link-layer header, tags and labels |
| neither IPv4 nor IPv6 | there, too |
| cut in the tags, or with labels that do not say what they carry | behind the first 14 bytes |

All that a tunnel carries is payload, and so is the padding of short frames.
"""

from __future__ import annotations

from stages.encapsulate.checksum import is_routed, sum_pseudo, sum_words, transport_checksum, write_ip_checksum
from stages.encapsulate.layers import NETWORK_AT, network_of
from stages.jit import kernel
from stages.memory import load8, load_be16, store8, store64, store_be16
from stages.wire.headers import (
    ETH_IP,
    ETH_IP6,
    ETHERNET_BYTES,
    ICMP,
    ICMP6,
    IP6_BYTES,
    IP_BYTES,
    TCP,
    UDP,
)
from stages.wire.transport import HIDDEN_BIT, MORE_BIT, end_of_ip, offset_in, payload_of, protocol_in, transport_of

FROM_FRAME, FROM_L3, FROM_L4, FROM_PAYLOAD = range(4)
FIXED_IP, FIXED_L4 = 1, 2

_EVERY_BYTE = 0x0101_0101_0101_0101
_NOT_IP, _NOT_FOUND = -1, -1
_UDP_LENGTH, _UDP_BYTES = 4, 8
_TCP_CHECKSUM, _UDP_CHECKSUM, _ICMP_CHECKSUM = 16, 6, 2


@kernel
def fill(at: int, n_bytes: int, byte: int) -> None:
    end, word = at + n_bytes, byte * _EVERY_BYTE
    while at + 8 <= end:
        store64(at, word)
        at += 8
    while at < end:
        store8(at, byte)
        at += 1


@kernel
def _ip_of(packet: int, caplen: int, network: int) -> int:
    """1: IPv6, 0: IPv4, with its whole fixed header; _NOT_IP."""
    type_, l3 = network & (1 << NETWORK_AT) - 1, network >> NETWORK_AT
    if type_ == ETH_IP6 and caplen >= l3 + IP6_BYTES:
        return 1 if load8(packet + l3) >> 4 == 6 else _NOT_IP
    if type_ == ETH_IP and caplen >= l3 + IP_BYTES:
        return 0 if load8(packet + l3) >> 4 == 4 else _NOT_IP
    return _NOT_IP


@kernel
def _behind_ip(packet: int, limit: int, l3: int, is_ip6: int) -> int:
    """Behind the IP header, which does not end behind `limit`; without its options or extension headers where they are not believed."""
    if is_ip6:
        return l3 + IP6_BYTES
    n_bytes = 4 * (load8(packet + l3) & 15)
    return l3 + (n_bytes if n_bytes >= IP_BYTES and l3 + n_bytes <= limit else IP_BYTES)


@kernel
def payload_start(packet: int, caplen: int) -> int:
    """See the table above; at most `caplen`."""
    network = network_of(packet, caplen)
    if network < 0:
        return min(ETHERNET_BYTES, caplen)
    l3, is_ip6 = network >> NETWORK_AT, _ip_of(packet, caplen, network)
    if is_ip6 == _NOT_IP:
        return min(l3, caplen)
    limit, found = min(end_of_ip(packet, l3, is_ip6), caplen), payload_of(packet, caplen, l3, is_ip6)
    if found >= 0 and offset_in(found) <= limit:
        return offset_in(found)
    return _behind_ip(packet, limit, l3, is_ip6)


@kernel
def mask_payload(packet: int, caplen: int, byte: int) -> int:
    at = payload_start(packet, caplen)
    fill(packet + at, caplen - at, byte)
    return caplen - at


@kernel
def _base_of(packet: int, caplen: int, base: int) -> int:
    """Where FROM_* is, within `caplen`; _NOT_FOUND."""
    if base == FROM_FRAME:
        return 0
    network = network_of(packet, caplen)
    if network < 0:
        return _NOT_FOUND
    l3 = network >> NETWORK_AT
    if base == FROM_L3:
        return l3
    is_ip6 = _ip_of(packet, caplen, network)
    if is_ip6 == _NOT_IP:
        return _NOT_FOUND
    found = transport_of(packet, caplen, l3, is_ip6) if base == FROM_L4 else payload_of(packet, caplen, l3, is_ip6)
    if found < 0 or found & HIDDEN_BIT or offset_in(found) > min(end_of_ip(packet, l3, is_ip6), caplen):
        return _NOT_FOUND
    return offset_in(found)


@kernel
def mask_range(packet: int, caplen: int, base: int, offset: int, n_bytes: int, byte: int) -> int:
    """`base` is FROM_*; `offset` and `n_bytes` at least 0. Where the base is not to be found, all that `mask_payload` masks is masked."""
    at = _base_of(packet, caplen, base)
    if at == _NOT_FOUND:
        return mask_payload(packet, caplen, byte)
    first = min(at + offset, caplen)
    last = min(first + n_bytes, caplen)
    fill(packet + first, last - first, byte)
    return last - first


@kernel
def _checksum_at(protocol: int, is_ip6: int) -> int:
    """Within the transport header; 0: it has none of this kind."""
    if protocol == TCP:
        return _TCP_CHECKSUM
    if protocol == UDP:
        return _UDP_CHECKSUM
    return _ICMP_CHECKSUM if protocol == (ICMP6 if is_ip6 else ICMP) else 0


@kernel
def fix_checksums(packet: int, caplen: int) -> int:
    """Right whatever they were. The transport's stays as it was where it cannot be known: in fragments, in packets that are not wholly
    there or go where only a routing header names, in SCTP (CRC32c); and a UDP checksum of 0 (none, over IPv4) stays none."""
    network = network_of(packet, caplen)
    if network < 0:
        return 0
    l3, is_ip6 = network >> NETWORK_AT, _ip_of(packet, caplen, network)
    if is_ip6 == _NOT_IP:
        return 0
    fixed = 0
    if is_ip6 == 0:
        n_bytes = 4 * (load8(packet + l3) & 15)
        if n_bytes < IP_BYTES or caplen < l3 + n_bytes:
            return 0
        write_ip_checksum(packet + l3, n_bytes)
        fixed = FIXED_IP
    found, end = transport_of(packet, caplen, l3, is_ip6), end_of_ip(packet, l3, is_ip6)
    if found < 0 or found & (HIDDEN_BIT | MORE_BIT) or end > caplen:
        return fixed
    protocol, l4 = protocol_in(found), offset_in(found)
    at, n_bytes = _checksum_at(protocol, is_ip6), end - l4
    if at == 0 or n_bytes < at + 2 or (is_ip6 and is_routed(packet, l3, l4)):
        return fixed
    if protocol == UDP:
        stated = load_be16(packet + l4 + _UDP_LENGTH)
        if stated < _UDP_BYTES or stated > n_bytes or (is_ip6 == 0 and load_be16(packet + l4 + at) == 0):
            return fixed
        n_bytes = stated
    store_be16(packet + l4 + at, 0)
    total = sum_words(packet + l4, n_bytes)
    if protocol != ICMP:
        total += sum_pseudo(packet, l3, is_ip6, protocol, n_bytes)
    store_be16(packet + l4 + at, transport_checksum(protocol, total))
    return fixed | FIXED_L4
