"""Which headers a packet has, from the fields that are given; and which fields contradict each other.

| of these one at most | |
|---|---|
| arp, ip, ipv6 | what the frame carries |
| tcp, udp, sctp, icmp, icmpv6 | what the packet carries |
| gre, vxlan, geneve, gtp | what the packet inside is carried in; without, ``inner`` follows the IP header or the labels |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from broker.config.document import Path
from broker.config.packet.fields import FIELDS, GENERAL, Fields
from broker.config.scalars import Wrong

NETWORK, TRANSPORT, TUNNEL = ("arp", "ip", "ipv6"), ("tcp", "udp", "sctp", "icmp", "icmpv6"), ("gre", "vxlan", "geneve", "gtp")
LINK = ("eth", "vlan", "pppoe")

ETHERTYPES = {"arp": 0x0806, "ip": 0x0800, "ipv6": 0x86DD}
RARP, PPPOE_SESSION, MPLS, MPLS_MULTICAST, BRIDGED = 0x8035, 0x8864, 0x8847, 0x8848, 0x6558
ERSPAN = {0: 0x88BE, 1: 0x88BE, 2: 0x22EB}
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "icmpv6": 58, "sctp": 132}
IP_IN_IP = {"ip": 4, "ipv6": 41}
UDP_PORTS = {"gre": 4754, "vxlan": 4789, "geneve": 6081, "gtp": 2152}  # RFC 8086, 7348, 8926, 3GPP TS 29.281

_NEEDS = {"vxlan": "udp", "geneve": "udp", "gtp": "udp"}
_BY_NUMBER = {number: layer for layer, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Stack:
    """Empty: there is none. `later`: a fragment that is not the first, with no header behind that of IP."""

    network: str
    transport: str
    tunnel: str
    later: bool
    bridged: bool  # the packet inside is an Ethernet frame


def stack_of(fields: Fields) -> Stack:
    """As far as the fields do not contradict each other, which `contradictions` tells."""
    tunnel = "gre" if fields.first_of("erspan") else _given(fields, TUNNEL)
    transport = _given(fields, TRANSPORT) or _NEEDS.get(tunnel, "")
    network = _given(fields, NETWORK) or _network(fields, transport or tunnel)
    later = bool({"ip": fields["ip.frag_offset"], "ipv6": fields["ipv6.fraghdr.offset"]}.get(network))
    if not transport and not tunnel and not later and fields.inner is None:
        implied = _BY_NUMBER.get(_protocol(fields, network), "")
        tunnel, transport = ("gre", "") if implied == "gre" else ("", implied if _carries(network, implied) else "")
    return Stack(network, transport, tunnel, later, _bridged(fields, tunnel))


def _given(fields: Fields, group: tuple[str, ...]) -> str:
    return next((layer for layer in group if fields.first_of(layer)), "")


def _network(fields: Fields, carried: str) -> str:
    implied = {number: layer for layer, number in ETHERTYPES.items()} | {RARP: "arp"}
    if "eth.type" in fields and (network := implied.get(fields["eth.type"], "")):
        return network
    alone = fields.first_of("mpls") and fields.inner is None and "payload" not in fields
    return "ipv6" if carried == "icmpv6" else "ip" if carried or alone or fields.first_of("pppoe") else ""


def _protocol(fields: Fields, network: str) -> int:
    found: int = fields.given.get({"ip": "ip.proto", "ipv6": "ipv6.nxt"}.get(network, ""), -1)
    return found


def _carries(network: str, transport: str) -> bool:
    return {"icmp": "ip", "icmpv6": "ipv6"}.get(transport, network) == network


def _bridged(fields: Fields, tunnel: str) -> bool:
    """VXLAN and ERSPAN always carry frames, Geneve unless it says otherwise; the others if the packet inside has an Ethernet header."""
    if tunnel == "vxlan" or fields.first_of("erspan"):
        return True
    if tunnel == "geneve":
        return fields["geneve.proto_type"] in (None, BRIDGED)
    if fields.inner is None:
        return tunnel == "gre" and fields["gre.proto"] == BRIDGED
    return fields["gre.proto"] == BRIDGED or any(map(fields.inner.first_of, LINK))


def contradictions(fields: Fields, path: Path = ()) -> Iterator[Wrong]:
    """Told by the names of the fields alone, so together with wrong values."""
    stack = stack_of(fields)

    def at(*layers: str) -> Path:
        """Of the first of these that was written."""
        return (*path, next((name for name in map(fields.first_of, layers) if name), ""))

    if "hex" in fields:
        for name, written in fields.names.items():
            if name not in GENERAL:
                yield Wrong("hex is the whole frame, expected no other fields", (*path, written), key=True)
        if fields.inner is not None:
            yield Wrong("hex is the whole frame, expected no other fields", (*path, "inner"), key=True)
        return
    for group in (NETWORK, TRANSPORT, TUNNEL):
        first, *others = [layer for layer in group if fields.first_of(layer)] or [""]
        for other in others:
            yield Wrong(f"{first} and {other} in one packet, expected one of them (another packet inside is 'inner')", at(other), key=True)
    if fields.first_of("erspan") and (other := _given(fields, TUNNEL)) not in ("", "gre"):
        yield Wrong(f"ERSPAN is carried in GRE, and there is {other}", at("erspan"), key=True)
    if stack.tunnel and stack.transport not in ("", "udp"):
        yield Wrong(f"{stack.tunnel} is not carried in {stack.transport}", at(stack.tunnel, "erspan"), key=True)
    if stack.network in ("ip", "ipv6") and not _carries(stack.network, stack.transport):
        expected = "icmp" if stack.network == "ip" else "icmpv6"
        yield Wrong(f"{stack.transport} in {stack.network}, expected {expected}", at(stack.transport), key=True)
    if stack.network == "arp":
        for layer in (*TRANSPORT, *TUNNEL, "erspan", "pppoe"):
            if fields.first_of(layer):
                yield Wrong(f"{layer} and arp in one packet", at(layer), key=True)
    if stack.later:
        for layer in (*TRANSPORT, *TUNNEL, "erspan"):
            if fields.first_of(layer):
                field = "ip.proto" if stack.network == "ip" else "ipv6.nxt"
                text = f"a fragment that is not the first has no header of {layer}; say {field}: {layer} for what it is part of"
                yield Wrong(text, at(layer), key=True)
    yield from _lists(fields, path)
    yield from _numbers(fields, stack, path)
    yield from _inside(fields, stack, path)


def _lists(fields: Fields, path: Path) -> Iterator[Wrong]:
    """For each tag or label one entry; a single one is for all of them."""
    for layer in ("vlan", "mpls"):
        lists = [name for name in fields.given if name.startswith(f"{layer}.")]
        longest = max(lists, key=lambda name: len(fields[name]), default="")
        for name in lists:
            if len(fields[name]) not in (1, len(fields[longest])):
                text = (
                    f"{len(fields[name])} entries, but {fields.names[longest]} has {len(fields[longest])}; expected as many, or one for all"
                )
                yield Wrong(text, (*path, fields.names[name]))


def _numbers(fields: Fields, stack: Stack, path: Path) -> Iterator[Wrong]:
    """Types and protocols that are given, and that the headers say otherwise."""
    carried = {"ip": "ip.proto", "ipv6": "ipv6.nxt"}.get(stack.network, "")
    protocol = inferred_protocol(fields, stack)
    if carried in fields and protocol is not None and fields[carried] != protocol:
        yield Wrong(f"{fields[carried]}, but the other fields make it {protocol}; leave it out", (*path, fields.names[carried]))
    expected = inferred_ethertype(fields, stack)
    given = fields.given.get("eth.type")
    also = {0x0806: RARP, MPLS: MPLS_MULTICAST}.get(expected or 0)
    if given is not None and expected is not None and given not in (expected, also):
        yield Wrong(f"0x{given:04x}, but the other fields make it 0x{expected:04x}; leave it out", (*path, fields.names["eth.type"]))


def _inside(fields: Fields, stack: Stack, path: Path) -> Iterator[Wrong]:
    if fields.inner is None:
        return
    at = (*path, "inner")
    if "payload" in fields:
        yield Wrong("'payload' and 'inner' in one packet, expected one of them", (*path, "payload"), key=True)
    if stack.later:
        yield Wrong("a fragment that is not the first has no packet inside", at, key=True)
    elif stack.network == "arp" or (stack.transport and not stack.tunnel):
        yield Wrong(f"no packet is inside {stack.transport or 'arp'} without a tunnel such as vxlan or gre", at, key=True)
    elif not stack.network and not fields.first_of("mpls"):
        yield Wrong("nothing that a packet is inside of, expected a tunnel such as gre, vxlan, ip or mpls", at, key=True)
    inner = stack_of(fields.inner)
    if not stack.bridged and not (inner.network or fields.inner.first_of("mpls")):
        yield Wrong("expected an IP packet inside, or an Ethernet frame with fields of eth", at)
    in_ip = stack.tunnel == "gtp" or (not stack.tunnel and stack.network in ("ip", "ipv6"))
    if in_ip and (stack.bridged or fields.inner.first_of("mpls") or inner.network == "arp"):
        yield Wrong(f"expected an IP packet inside {stack.tunnel or stack.network}, without Ethernet, labels and arp", at)
    yield from _inner_type(fields, stack, path)
    yield from contradictions(fields.inner, at)


def _inner_type(fields: Fields, stack: Stack, path: Path) -> Iterator[Wrong]:
    name = {"gre": "gre.proto", "geneve": "geneve.proto_type"}.get(stack.tunnel, "")
    if name not in fields or fields.inner is None:
        return
    bare = inferred_ethertype(fields.inner, stack_of(fields.inner))
    framed = BRIDGED if any(map(fields.inner.first_of, LINK)) else bare
    expected = (ERSPAN[fields["erspan.version"]],) if fields.first_of("erspan") else (BRIDGED, framed)
    if fields[name] not in expected:
        yield Wrong(f"0x{fields[name]:04x}, but what is inside makes it 0x{expected[-1] or BRIDGED:04x}; leave it out", (*path, name))


def inferred_protocol(fields: Fields, stack: Stack) -> int | None:
    """What the IP header says that it carries; None: whatever is wanted."""
    if stack.later:
        return None
    if stack.transport or stack.tunnel:
        return PROTOCOLS[stack.transport or stack.tunnel]
    return IP_IN_IP.get(stack_of(fields.inner).network) if fields.inner is not None else None


def inferred_ethertype(fields: Fields, stack: Stack) -> int | None:
    """What stands before the labels or the network header; None: whatever is wanted."""
    if fields.first_of("pppoe"):
        return PPPOE_SESSION
    return MPLS if fields.first_of("mpls") else ETHERTYPES.get(stack.network)


assert all(layer in FIELDS for layer in (*NETWORK, *TRANSPORT, *TUNNEL)), "each header can be asked for by its name alone"
