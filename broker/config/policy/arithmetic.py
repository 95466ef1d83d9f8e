"""Comparisons of numbers: ``ip[0] & 0xf != 5``, ``len > 60``, ``tcp[tcpflags] & (tcp-syn|tcp-fin) != 0``.

All of it is 32 bits unsigned. What surprises is libpcap's grammar, not ours: ``%`` and ``^`` have no precedence, so that they take
everything right of them (``a % b + c`` is ``a % (b + c)``); of two operands only the left one's protocol is asked for (``udp[0] + tcp[0]``
reads UDP packets); and a divisor or shift is refused by the first constant that stands in it, an offset too.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.config.policy import link, tree
from broker.config.policy.cursor import Cursor
from broker.config.policy.errors import PolicyError
from broker.config.policy.refused import REFUSED
from broker.config.policy.tree import And, Arithmetic, Binary, Compare, Load, Node, Not, Number, Or, WireLength

MAX_OPERATORS = 64
REGISTERS = 16  # that libpcap keeps values in
MASK = 0xFFFFFFFF

_PRECEDENCE = {"negate": 6, "*": 5, "/": 5, "+": 4, "-": 4, "<<": 3, ">>": 3, "&": 2, "|": 1, "%": 0, "^": 0}  # 0: none
OPERATORS = frozenset(_PRECEDENCE) - {"negate"}
_MIRRORED = {">": "<", "<": ">", ">=": "<=", "<=": ">=", "=": "=", "!=": "!="}
RELATIONS = frozenset(_MIRRORED)
_NEGATED = {"<": ">=", "<=": ">", "!=": "="}
_TOP = MASK
_BASES = {"l4": tree.L4, "payload": tree.PAYLOAD}  # ours


@dataclass(frozen=True, slots=True)
class Operand:
    """`checks`: what libpcap asks before it computes; `first`: the constant that its code begins with; `there`: what has to be there, where
    nothing is asked before."""

    node: Arithmetic
    checks: tuple[Node, ...] = ()
    first: int | None = None
    there: tuple[Node, ...] = ()


@dataclass(slots=True)
class Calculator(Cursor):
    registers: int = 0  # in use, counted as libpcap does, which gives some never back
    operators: int = 0  # of this comparison

    def computes(self, ahead: int = 0) -> bool:
        """Does a comparison start here, rather than a test or an id?"""
        token = self.peek(ahead)
        if token.kind == "mark" and token.text == "(":
            return _continues(self.behind_group(ahead).text, self.behind_group(ahead).kind)
        if token.kind == "number":
            return _continues(self.peek(ahead + 1).text, self.peek(ahead + 1).kind)
        if token.kind == "mark":
            return token.text == "-"
        return (token.kind, token.text) == ("word", "len") or self.is_load(ahead)

    def is_load(self, ahead: int = 0) -> bool:
        token, known = self.peek(ahead), link.PROTOCOLS if self.peek(ahead).kind == "word" else _BASES
        return token.kind in ("word", "name") and token.text in known and not token.escaped and self.peek(ahead + 1).text == "["

    def relation(self) -> Node:
        self.operators = 0
        left = self.arithmetic()
        if not self.is_mark(*RELATIONS):
            raise self.unexpected("a comparison")
        relation = self.next().text
        right = self.arithmetic()
        self.registers -= 2
        test = compare(left.node, relation, right.node)
        checks = (*left.checks, *right.checks)
        if isinstance(test, Not):  # what is not there differs from nothing
            checks += (*left.there, *right.there)
        return And((*checks, test)) if checks else test

    def arithmetic(self) -> Operand:
        values: list[Operand] = []
        operators: list[str] = []
        while True:
            while self.is_mark("-"):
                self.count()
                self.next()
                operators.append("negate")
            values.append(self.operand())
            if not self.is_mark(*OPERATORS):
                break
            incoming = _PRECEDENCE[self.peek().text]
            while operators and incoming and _PRECEDENCE[operators[-1]] >= incoming:
                self.reduce(operators.pop(), values)
            self.count()
            operators.append(self.next().text)
        while operators:
            self.reduce(operators.pop(), values)
        return values[0]

    def count(self) -> None:
        self.operators += 1
        if self.operators > MAX_OPERATORS:
            raise PolicyError(f"{REFUSED['arithmetic']}: at most {MAX_OPERATORS} operators", self.peek().at)

    def take_register(self) -> None:
        if self.registers >= REGISTERS:
            raise PolicyError(f"more than {REGISTERS} numbers to remember at once: compare less", self.peek().at)
        self.registers += 1

    def operand(self) -> Operand:
        token = self.peek()
        if token.kind == "number":
            self.next()
            self.take_register()
            return Operand(Number(token.value), (), token.value)
        if self.is_mark("("):
            self.enter()
            self.next()
            inner = self.arithmetic()
            self.close()
            self.nesting -= 1
            return inner
        if self.is_word("len"):
            self.next()
            self.take_register()
            return Operand(WireLength())
        if self.is_load():
            return self.load()
        raise self.unexpected("a number, 'len' or 'protocol[offset]'")

    def load(self) -> Operand:
        self.enter()
        self.count()
        protocol = self.next()
        self.next()
        index = self.arithmetic()
        size = 1
        if self.is_mark(":"):
            self.next()
            at = self.peek().at
            size = self.number()
            if size not in (1, 2, 4):
                raise PolicyError(f"{size} bytes cannot be read at once, only 1, 2 or 4", at)
        self.close("]")
        self.take_register()
        self.registers -= 1
        self.nesting -= 1
        node = index.node
        if protocol.text in _BASES:
            return self.own_load(_BASES[protocol.text], size, index)
        base, checks = link.indexed(self.layer, protocol.text, index.checks, protocol.at)
        if tree.GENEVE in self.layer and isinstance(node, Number) and node.value > MASK >> 1:
            node = Binary("+", Number(0), node)  # without its optimizer libpcap adds offsets in another order: it shows where they overflow
        if tree.INNER in self.layer and base == tree.LINK:
            return self.own_load(base, size, index)
        return Operand(Load(self.layer, base, node, size), checks, index.first, index.there)

    def own_load(self, base: int, size: int, index: Operand) -> Operand:
        """Of what not every packet has."""
        load = Load(self.layer, base, index.node, size)
        return Operand(load, index.checks, index.first, (*index.there, Compare(load, ">=", Number(0))))

    def reduce(self, operator: str, values: list[Operand]) -> None:
        right = values.pop()
        if operator == "negate":
            values.append(Operand(_binary("-", Number(0), right.node), right.checks, right.first, right.there))
            return
        left = values.pop()
        _check_constant(operator, left, right, self.peek().at)
        self.registers -= 1
        values.append(Operand(_binary(operator, left.node, right.node), left.checks, left.first, (*left.there, *right.there)))


def _continues(text: str, kind: str) -> bool:
    return kind == "mark" and (text in RELATIONS or text in OPERATORS)


def _check_constant(operator: str, left: Operand, right: Operand, at: int) -> None:
    """No packet is needed to see that this has no value."""
    divides, shifts = operator in ("/", "%"), operator in ("<<", ">>")
    what = "division by zero" if divides else "shift by more than 31 bits"
    first = 1 if right.first is None else right.first
    if (divides and first == 0) or (shifts and first > 31):
        raise PolicyError(f"{what}: {first} is the first number behind '{operator}'", at)
    if isinstance(right.node, Number):
        value = right.node.value
        if (divides and value == 0) or (shifts and value > 31 and not isinstance(left.node, Number)):
            raise PolicyError(f"{what}: {REFUSED['constant']}", at)


def _binary(operator: str, left: Arithmetic, right: Arithmetic) -> Arithmetic:
    if isinstance(left, Number) and isinstance(right, Number):
        return Number(compute(operator, left.value, right.value))
    return Binary(operator, left, right)


def compute(operator: str, a: int, b: int) -> int:
    """Of numbers; never a division by zero."""
    if operator in ("<<", ">>") and b > 31:
        return 0
    match operator:
        case "+":
            a += b
        case "-":
            a -= b
        case "*":
            a *= b
        case "/":
            a //= b
        case "%":
            a %= b
        case "&":
            a &= b
        case "|":
            a |= b
        case "^":
            a ^= b
        case "<<":
            a <<= b
        case _:
            a >>= b
    return a & MASK


def compare(left: Arithmetic, relation: str, right: Arithmetic) -> Node:
    """The test, in the one of its forms that is quickest to answer."""
    if isinstance(left, Number) and not isinstance(right, Number):
        left, relation, right = right, _MIRRORED[relation], left
    if relation in _NEGATED:
        return _not(compare(left, _NEGATED[relation], right))
    if isinstance(right, Number):
        limit = right.value
        if isinstance(left, Number):
            holds = {"=": left.value == limit, ">": left.value > limit, ">=": left.value >= limit}[relation]
            return And(()) if holds else Or(())
        if isinstance(left, WireLength):
            return tree.Length(limit + (relation == ">"), limit if relation == "=" else _TOP)
    return Compare(left, relation, right)


def _not(node: Node) -> Node:
    if isinstance(node, tree.Length) and node.last == _TOP:
        return tree.Length(0, node.first - 1)
    return Not(node)
