"""From words to a tree: the grammar of pcap-filter(7), by recursive descent.

AND and OR bind equally and to the left; NOT binds tighter. An id that follows AND or OR without qualifiers takes those of the id before
it (``tcp port 80 or 443``). ``vlan`` moves everything right of it one tag deeper, whatever stands between: the meaning is libpcap's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.config.policy import tree
from broker.config.policy.errors import PolicyError
from broker.config.policy.ids import Ids, Qualifiers
from broker.config.policy.lexer import CONSTANT_BEGINNINGS, CONSTANTS, LATER, NEVER, Token, scan
from broker.config.policy.sets import Elements
from broker.config.policy.tree import IP, IP6, And, Node, Not, both, either

MAX_TAGS = 4
MAX_NESTING = 200

_ETHERTYPE = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806, "rarp": 0x8035}
_LLC = {"stp": (0x42, False), "netbeui": (0xF0F0, True), "iso": (0xFEFE, True)}
_DEC = {"decnet": 0x6003, "lat": 0x6004, "sca": 0x6007, "mopdl": 0x6001, "moprc": 0x6002}
_PROTOCOL = {
    "tcp": (IP | IP6, 6), "udp": (IP | IP6, 17), "sctp": (IP | IP6, 132), "icmp": (IP, 1), "igmp": (IP, 2), "igrp": (IP, 9),
    "pim": (IP | IP6, 103), "vrrp": (IP, 112), "ah": (IP | IP6, 51), "esp": (IP | IP6, 50), "icmp6": (IP6, 58),
}  # fmt: skip
_PROTOCOL_WORDS = frozenset((*_ETHERTYPE, *_LLC, *_DEC, *_PROTOCOL, "ether"))
_TYPES = frozenset(("host", "net", "port", "portrange"))
_RELATIONS = {">": ">", "<": "<", ">=": ">=", "<=": "<=", "=": "=", "!=": "!="}
_MIRRORED = {">": "<", "<": ">", ">=": "<=", "<=": ">=", "=": "=", "!=": "!="}
_IDS = frozenset(("number", "address4", "address6", "mac", "name", "set"))
_TOP = (1 << 32) - 1
A_TEST = "a test"


@dataclass(slots=True)
class Parser:
    """One expression, once: ``Parser(scan(text), ids).parse()``."""

    tokens: list[Token]
    ids: Ids
    at: int = 0
    layer: tree.Layer = ()  # of what stands from here on
    nesting: int = 0

    def parse(self) -> Node:
        if self.peek().kind == "end":
            return And(())
        node, _ = self.expression(None)
        if self.peek().kind != "end":
            raise self.unexpected("'and', 'or' or the end")
        return node

    def peek(self, ahead: int = 0) -> Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def next(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def is_word(self, *words: str) -> bool:
        token = self.peek()
        return token.kind == "word" and token.text in words

    def is_mark(self, *marks: str) -> bool:
        token = self.peek()
        return token.kind == "mark" and token.text in marks

    def unexpected(self, expected: str) -> PolicyError:
        token = self.peek()
        if token.kind == "bad":
            return PolicyError(token.text, token.at)
        if token.kind == "name" and not token.escaped:
            if token.text in NEVER:
                return PolicyError(f"'{token.text}' is not for this: {NEVER[token.text]}", token.at)
            if token.text in LATER or token.text in CONSTANTS or token.text.startswith(CONSTANT_BEGINNINGS):
                return PolicyError(f"'{token.text}' is not supported yet", token.at)
        if token.kind == "name" and expected == A_TEST:
            return PolicyError(f"unknown word '{token.text}' (names of hosts are not looked up: write the address)", token.at)
        if token.kind == "mark" and token.text == "[":
            return PolicyError("byte access ('proto[offset:size]') is not supported yet", token.at)
        if token.kind == "mark" and token.text in ("+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"):
            return PolicyError(f"unexpected '{token.text}': arithmetic is not supported yet; expected {expected}", token.at)
        return PolicyError(f"unexpected {token.shown()}, expected {expected}", token.at)

    def enter(self) -> None:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise PolicyError(f"nested deeper than {MAX_NESTING}", self.peek().at)

    # ---- expr, term

    def expression(self, inherited: Qualifiers | None) -> tuple[Node, Qualifiers | None]:
        node, qualifiers = self.term(inherited)
        entered = 0
        while self.is_word("and", "or"):
            is_and = self.next().text == "and"
            if isinstance(node, tree.Or if is_and else tree.And):
                self.enter()  # alternating operators nest the tree
                entered += 1
            right, qualifiers = self.id(qualifiers) if self.id_is_next() else self.term(qualifiers)
            node = both(node, right) if is_and else either(node, right)
        self.nesting -= entered
        return node, qualifiers

    def id_is_next(self) -> bool:
        """Behind any NOT and parenthesis stands an address, number, name or set, not a word of the language."""
        ahead = 0
        while (token := self.peek(ahead)).text in ("not", "(") and token.kind in ("word", "mark"):
            ahead += 1
        if token.kind == "number" and self.peek(ahead + 1).text in _RELATIONS and self.peek(ahead + 1).kind == "mark":
            return False
        return token.kind in _IDS and token.text not in LATER and (token.text not in NEVER or token.escaped)

    def term(self, inherited: Qualifiers | None) -> tuple[Node, Qualifiers | None]:
        self.enter()
        if self.is_word("not"):
            self.next()
            node, qualifiers = self.term(inherited)
            node = Not(node)
        elif self.is_mark("("):
            self.next()
            node, _ = self.expression(inherited)
            self.close()
            qualifiers = inherited
        else:
            node, qualifiers = self.primitive()
        self.nesting -= 1
        return node, qualifiers

    def close(self) -> None:
        if not self.is_mark(")"):
            raise self.unexpected("')'")
        self.next()

    def primitive(self) -> tuple[Node, Qualifiers | None]:
        token = self.peek()
        if token.kind == "number" and self.peek(1).kind == "mark" and self.peek(1).text in _RELATIONS:
            return self.length_right(), None
        if token.kind in ("number", "address4", "address6", "mac", "set"):
            raise PolicyError(f"unexpected {token.shown()}: say what it is ('host', 'net', 'port', 'ether host', ...)", token.at)
        if token.kind != "word" or token.text in ("and", "or", "mask"):
            raise self.unexpected(A_TEST)
        if token.text == "vlan":
            return self.vlan(), None
        if token.text in ("less", "greater"):
            self.next()
            limit = self.number()
            return (tree.Length(0, limit) if token.text == "less" else tree.Length(limit, _TOP)), None
        if token.text == "len":
            return self.length_left(), None
        return self.qualified()

    def number(self) -> int:
        if self.peek().kind != "number":
            raise self.unexpected("a number")
        return self.next().value

    # ---- qualifiers

    def qualified(self) -> tuple[Node, Qualifiers | None]:
        """[protocol] [direction] [type] id, or a protocol alone, or broadcast and multicast."""
        start = self.peek()
        protocol = self.next().text if start.text in _PROTOCOL_WORDS else ""
        if self.is_word("broadcast", "multicast"):
            return self.cast(protocol, start), None
        direction = self.direction()
        type_ = ""
        if self.is_word(*_TYPES) or (not direction and self.is_word("proto")):
            type_ = self.next().text
        elif direction and self.is_word("proto"):
            raise PolicyError("'proto' takes no direction", self.peek().at)
        if not direction and not type_:
            if not protocol or self.id_is_next():
                raise self.unexpected(A_TEST if not protocol else "'src', 'dst', 'host', 'net', 'port', 'and', 'or' or the end")
            return self.protocol_alone(protocol, start), None
        return self.id(Qualifiers(protocol, direction, type_, start.at))

    def direction(self) -> str:
        if not self.is_word("src", "dst"):
            return ""
        first = self.next().text
        if not self.is_word("or", "and"):
            return first
        joined = self.next().text
        other = "dst" if first == "src" else "src"
        if not self.is_word(other):
            raise self.unexpected(f"'{other}' (as in '{first} {joined} {other}')")
        self.next()
        return joined

    def protocol_alone(self, word: str, token: Token) -> Node:
        if word in _ETHERTYPE:
            return tree.EtherType(self.layer, _ETHERTYPE[word])
        if word in _DEC:
            return tree.EtherType(self.layer, _DEC[word])
        if word in _LLC:
            return tree.Llc(self.layer, *_LLC[word])
        if word in _PROTOCOL:
            return tree.Protocol(self.layer, *_PROTOCOL[word])
        if self.is_mark("["):
            raise self.unexpected("'host' or 'proto'")
        raise PolicyError(f"'{word}' alone says nothing: expected 'ether host', 'ether proto', ...", token.at)

    def cast(self, protocol: str, start: Token) -> Node:
        token = self.next()
        if protocol in ("", "ether"):
            return tree.Mac(tree.DESTINATION, (1 << 48) - 1) if token.text == "broadcast" else tree.MacGroup()
        if token.text == "multicast" and protocol in ("ip", "ip6"):
            return tree.Multicast(self.layer, IP if protocol == "ip" else IP6)
        if protocol == "ip":
            raise PolicyError("'ip broadcast' needs a netmask, and mirrored traffic has none: write 'dst host' and the address", start.at)
        raise PolicyError(f"'{protocol} {token.text}' does not exist", start.at)

    # ---- ids

    def id(self, qualifiers: Qualifiers | None) -> tuple[Node, Qualifiers | None]:
        token = self.peek()
        if self.is_word("not"):
            self.enter()
            self.next()
            node, qualifiers = self.id(qualifiers)
            self.nesting -= 1
            return Not(node), qualifiers
        if self.is_mark("("):
            self.enter()
            self.next()
            node, inner = self.id(qualifiers)
            while self.is_word("and", "or"):
                is_and = self.next().text == "and"
                right, inner = self.id(inner)
                node = both(node, right) if is_and else either(node, right)
            self.close()
            self.nesting -= 1
            return node, inner
        if token.kind not in _IDS:
            raise self.unexpected(f"what '{qualifiers.shown()}' is about" if qualifiers else A_TEST)
        if qualifiers is None:
            raise PolicyError(f"unexpected {token.shown()}: no 'host', 'net' or 'port' before it that it could share", token.at)
        self.next()
        second: Token | None = None
        if token.kind in ("address4", "address6", "number") and self.is_mark("/"):
            self.next()
            if self.peek().kind != "number":
                raise self.unexpected("the length of the net")
            second = self.next()
        elif token.kind == "address4" and self.is_word("mask"):
            self.next()
            if self.peek().kind != "address4":
                raise self.unexpected("the mask, as an address")
            second = self.next()
        return self.ids.node(token, second, qualifiers, self.layer), qualifiers

    # ---- vlan, len

    def vlan(self) -> Node:
        token = self.next()
        if len(self.layer) >= MAX_TAGS:
            raise PolicyError(f"more than {MAX_TAGS} VLAN tags", token.at)
        node: Node = tree.Tagged(self.layer)
        opened = 0
        while self.is_mark("("):
            self.next()
            opened += 1
        if opened or self.peek().kind == "number":
            number = self.peek()
            value = self.number()
            if value > 4095:
                raise PolicyError(f"VLAN {value} is above 4095", number.at)
            node = And((node, tree.VlanId(self.layer, value)))
        for _ in range(opened):
            self.close()
        self.layer = (*self.layer, tree.VLAN)
        return node

    def only_length(self) -> PolicyError:
        reason = "only the length is compared, and with a number ('len > 60'): arithmetic is not supported yet"
        return PolicyError(f"unexpected {self.peek().shown()}: {reason}", self.peek().at)

    def length_left(self) -> Node:
        self.next()
        if not self.is_mark(*_RELATIONS):
            raise self.unexpected("a comparison")
        relation = self.next().text
        if self.peek().kind != "number":
            raise self.only_length()
        return _length(relation, self.number())

    def length_right(self) -> Node:
        limit = self.number()
        relation = self.next().text
        if not self.is_word("len"):
            raise self.only_length()
        self.next()
        return _length(_MIRRORED[relation], limit)


def _length(relation: str, limit: int) -> Node:
    if relation == "!=":
        return Not(tree.Length(limit, limit))
    if relation == ">":
        return tree.Length(limit + 1, _TOP)
    if relation == "<":
        return tree.Length(0, limit - 1)
    return tree.Length(0 if relation == "<=" else limit, _TOP if relation == ">=" else limit)


def parse(text: str, sets: Mapping[str, Elements]) -> Node:
    return Parser(scan(text), Ids(sets)).parse()
