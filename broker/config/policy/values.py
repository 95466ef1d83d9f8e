"""The numbers that a word of our own takes: one, a range, a name, a comparison, a named set, or several of these in braces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.config.policy import lexer
from broker.config.policy.cursor import Cursor
from broker.config.policy.errors import PolicyError
from broker.config.policy.lexer import Token
from broker.config.policy.sets import Elements, merge
from broker.config.policy.tree import Ranges

RELATIONS = ("=", "!=", "<", "<=", ">", ">=")
_SHOWN = 10  # names in a message
_LONGEST = 64  # characters of a range


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of what, the largest, and names that stand for some."""

    what: str
    top: int
    names: Mapping[str, int] = field(default_factory=dict)

    def expected(self) -> str:
        names = [*self.names][:_SHOWN]
        more = ", ..." if len(self.names) > _SHOWN else ""
        return f"{', '.join(names)}{more}{', ' if names else ''}a number up to {self.top}, a range, a comparison or '{{'"


def is_next(cursor: Cursor, numbers: Numbers) -> bool:
    token = cursor.peek()
    if token.kind == "mark":
        return token.text == "{" or token.text in RELATIONS
    return token.kind in ("number", "set") or _read(token, numbers) is not None


def ranges(cursor: Cursor, sets: Mapping[str, Elements], numbers: Numbers) -> Ranges:
    """Sorted and disjoint; none at all for an empty set."""
    if cursor.is_mark(*RELATIONS):
        relation, at = cursor.next().text, cursor.peek().at
        (value, last) = _element(cursor, sets, numbers)[0] if cursor.peek().kind != "set" else (0, 1)
        if value != last:
            raise PolicyError(f"'{relation}' takes one number", at)
        parts = {"<": (0, value - 1), "=": (value, value), ">": (value + 1, numbers.top)}
        wanted = [parts[sign] for sign in ("<>" if relation == "!=" else relation)]
        return merge([(first, last) for first, last in wanted if first <= last])
    if cursor.is_mark("{"):
        return merge([found for element in cursor.braces(lambda: _element(cursor, sets, numbers)) for found in element])
    return merge(list(_element(cursor, sets, numbers)))


def _element(cursor: Cursor, sets: Mapping[str, Elements], numbers: Numbers) -> Ranges:
    token = cursor.peek()
    found: Ranges
    if token.kind == "set":
        found = numbers_of_set(token, sets, numbers.what)
    else:
        one = (token.value, token.value) if token.kind == "number" else _read(token, numbers)
        if one is None:
            raise cursor.unexpected(numbers.expected())
        found = (one,)
    cursor.next()
    for _, last in found:
        if last > numbers.top:
            raise PolicyError(f"{numbers.what} {last} is above {numbers.top}", token.at)
    return found


def numbers_of_set(token: Token, sets: Mapping[str, Elements], what: str) -> Ranges:
    """A set of numbers is written as one of ports."""
    if token.text not in sets:
        known = ", ".join(sorted(sets)) or "there are none"
        raise PolicyError(f"unknown set '${token.text}' (sets: {known})", token.at)
    others = [kind for kind in sets[token.text].kinds if kind != "ports"]
    if others:
        raise PolicyError(f"{what} takes numbers, but set '{token.text}' has {' and '.join(others)}", token.at)
    return sets[token.text].ports


def _read(token: Token, numbers: Numbers) -> tuple[int, int] | None:
    """A name, or a range in either order. A dash may be part of a name."""
    if token.kind not in ("name", "word") or token.escaped or len(token.text) > _LONGEST:
        return None
    text = token.text
    one = _value(text, numbers)
    if one is not None:
        return one, one
    for at, character in enumerate(text):
        if character == "-":
            first, last = _value(text[:at], numbers), _value(text[at + 1 :], numbers)
            if first is not None and last is not None:
                return min(first, last), max(first, last)
    return None


def _value(text: str, numbers: Numbers) -> int | None:
    if text in numbers.names:
        return numbers.names[text]
    try:
        return lexer.number(text) if text[:1].isdigit() else None
    except ValueError:
        return None
