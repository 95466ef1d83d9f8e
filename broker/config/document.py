"""A YAML text as plain values, with the place of each key and value.

Scalars stay text (`Text`, which knows whether it was quoted); what they mean is decided by the key they stand under. So the traps of
YAML 1.1 do not exist here: ``on`` and ``no`` are words, ``10:30`` and ``00:11:22:33:44:55`` are not base-60 numbers, ``010`` is not 8.
What YAML would silently swallow from an expression (``!tcp`` as a tag, ``&x`` as an anchor, ``*x`` as an alias) is an error in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from broker.core.model import Place

Path = tuple[str | int, ...]
Error = tuple[Place, str, str]
Mark: TypeAlias = Any  # of one of PyYAML's two parsers: index, line and column, from 0
MAX_DEPTH = 20
MAX_ERRORS = 1000  # of one kind: those of the text, and those of the keys
NULLS = ("", "~", "null", "Null", "NULL")

_HINTS = {
    "mapping values are not allowed": "put text that contains ': ' in quotes",
    r"found character '\t'": "indent with spaces, not with tabs",
    "found character": "put text that starts with it in quotes",
    "did not find expected": "is the indentation right?",
    "could not find expected ':'": "is the indentation right?",
    "expected <block end>": "is the indentation right?",
}


class Text(str):
    """A scalar as it was written. `plain`: without quotes."""

    plain: bool

    def __new__(cls, value: str, plain: bool = True) -> Text:
        made = super().__new__(cls, value)
        made.plain = plain
        return made


@dataclass(frozen=True, slots=True)
class Spot:
    key: Mark | None
    start: Mark
    end: Mark
    style: str  # of a scalar: "" plain, "'" or '"' quoted, "|" or ">" block


@dataclass
class Document:
    """`value` is nested dicts, lists, Text and None; `errors` are what can be told without knowing any key."""

    file: str
    text: str
    value: Any = None
    spots: dict[Path, Spot] = field(default_factory=dict)
    errors: list[Error] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)  # values that are not known because of an error above
    whole: bool = True  # False: the text is not YAML, `value` is worth nothing

    def place(self, path: Path, *, of_key: bool = False) -> Place:
        """Of the value at `path` (of its key, if asked and there is one), or of the nearest part around it that exists."""
        while path and path not in self.spots:
            path, of_key = path[:-1], False
        spot = self.spots.get(path)
        if spot is None:
            return Place(self.file, 1, 1)
        return self.at(spot.key if of_key and spot.key else spot.start)

    def inside(self, path: Path, offset: int) -> Place:
        """Of character `offset` of the scalar at `path`; of its start where quotes, folding or escapes make that unclear."""
        spot = self.spots.get(path)
        if spot is None or spot.start.line != spot.end.line:
            return self.place(path)
        raw = self.text[spot.start.index : spot.end.index]
        value = self._value(path)
        start = self.at(spot.start)
        if spot.style == "" and raw == value:
            shift = offset
        elif spot.style == '"' and raw[1:-1] == value:
            shift = 1 + offset
        elif spot.style == "'":
            shift = 1 + offset + str(value)[:offset].count("'")  # each was written twice
        else:
            return start
        return Place(start.file, start.line, start.column + shift)

    def is_broken(self, path: str) -> bool:
        """An error of the text has been told there, so that nothing more should be said of it. `path` as `dotted` writes it."""
        parts = (dotted(part) for part in self.broken)
        return any(path == part or not part or path.startswith((f"{part}.", f"{part}[")) for part in parts)

    def at(self, mark: Mark) -> Place:
        return Place(self.file, mark.line + 1, mark.column + 1)

    def _value(self, path: Path) -> Any:
        value = self.value
        for step in path:
            value = value[step]
        return value


def read_document(text: str, file: str) -> Document:
    """Never raises for what stands in `text`: it is in `errors`."""
    text = text.removeprefix("\ufeff")
    document = Document(file, text)
    try:
        try:
            _compose(document, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, UnicodeEncodeError):
            # The parser in C is 8 times faster; the one in Python tells the same mistakes in the same words everywhere.
            document = Document(file, text)
            _compose(document, yaml.SafeLoader, to_the_end=False)
    except EnoughError:
        document.whole = False
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(file, before.count("\n") + 1, error.position - before.rfind("\n"))
        document.errors.append((place, "", f"character U+{ord(text[error.position]):04X} is not allowed in YAML"))
        document.whole = False
    except yaml.MarkedYAMLError as error:
        document.errors.append((_error_place(document, error), "", _error_text(error)))
        document.whole = False
    return document


def _error_place(document: Document, error: yaml.MarkedYAMLError) -> Place:
    mark: Any = error.problem_mark or error.context_mark
    return document.at(mark) if mark else Place(document.file, 1, 1)


def _error_text(error: Any) -> str:
    problem = error.problem or "not YAML"
    if error.context and error.context_mark and error.problem_mark and error.context_mark.line != error.problem_mark.line:
        problem += f" {error.context} that starts in line {error.context_mark.line + 1}"
    hint = next((hint for start, hint in _HINTS.items() if problem.startswith(start)), "")
    return f"not YAML: {problem}" + (f"; {hint}" if hint else "")


class EnoughError(Exception):
    """All has been said: the parser in Python takes time by the square of the depth; and nobody reads so many mistakes."""


def _compose(document: Document, loader: Any, *, to_the_end: bool = True) -> None:
    events: Iterator[Any] = (
        e for e in yaml.parse(document.text, Loader=loader) if not isinstance(e, (yaml.StreamStartEvent, yaml.DocumentEndEvent))
    )
    event = next(events)
    if isinstance(event, yaml.DocumentStartEvent):
        document.value = _Composer(document, events, to_the_end).node(next(events), (), None)
        event = next(events)
        if isinstance(event, yaml.DocumentStartEvent):
            document.errors.append((document.at(event.start_mark), "", "a second document starts here, expected one document"))
            for _ in events:
                pass


class _Composer:
    def __init__(self, document: Document, events: Iterator[Any], to_the_end: bool) -> None:
        self.document = document
        self.events = events
        self.to_the_end = to_the_end
        self.depth = 0

    def node(self, event: Any, path: Path | None, key: Mark | None) -> Any:
        """The value that `event` begins. `path` None: somewhere that no key leads to; it is read only for its mistakes."""
        self._refuse_marks(event, path)
        if isinstance(event, yaml.AliasEvent):
            self._spot(path, key, event)
            return None
        if isinstance(event, yaml.ScalarEvent):
            self._spot(path, key, event, event.style or "")
            plain = not event.style
            return None if plain and event.value in NULLS else Text(event.value, plain)
        self._spot(path, key, event)
        if self.depth == MAX_DEPTH:
            self._error(event, path, f"nested more than {MAX_DEPTH} deep", breaks=True)
            if not self.to_the_end:
                raise EnoughError
            self._skip()
            return None
        self.depth += 1
        found = self._list(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)
        self.depth -= 1
        return found

    def _list(self, path: Path | None) -> Any:
        found: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            found.append(self.node(event, None if path is None else (*path, len(found)), None))
        return found

    def _mapping(self, path: Path | None) -> Any:
        found: dict[str, Any] = {}
        first: dict[str, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            value_path = None
            mark: Mark = event.start_mark
            if not isinstance(event, yaml.ScalarEvent):
                self._error(event, path, "found a list, a mapping or an alias as a key, expected a word")
                self.node(event, None, None)
            else:
                key = str(event.value)
                self._refuse_marks(event, path)
                if key == "<<" and not event.style:
                    self._error(event, path, "merge keys (<<) are not supported; write the keys out")
                elif key in first:
                    self._error(event, path, f"key '{key}' is given twice, the first time in line {first[key]}")
                else:
                    first[key] = mark.line + 1
                    value_path = None if path is None else (*path, key)
            value = self.node(next(self.events), value_path, mark)
            if value_path is not None:
                found[key] = value
        return found

    def _skip(self) -> None:
        depth = 1
        while depth:
            event = next(self.events)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)

    def _refuse_marks(self, event: Any, path: Path | None) -> None:
        if isinstance(event, yaml.AliasEvent):
            text = f"aliases (*{event.anchor}) are not supported; put text that starts with * in quotes"
            self._error(event, path, text, breaks=True)
            return
        if event.anchor is not None:
            self._error(event, path, f"anchors (&{event.anchor}) are not supported; put text that starts with & in quotes", breaks=True)
        if event.tag is not None:
            self._error(event, path, f"tags ({event.tag}) are not supported; put text that starts with ! in quotes", breaks=True)

    def _error(self, event: Any, path: Path | None, text: str, *, breaks: bool = False) -> None:
        self.document.errors.append((self.document.at(event.start_mark), dotted(path or ()), text))
        if len(self.document.errors) == MAX_ERRORS:
            raise EnoughError
        if breaks and path is not None:
            self.document.broken.add(path)

    def _spot(self, path: Path | None, key: Mark | None, event: Any, style: str = "") -> None:
        if path is not None:
            self.document.spots[path] = Spot(key, event.start_mark, event.end_mark, style)


def dotted(path: Path) -> str:
    """``maps[0].rules[1].pass``"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
