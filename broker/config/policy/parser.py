"""From words to a tree: the grammar of pcap-filter(7), by recursive descent.

AND and OR bind equally and to the left; NOT binds tighter. An id that follows AND or OR without qualifiers takes those of the id before
it (``tcp port 80 or 443``). ``vlan``, ``mpls``, ``pppoes`` and ``geneve`` move everything right of them one header deeper, whatever stands
between: the meaning is libpcap's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from broker.config.policy import link, osi, own, tree, values
from broker.config.policy.arithmetic import Calculator
from broker.config.policy.cursor import A_TEST
from broker.config.policy.errors import PolicyError
from broker.config.policy.ids import Ids, Qualifiers
from broker.config.policy.lexer import Token, scan
from broker.config.policy.refused import REFUSED
from broker.config.policy.refused import WORDS as REFUSED_WORDS
from broker.config.policy.sets import Elements
from broker.config.policy.tree import IP, IP6, And, Node, Not, Or
from broker.config.policy.values import Numbers

MAX_TAGS = link.MAX_TAGS
MAX_CHARACTERS = 16 << 10

_TYPES = frozenset(("host", "net", "port", "portrange"))
_IDS = frozenset(("number", "address4", "address6", "mac", "name", "set"))
_TOP = (1 << 32) - 1
_GENEVE_REGISTERS = 3
_STEPS: dict[str, tuple[int, Callable[[tree.Layer, int | None, int], Node]]] = {
    "mpls": (tree.MPLS, link.mpls),
    "pppoes": (tree.PPPOE, link.pppoes),
    "geneve": (tree.GENEVE, link.geneve),
}


class _Chain:
    """Tests that AND or OR joins to the left, put together when they end: so that a long chain costs no more for each."""

    def __init__(self, first: Node) -> None:
        self.kind: type[And] | type[Or] | None = None
        self.items = [first]

    def begin(self, kind: type[And] | type[Or]) -> bool:
        """One more of this kind follows. Does that nest what there is?"""
        if kind is self.kind:
            return False
        node, self.kind = self.node(), kind
        flat = isinstance(node, kind) and node.items
        self.items = list(node.items) if flat else [node]  # type: ignore[union-attr]
        return not flat and isinstance(node, And | Or)

    def node(self) -> Node:
        return self.items[0] if self.kind is None else self.kind(tuple(self.items))


@dataclass(slots=True)
class Parser(Calculator):
    """One expression, once: ``Parser(scan(text), ids=ids).parse()``."""

    ids: Ids = field(kw_only=True)

    def parse(self) -> Node:
        if self.peek().kind == "end":
            return And(())
        node, _ = self.expression(None)
        if self.peek().kind != "end":
            raise self.unexpected("'and', 'or' or the end")
        return node

    def numbers(self, numbers: Numbers) -> tree.Ranges:
        return values.ranges(self, self.ids.sets, numbers)

    # ---- expr, term

    def expression(self, inherited: Qualifiers | None) -> tuple[Node, Qualifiers | None]:
        node, qualifiers = self.term(inherited)
        chain = _Chain(node)
        entered = 0
        while self.is_word("and", "or"):
            kind = And if self.next().text == "and" else Or
            if chain.begin(kind):
                self.enter()
                entered += 1
            right, qualifiers = self.id(qualifiers) if self.id_is_next() else self.term(qualifiers)
            chain.items.append(right)
        self.nesting -= entered
        return chain.node(), qualifiers

    def id_is_next(self) -> bool:
        """Behind any NOT and parenthesis stands an address, number, name or set, neither a word of the language nor a comparison."""
        ahead = 0
        while (token := self.peek(ahead)).text in ("not", "(") and token.kind in ("word", "mark"):
            if self.computes(ahead):
                return False
            ahead += 1
        if self.computes(ahead) or own.stands(self, ahead):
            return False
        if token.kind == "mark":
            return token.text == "{"
        return token.kind in _IDS and (token.text not in REFUSED_WORDS or token.escaped)

    def term(self, inherited: Qualifiers | None) -> tuple[Node, Qualifiers | None]:
        if self.computes() and not own.stands(self, 0):
            return self.relation(), None
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

    def primitive(self) -> tuple[Node, Qualifiers | None]:
        token = self.peek()
        found = own.test(self)
        if found is not None:
            return found, None
        if token.kind in ("number", "address4", "address6", "mac", "set"):
            raise PolicyError(f"unexpected {token.shown()}: say what it is ('host', 'net', 'port', 'ether host', ...)", token.at)
        if token.kind != "word" or token.text in ("and", "or", "mask"):
            raise self.unexpected(A_TEST)
        if token.text == "vlan":
            return own.vlan(self), None
        if token.text in _STEPS:
            return self.step(), None
        if token.text in ("less", "greater"):
            self.next()
            limit = self.number()
            return (tree.Length(0, limit) if token.text == "less" else tree.Length(limit, _TOP)), None
        if token.text == "byte":
            return self.byte(), None
        if token.text == "pppoed":
            self.next()
            return link.ether_type(self.layer, 0x8863, token.at), None
        if token.text == "llc":
            self.next()
            named = self.peek().kind == "name"
            return osi.llc(self.layer, self.next().text if named else None, self.peek(-1).at), None
        return self.qualified()

    # ---- qualifiers

    def qualified(self) -> tuple[Node, Qualifiers | None]:
        """[protocol] [direction] [type] id, or a protocol alone, or broadcast and multicast."""
        start = self.peek()
        protocol = self.next().text if start.text in link.PROTOCOLS else ""
        if self.is_word("broadcast", "multicast"):
            return self.cast(protocol, start), None
        direction = self.direction()
        type_ = ""
        if self.is_word(*_TYPES) or (not direction and self.is_word("proto", "protochain")):
            type_ = self.next().text
        elif direction and self.is_word("proto", "protochain"):
            raise PolicyError(f"'{self.peek().text}' takes no direction", self.peek().at)
        if not direction and not type_:
            if not protocol or self.id_is_next():
                raise self.unexpected(A_TEST if not protocol else "'src', 'dst', 'host', 'net', 'port', 'and', 'or' or the end")
            return self.protocol_alone(protocol, start), None
        node, qualifiers = self.id(Qualifiers(protocol, direction, type_, start.at))
        return node, qualifiers

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
        if word == "ether":
            raise PolicyError(f"'{token.text}' alone says nothing: expected 'ether host', 'ether proto', 'ether[...]', ...", token.at)
        if word in link.ETHERTYPES or word in link.PROTOCOL_NUMBERS:
            return link.protocol(self.layer, word, token.at)
        return osi.protocol(self.layer, word, token.at)

    def cast(self, protocol: str, start: Token) -> Node:
        token = self.next()
        if protocol in ("", "ether"):
            broadcast = token.text == "broadcast"
            return link.mac(self.layer, tree.DESTINATION, (1 << 48) - 1, start.at) if broadcast else link.mac_group(self.layer, start.at)
        if token.text == "multicast" and protocol in ("ip", "ip6"):
            return tree.Multicast(self.layer, IP if protocol == "ip" else IP6)
        if protocol == "ip":
            raise PolicyError(f"'ip broadcast' {REFUSED['netmask']}: write 'dst host' and the address", start.at)
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
            chain = _Chain(node)
            entered = 1
            while self.is_word("and", "or"):
                if chain.begin(And if self.next().text == "and" else Or):
                    self.enter()
                    entered += 1
                right, inner = self.id(inner)
                chain.items.append(right)
            self.close()
            self.nesting -= entered
            return chain.node(), inner
        if token.kind not in _IDS and not self.is_mark("{"):
            raise self.unexpected(f"what '{qualifiers.shown()}' is about" if qualifiers else A_TEST)
        if qualifiers is None:
            raise PolicyError(f"unexpected {token.shown()}: no 'host', 'net' or 'port' before it that it could share", token.at)
        if qualifiers.type == "protochain" and not qualifiers.protocol:
            self.take_register()  # libpcap never gives it back
        if self.is_mark("{"):
            elements = self.braces(lambda: self.element(qualifiers))
            return self.ids.several(elements, qualifiers, self.layer), qualifiers
        return self.ids.node(*self.one_id(), qualifiers, self.layer), qualifiers

    def element(self, qualifiers: Qualifiers) -> tuple[Token, Token | None]:
        """Of braces."""
        token = self.peek()
        if token.kind == "word" and token.text in link.PROTOCOLS and qualifiers.type in ("proto", "protochain"):
            self.next()  # no need for \\ here
            number = link.PROTOCOL_NUMBERS.get(token.text) if qualifiers.protocol != "ether" else None
            return Token("number" if number else "name", token.text, token.at, number[1] if number else 0), None
        if token.kind not in _IDS:
            raise self.unexpected(f"what '{qualifiers.shown()}' is about")
        return self.one_id()

    def one_id(self) -> tuple[Token, Token | None]:
        """The id, and the length of its net or its mask."""
        token = self.next()
        second: Token | None = None
        if token.kind in ("address4", "address6", "number", "mac") and self.is_mark("/"):
            self.next()
            if self.peek().kind != "number" and (token.kind, self.peek().kind) != ("mac", "mac"):
                raise self.unexpected("the mask" if token.kind == "mac" else "the length of the net")
            second = self.next()
        elif token.kind == "address4" and self.is_word("mask"):
            self.next()
            if self.peek().kind != "address4":
                raise self.unexpected("the mask, as an address")
            second = self.next()
        return token, second

    # ---- headers in between, bytes

    def step(self) -> Node:
        token = self.next()
        step, test = _STEPS[token.text]
        number = self.grouped_number() if self.is_mark("(") or self.peek().kind == "number" else None
        node = test(self.layer, number.value if number else None, number.at if number else token.at)
        self.layer = link.add_step(self.layer, step, token.at)
        if step == tree.GENEVE:
            for _ in range(_GENEVE_REGISTERS):
                self.take_register()
        return node

    def byte(self) -> Node:
        """``byte 12 = 8``: like ``ether[12] = 8``."""
        self.next()
        offset = self.number()
        if not self.is_mark("=", "<", ">", "&", "|"):
            raise self.unexpected("'=', '<' or '>'")
        operator = self.next()
        at = self.peek().at
        value = self.number()
        if operator.text in ("&", "|"):
            instead = f"'ether[{offset}] {operator.text} {value} != 0'"
            raise PolicyError(f"'byte {offset} {operator.text} {value}': {REFUSED['byte']}: write {instead}", operator.at)
        if value > 255:
            raise PolicyError(f"{value} is above 255: {REFUSED['too large']}", at)
        load = link.field(self.layer, tree.LINK, offset, 1)
        if operator.text == "<":
            return Not(tree.Compare(load, ">=", tree.Number(value)))
        return tree.Compare(load, operator.text, tree.Number(value))


def parse(text: str, sets: Mapping[str, Elements]) -> Node:
    if len(text) > MAX_CHARACTERS:
        raise PolicyError(f"{REFUSED['long']}: {len(text):,} characters, at most {MAX_CHARACTERS:,}", 0)
    return Parser(scan(text), ids=Ids(sets)).parse()
