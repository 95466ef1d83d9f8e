"""Fields put together, from the innermost header outwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.config.document import dotted
from broker.config.packet import headers
from broker.config.packet.fields import Fields, read_fields
from broker.config.packet.headers import Ends
from broker.config.packet.stack import (
    BRIDGED,
    ERSPAN,
    ETHERTYPES,
    UDP_PORTS,
    Stack,
    contradictions,
    inferred_ethertype,
    inferred_protocol,
    stack_of,
)
from broker.config.scalars import Wrong
from broker.core.errors import ConfigErrors

EXPERIMENT = 0x88B5  # an ethertype that nobody is registered for (IEEE 802)
_PPP = {0x0800: 0x0021, 0x86DD: 0x0057, 0x8847: 0x0281}
_EMPTY = Fields()


@dataclass(frozen=True, slots=True)
class Packet:
    frame: bytes  # what was captured of it
    wirelen: int
    input: str  # empty: not said


def mistakes(written: Any) -> list[Wrong]:
    """All that is wrong with the fields of a packet; `build` takes those with which nothing is."""
    fields, wrong = read_fields(written)
    if fields.given or fields.inner:
        wrong += contradictions(fields)
    return wrong or _sizes(fields)


def build(written: Mapping[str, Any]) -> Packet:
    """ConfigErrors with a line for each field that is wrong; its path is the name of the field."""
    if wrong := mistakes(written):
        raise ConfigErrors((None, dotted(w.at[:-1] if w.key else w.at), str(w)) for w in wrong)
    fields, _ = read_fields(written)
    frame = _frame(fields)
    frame = frame.ljust(fields["length"] or 0, b"\0")
    cut = fields["cut"]
    return Packet(frame if cut is None else frame[:cut], len(frame), fields["input"])


def _sizes(fields: Fields) -> list[Wrong]:
    length = len(_frame(fields))
    found = []
    if "length" in fields and fields["length"] < length:
        found.append(Wrong(f"{fields['length']}, but the packet takes {length} bytes", ("length",)))
    length = max(length, fields["length"] or 0)
    if "cut" in fields and fields["cut"] > length:
        found.append(Wrong(f"{fields['cut']}, but the packet has {length} bytes; give its 'length' too", ("cut",)))
    return found


def _frame(fields: Fields) -> bytes:
    if "hex" in fields:
        whole: bytes = fields["hex"]
        return whole
    stack = stack_of(fields)
    ethertype, packet = _packet(fields, stack)
    if fields.first_of("pppoe"):
        ethertype, packet = inferred_ethertype(fields, stack) or 0, headers.pppoe(fields, _PPP.get(ethertype, 0x0021), packet)
    given = fields["eth.type"]
    destination = fields["eth.dst"] or headers.station(_receiver(fields, stack))
    return headers.ethernet(fields, destination, ethertype if given is None else given, packet)


def _receiver(fields: Fields, stack: Stack) -> bytes:
    """What the Ethernet address is told from. A question of ARP goes to everybody."""
    if stack.network == "arp":
        return b"\xff" * 4 if fields["arp.opcode"] == 1 else b""
    address: bytes = fields[f"{stack.network}.dst"] if stack.network else b""
    return address


def _packet(fields: Fields, stack: Stack) -> tuple[int, bytes]:
    """Ethertype and bytes of what the frame carries: labels, network header and all behind it."""
    ethertype = ETHERTYPES.get(stack.network, EXPERIMENT)
    if stack.network == "arp":
        packet = headers.arp(fields) + fields["payload"]
    elif stack.network == "ip":
        packet = headers.ipv4(fields, _protocol(fields, stack, "ip.proto"), _segment(fields, stack))
    elif stack.network == "ipv6":
        packet = headers.ipv6(fields, _protocol(fields, stack, "ipv6.nxt"), _segment(fields, stack))
    else:
        packet = _carried(fields, stack)[1]
    if fields.first_of("mpls"):
        ethertype, packet = 0x8847, headers.labels(fields, packet)
    return ethertype, packet


def _protocol(fields: Fields, stack: Stack, name: str) -> int:
    inferred = inferred_protocol(fields, stack)
    found: int = fields[name] if inferred is None else inferred
    return found


def _segment(fields: Fields, stack: Stack) -> bytes:
    """What the network header carries."""
    ends: Ends = fields[f"{stack.network}.src"], fields[f"{stack.network}.dst"]
    payload = _tunnel(fields, stack)
    if stack.transport == "tcp":
        return headers.tcp(fields, ends, payload)
    if stack.transport == "udp":
        return headers.udp(fields, ends, payload, UDP_PORTS.get(stack.tunnel, 49_153))
    if stack.transport == "sctp":
        return headers.sctp(fields, payload)
    if stack.transport == "icmp":
        return headers.icmp(fields, payload)
    return headers.icmpv6(fields, ends, payload) if stack.transport == "icmpv6" else payload


def _tunnel(fields: Fields, stack: Stack) -> bytes:
    ethertype, payload = _carried(fields, stack)
    if stack.tunnel == "gre":
        if not fields.first_of("erspan"):
            given = fields["gre.proto"]
            return headers.gre(fields, ethertype if given is None else given, payload, None)
        version = fields["erspan.version"]
        return headers.gre(fields, ERSPAN[version], headers.erspan(fields, payload), 0 if version else None)
    if stack.tunnel == "geneve":
        given = fields["geneve.proto_type"]
        return headers.geneve(fields, ethertype if given is None else given, payload)
    if stack.tunnel == "vxlan":
        return headers.vxlan(fields, payload)
    return headers.gtp(fields, payload) if stack.tunnel == "gtp" else payload


def _carried(fields: Fields, stack: Stack) -> tuple[int, bytes]:
    """Ethertype and bytes of the packet inside, or the payload."""
    inner = fields.inner
    if inner is None:
        return BRIDGED if stack.bridged else 0x0800, fields["payload"]
    return (BRIDGED, _frame(inner)) if stack.bridged else _packet(inner, stack_of(inner))
