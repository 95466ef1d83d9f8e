"""What an address, number, name or set means behind its qualifiers, and every combination that means nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from broker.config.policy import link, osi, tree
from broker.config.policy.errors import PolicyError
from broker.config.policy.fields import is_range
from broker.config.policy.lexer import Token
from broker.config.policy.names import ANY_PORT_PROTOCOL, ETHERTYPES, OSI_PROTOCOLS, PROTOCOLS, SCTP, SERVICES, TCP, UDP
from broker.config.policy.refused import REFUSED
from broker.config.policy.sets import Elements, merge, port
from broker.config.policy.tree import ARP, DESTINATION, IP, IP6, RARP, SOURCE, And, Node, Or

_KINDS4 = {"": IP | ARP | RARP, "ip": IP, "arp": ARP, "rarp": RARP}
_PORT_BITS = {"": ANY_PORT_PROTOCOL, "tcp": TCP, "udp": UDP, "sctp": SCTP}
_PROTO_KINDS = {"": IP | IP6, "ip": IP, "ip6": IP6}


@dataclass(frozen=True, slots=True)
class Qualifiers:
    """What stands before an id: ``tcp`` ``src`` ``port``. Empty: not said. `direction`: src, dst, or (either), and (both)."""

    protocol: str
    direction: str
    type: str
    at: int

    def shown(self) -> str:
        direction = {"or": "src or dst", "and": "src and dst"}.get(self.direction, self.direction)
        return " ".join(word for word in (self.protocol, direction, self.type) if word)


def sided(direction: str, test: Callable[[int], Node]) -> Node:
    """Source before destination, as libpcap reads them."""
    if direction == "src":
        return test(SOURCE)
    if direction == "dst":
        return test(DESTINATION)
    pair = (test(SOURCE), test(DESTINATION))
    return And(pair) if direction == "and" else Or(pair)


@dataclass(frozen=True, slots=True)
class Ids:
    sets: Mapping[str, Elements]

    def node(self, token: Token, second: Token | None, q: Qualifiers, layer: tree.Layer) -> Node:
        """`second`: the length behind ``/`` or the mask."""
        if q.type in ("port", "portrange"):
            return self.ports([(token, second)], q, layer)
        if q.type in ("proto", "protochain"):
            return self.proto(token, second, q, layer)
        if q.protocol == "ether":
            return self.ether(token, second, q, layer)
        if q.protocol == "decnet":
            return self.decnet(token, second, q, layer)
        if q.protocol not in ("", "ip", "ip6", "arp", "rarp"):
            raise PolicyError(f"'{q.protocol}' has no {q.type or 'host'}: write '{q.protocol} and {_without(q)} ...'", q.at)
        if token.kind == "set":
            return self.addresses([(token, second)], q, layer)
        if token.kind == "name":
            raise PolicyError(f"unknown name '{token.text}': {REFUSED['name']}: write the address", token.at)
        if token.kind == "mac":
            raise PolicyError(f"'{token.text}' is an Ethernet address: write 'ether host'", token.at)
        if token.kind == "address6":
            return self.address6(token, second, q, layer)
        return self.address4(token, second, q, layer)

    def several(self, ids: list[tuple[Token, Token | None]], q: Qualifiers, layer: tree.Layer) -> Node:
        """What stands in braces, as if it were a named set."""
        if q.type in ("port", "portrange"):
            return self.ports(ids, Qualifiers(q.protocol, q.direction, "portrange", q.at), layer)
        if q.type in ("", "host", "net") and q.protocol in ("", "ip", "ip6", "arp", "rarp"):
            return self.addresses(ids, q, layer)
        nodes = tuple(self.node(token, second, q, layer) for token, second in ids)
        return nodes[0] if len(nodes) == 1 else Or(nodes)

    # ---- addresses

    def address4(self, token: Token, second: Token | None, q: Qualifiers, layer: tree.Layer) -> Node:
        if q.protocol == "ip6":
            raise PolicyError(f"'{token.text}' is an IPv4 address, but 'ip6' is asked for", token.at)
        if token.kind == "number":
            net, mask = _number_net(token, second, q)
        else:
            _check_address4(token)
            net, mask = token.value << (32 - token.bits), (0xFFFFFFFF << (32 - token.bits)) & 0xFFFFFFFF
        if second is not None:
            mask = _mask(second)
            if net & ~mask:
                raise PolicyError(f"'{token.text}' has bits set that the mask '{second.text}' leaves out", token.at)
            if q.type != "net":
                raise PolicyError(f"a mask makes a net: write '{_net_words(q)} {token.text}...'", token.at)
        kinds = _kinds4(q, layer)
        return sided(q.direction, lambda side: tree.Address4(layer, side, kinds, net, mask))

    def address6(self, token: Token, second: Token | None, q: Qualifiers, layer: tree.Layer) -> Node:
        if q.protocol not in ("", "ip6"):
            raise PolicyError(f"'{token.text}' is an IPv6 address, but '{q.protocol}' is asked for", token.at)
        prefix = 128
        if second is not None:
            prefix = second.value
            if prefix > 128:
                raise PolicyError(f"the length of an IPv6 net is at most 128, not {prefix}", second.at)
            if token.value & ((1 << (128 - prefix)) - 1):
                raise PolicyError(f"'{token.text}' has bits set behind its first {prefix}", token.at)
            if q.type != "net" and prefix != 128:
                raise PolicyError(f"a length makes a net: write '{_net_words(q)} {token.text}/{prefix}'", token.at)
        return sided(q.direction, lambda side: tree.Address6(layer, side, token.value, prefix))

    def address_set(self, token: Token, q: Qualifiers) -> Elements:
        elements = self.elements(token, "addresses", q)
        if q.type == "host" and elements.net:
            raise PolicyError(f"set '{token.text}' has the net {elements.net}: write '{_net_words(q)} ${token.text}'", token.at)
        if elements.ranges4 and q.protocol == "ip6":
            raise PolicyError(f"set '{token.text}' has IPv4 addresses, but 'ip6' is asked for", token.at)
        if elements.ranges6 and q.protocol not in ("", "ip6"):
            raise PolicyError(f"set '{token.text}' has IPv6 addresses, but '{q.protocol}' is asked for", token.at)
        return elements

    def addresses(self, ids: list[tuple[Token, Token | None]], q: Qualifiers, layer: tree.Layer) -> Node:
        """One test for all IPv4 addresses, one for all IPv6 addresses, and one for each mask with holes."""
        four: list[tuple[int, int]] = []
        six: list[tuple[int, int]] = []
        masked: list[tree.Address4] = []
        for token, second in ids:
            if token.kind == "set":
                elements = self.address_set(token, q)
                four += elements.ranges4
                six += elements.ranges6
                continue
            node = self.node(token, second, q, layer)
            match node.items[0] if isinstance(node, And | Or) else node:  # one side says it
                case tree.Address4() as found if is_range(found.mask):
                    four.append((found.net, found.net | ~found.mask & 0xFFFFFFFF))
                case tree.Address4() as found:
                    masked.append(found)
                case tree.Address6() as found:
                    six.append((found.net, found.net | (1 << 128 - found.prefix) - 1))
        parts: list[Node] = []
        if four:
            kinds, ranges4 = _kinds4(q, layer), merge(four)
            parts.append(sided(q.direction, lambda side: tree.Address4Set(layer, side, kinds, ranges4)))
        if six:
            ranges6 = merge(six)
            parts.append(sided(q.direction, lambda side: tree.Address6Set(layer, side, ranges6)))
        parts += [sided(q.direction, lambda side, m=m: replace(m, side=side)) for m in masked]  # type: ignore[misc]
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def elements(self, token: Token, wanted: str, q: Qualifiers) -> Elements:
        """The set, if all of it is of the wanted kind."""
        if token.text not in self.sets:
            known = ", ".join(sorted(self.sets)) or "there are none"
            raise PolicyError(f"unknown set '${token.text}' (sets: {known})", token.at)
        found = self.sets[token.text]
        others = [kind for kind in found.kinds if kind != wanted]
        if others:
            raise PolicyError(f"'{q.shown()}' takes {wanted}, but set '{token.text}' has {' and '.join(others)}", token.at)
        return found

    def ether(self, token: Token, second: Token | None, q: Qualifiers, layer: tree.Layer) -> Node:
        if q.type not in ("", "host"):
            raise PolicyError(f"'ether {q.type}' does not exist", q.at)
        if token.kind == "set":
            macs = self.elements(token, "Ethernet addresses", q).macs
            link.only_ethernet(layer, "Ethernet addresses", token.at)
            return Or(tuple(sided(q.direction, lambda side, m=m: link.mac(layer, side, m, token.at)) for m in macs))  # type: ignore[misc]
        if token.kind == "name":
            raise PolicyError(f"unknown name '{token.text}': {REFUSED['name']}: write the Ethernet address", token.at)
        if token.kind != "mac":
            raise PolicyError(f"'{token.text}' is not an Ethernet address", token.at)
        mask = link.ALL_48 if second is None else _mac_mask(second)
        if token.value & ~mask:
            raise PolicyError(f"'{token.text}' has bits set that the mask leaves out", token.at)
        return sided(q.direction, lambda side: link.mac(layer, side, token.value, token.at, mask))

    def decnet(self, token: Token, second: Token | None, q: Qualifiers, layer: tree.Layer) -> Node:
        if second is not None:
            raise PolicyError(REFUSED["decnet"], second.at)
        if token.kind == "number":
            _fits(token, 0xFFFF)
            address = token.value
        elif token.kind == "address4":
            address = osi.decnet_address(token.text, token.at)
        else:
            raise PolicyError(f"'{token.text}' is not a DECnet address ({REFUSED['name']}: write 'area.node')", token.at)
        return sided(q.direction, lambda side: osi.decnet(layer, side, address, token.at))

    # ---- ports and protocols

    def ports(self, ids: list[tuple[Token, Token | None]], q: Qualifiers, layer: tree.Layer) -> Node:
        """One test for all ports of the same protocols."""
        if q.protocol not in _PORT_BITS:
            raise PolicyError(f"'{q.protocol} {q.type}' does not exist: ports are tcp, udp or sctp", q.at)
        bits = _PORT_BITS[q.protocol]
        by_bits: dict[int, list[tuple[int, int]]] = {}
        for token, second in ids:
            if token.kind == "set":
                by_bits.setdefault(bits, []).extend(self.elements(token, "ports", q).ports)
            elif token.kind in ("number", "name") and second is None:
                first, last, known = self.one_port(token, q)
                if not bits & known:
                    words = {TCP: "tcp", UDP: "udp"}
                    raise PolicyError(f"'{token.text}' is a port of {words[known]}, not of {q.protocol}", token.at)
                by_bits.setdefault(bits & known, []).append((first, last))
            else:
                raise PolicyError(f"'{token.text}' is not a port", token.at)
        merged = [(those, merge(ranges)) for those, ranges in by_bits.items()]

        def test(side: int) -> Node:
            found = tuple(tree.Port(layer, side, those, ranges) for those, ranges in merged)
            return found[0] if len(found) == 1 else Or(found)

        return sided(q.direction, test)

    def one_port(self, token: Token, q: Qualifiers) -> tuple[int, int, int]:
        """First, last, and the protocols that the name is known for. Ends of a range are decimal, also with a 0 in front."""
        ends = token.text.split("-", 1) if q.type == "portrange" and token.kind == "name" else [token.text]
        try:
            if len(ends) == 1 and "-" in token.text and token.text not in SERVICES and token.text[0].isdigit():
                raise ValueError(f"'{token.text}' is a range: write 'portrange {token.text}'")
            if q.type == "portrange" and len(ends) == 1 and token.escaped and token.text.isdecimal():
                raise ValueError(f"'{token.text}' is a number: write it without the backslash")
            found = [port(end.lstrip("0") or "0" if end.isdecimal() and token.kind == "name" else end) for end in ends]
        except ValueError as error:
            raise PolicyError(str(error), token.at) from None
        (one, known), (two, known_two) = found[0], found[-1]
        return min(one, two), max(one, two), known if known == known_two else ANY_PORT_PROTOCOL

    def proto(self, token: Token, second: Token | None, q: Qualifiers, layer: tree.Layer) -> Node:
        if token.kind not in ("number", "name") or second is not None:
            raise PolicyError(f"'{token.text}' is not a protocol: expected a number or \\name", token.at)
        if q.type == "protochain":
            return self.protochain(token, q, layer)
        if q.protocol == "ether":
            return link.ether_type(layer, _value(token, ETHERTYPES, "ethertype", 0xFFFF), token.at)
        if q.protocol == "iso":
            return osi.iso(layer, _value(token, OSI_PROTOCOLS, "OSI protocol"), token.at)
        if q.protocol == "isis":
            return osi.isis(layer, _value(token, {}, "type of IS-IS packet"), token.at)
        if q.protocol not in _PROTO_KINDS:
            expected = "expected 'ip proto', 'ip6 proto', 'ether proto', 'iso proto', 'isis proto' or 'proto'"
            raise PolicyError(f"'{q.protocol} proto' does not exist: {expected}", q.at)
        return tree.Protocol(layer, _PROTO_KINDS[q.protocol], _value(token, PROTOCOLS, "protocol"))

    def protochain(self, token: Token, q: Qualifiers, layer: tree.Layer) -> Node:
        if q.protocol not in _PROTO_KINDS:
            raise PolicyError(f"'{q.protocol} protochain' does not exist: expected 'ip protochain', 'ip6 protochain' or 'protochain'", q.at)
        if tree.GENEVE in layer:
            raise PolicyError("'protochain' is not followed behind 'geneve'", q.at)
        value = _value(token, PROTOCOLS, "protocol")
        chains = [tree.ProtoChain(layer, kind, value) for kind in (IP, IP6) if _PROTO_KINDS[q.protocol] & kind]
        return chains[0] if len(chains) == 1 else Or(tuple(chains))


def _kinds4(q: Qualifiers, layer: tree.Layer) -> int:
    """Ethertypes with IPv4 addresses; behind labels only IP itself can be told."""
    if q.protocol in ("arp", "rarp"):
        link.protocol(layer, q.protocol, q.at)
    return IP if link.has_labels(layer) else _KINDS4[q.protocol]


def _value(token: Token, names: Mapping[str, int], what: str, top: int = 0xFF) -> int:
    if token.kind == "number":
        _fits(token, top)
        return token.value
    if token.text not in names:
        known = REFUSED["protocol name"] if names is PROTOCOLS else "names: " + (", ".join(names) or "none")
        raise PolicyError(f"unknown {what} '{token.text}' ({known}): write its number", token.at)
    return names[token.text]


def _fits(token: Token, top: int) -> None:
    if token.value > top:
        raise PolicyError(f"{token.text} is above {top}: {REFUSED['too large']}", token.at)


def _number_net(token: Token, second: Token | None, q: Qualifiers) -> tuple[int, int]:
    """``net 10`` is 10.0.0.0/8, ``host 10`` is 0.0.0.10: libpcap's rules for a bare number."""
    if second is not None:
        raise PolicyError(f"write the net as an address: '{token.text}.0.0.0/{second.text}'", token.at)
    value, mask = token.value, 0xFFFFFFFF
    if q.type == "net":
        while value and not value >> 24:
            value, mask = value << 8, mask << 8 & 0xFFFFFFFF
    return value, mask


def _check_address4(token: Token) -> None:
    if token.value < 0:
        raise PolicyError(f"'{token.text}' is not an IPv4 address: a part is above 255", token.at)


def _mask(second: Token) -> int:
    if second.kind == "address4":
        _check_address4(second)
        return second.value << (32 - second.bits)
    if second.value > 32:
        raise PolicyError(f"the length of an IPv4 net is at most 32, not {second.value}", second.at)
    return (0xFFFFFFFF << (32 - second.value)) & 0xFFFFFFFF


def _mac_mask(second: Token) -> int:
    """Written as an address, or as the number of its bits."""
    if second.kind == "mac":
        return second.value
    if second.value > 48:
        raise PolicyError(f"the length of an Ethernet mask is at most 48, not {second.value}", second.at)
    return link.ALL_48 & ~((1 << 48 - second.value) - 1)


def _without(q: Qualifiers) -> str:
    return Qualifiers("", q.direction, q.type or "host", 0).shown()


def _net_words(q: Qualifiers) -> str:
    return Qualifiers(q.protocol, q.direction, "net", 0).shown()
