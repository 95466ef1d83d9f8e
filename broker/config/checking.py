"""What checks of a document are made of: they go along what was written, right or wrong, and tell mistakes with their places."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from broker.config.document import Document, Error, Path, Text, dotted
from broker.config.policy import PolicyError, parse_expression
from broker.config.policy.lexer import WORDS
from broker.config.policy.own import WORDS as OWN_WORDS
from broker.config.policy.sets import Elements
from broker.config.scalars import closest, suggest


def mapping(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def listed(path: Path, value: Any) -> list[tuple[Path, str]]:
    """Path and text of the words of a list, or of the single word that stands for one."""
    if isinstance(value, Text):
        return [(path, value)]
    if isinstance(value, list):
        return [((*path, n), word) for n, word in enumerate(value) if isinstance(word, Text)]
    return []


def error_at(document: Document, path: Path, text: str) -> Error:
    return document.place(path), dotted(path), text


def check_names(document: Document, path: Path, value: Any, known: dict[str, Any], what: str) -> Iterator[Error]:
    seen: set[str] = set()
    for at, name in listed(path, value):
        if name in seen:
            yield error_at(document, at, f"'{name}' is given twice")
        elif name not in known:
            yield error_at(document, at, f"unknown {what} '{name}'{suggest(name, known)}")
        seen.add(name)


def check_twice(document: Document, what: str, values: Iterator[tuple[Path, str]]) -> Iterator[Error]:
    first: dict[str, Path] = {}
    for path, value in values:
        if value in first:
            yield error_at(document, path, f"{what} '{value}' is used twice, the first time in {dotted(first[value])}")
        else:
            first[value] = path


def check_expression(
    document: Document,
    path: Path,
    expression: str,
    sets: dict[str, Elements],
    parse: Callable[[str, dict[str, Elements]], object] = parse_expression,
) -> Iterator[Error]:
    try:
        parse(expression, sets)
    except PolicyError as error:
        if error.offset < 0:
            yield error_at(document, path, error.message)
        else:
            text = f"{error.message} (column {error.offset + 1} of the expression){_meant(expression[error.offset :], error.message, sets)}"
            yield document.inside(path, error.offset), dotted(path), text


def _meant(rest: str, message: str, sets: dict[str, Elements]) -> str:
    """What the word that `rest` begins with may be a slip of."""
    found = re.match(r"(\$?)([A-Za-z0-9_.-]+)", rest)
    if found is None or "did you mean" in message:
        return ""
    mark, word = found.groups()
    known = sets.keys() if mark else WORDS | OWN_WORDS
    close = closest(word, known)
    return f"; did you mean '{mark}{close[0]}'?" if close and word not in known else ""


def check_one_of(document: Document, path: Path, value: dict[str, Any], one: str, other: str) -> Iterator[Error]:
    if (one in value) == (other in value):
        found = f"both {one} and {other}" if one in value else f"neither {one} nor {other}"
        yield error_at(document, path, f"{found}, expected one of them")
