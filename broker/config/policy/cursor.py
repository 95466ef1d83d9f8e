"""Where in the tokens of an expression the parser is, and what it says when something else should stand there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from broker.config.policy import refused
from broker.config.policy.errors import PolicyError
from broker.config.policy.lexer import Token
from broker.config.policy.refused import REFUSED
from broker.config.policy.tree import Layer

T = TypeVar("T")

MAX_NESTING = 200
A_TEST = "a test"


def _partners(tokens: list[Token]) -> list[int]:
    """For each ``(`` where its ``)`` is; elsewhere and without one: 0."""
    partners = [0] * len(tokens)
    opened: list[int] = []
    for i, token in enumerate(tokens):
        if token.kind == "mark" and token.text == "(":
            opened.append(i)
        elif token.kind == "mark" and token.text == ")" and opened:
            partners[opened.pop()] = i
    return partners


@dataclass(slots=True)
class Cursor:
    tokens: list[Token]
    layer: Layer = ()  # of what stands from here on
    at: int = 0
    nesting: int = 0
    partners: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.partners = _partners(self.tokens)

    def peek(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else self.tokens[-1]

    def next(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def is_word(self, *words: str) -> bool:
        token = self.peek()
        return token.kind == "word" and token.text in words

    def is_name(self, name: str) -> bool:
        """A word of ours: to libpcap a name."""
        token = self.peek()
        return token.kind == "name" and token.text == name and not token.escaped

    def is_mark(self, *marks: str) -> bool:
        token = self.peek()
        return token.kind == "mark" and token.text in marks

    def behind_group(self, ahead: int = 0) -> Token:
        """What follows the parenthesis that opens here."""
        partner = self.partners[self.at + ahead]
        return self.tokens[partner + 1] if partner else self.tokens[-1]

    def braces(self, element: Callable[[], T]) -> list[T]:
        """What `element` reads, between ``{``, ``,`` and ``}``."""
        self.next()
        found = [element()]
        while self.is_mark(","):
            self.next()
            found.append(element())
        if not self.is_mark("}"):
            raise self.unexpected("',' or '}'")
        self.next()
        return found

    def close(self, mark: str = ")") -> None:
        if not self.is_mark(mark):
            raise self.unexpected(f"'{mark}'")
        self.next()

    def number(self) -> int:
        if self.peek().kind != "number":
            raise self.unexpected("a number")
        return self.next().value

    def is_grouped_number(self) -> bool:
        """A number, in parentheses or not."""
        ahead = 0
        while self.peek(ahead).kind == "mark" and self.peek(ahead).text == "(":
            ahead += 1
        return self.peek(ahead).kind == "number"

    def grouped_number(self) -> Token:
        opened = 0
        while self.is_mark("("):
            self.next()
            opened += 1
        token = self.peek()
        self.number()
        for _ in range(opened):
            self.close()
        return token

    def enter(self) -> None:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise PolicyError(f"{REFUSED['nested']}: at most {MAX_NESTING}", self.peek().at)

    def unexpected(self, expected: str) -> PolicyError:
        token = self.peek()
        if token.kind == "bad":
            return PolicyError(token.text, token.at)
        if token.kind == "name" and not token.escaped:
            if token.text in refused.WORDS:
                return PolicyError(f"'{token.text}' is not for this: {refused.WORDS[token.text]}", token.at)
            if expected == A_TEST:
                return PolicyError(f"unknown word '{token.text}' ({REFUSED['name']}: write the address)", token.at)
        return PolicyError(f"unexpected {token.shown()}, expected {expected}", token.at)
