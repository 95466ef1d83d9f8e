"""What pydantic found, in our words and with the place in the document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from broker.config.document import Document, Error, Path, dotted
from broker.config.parts import Part, written_fields
from broker.config.scalars import Wrong, shown, suggest
from broker.config.schema import NESTED, SECTIONS, TAGGED, Whole
from broker.config.shaping import RemotePart


def told(document: Document, details: ErrorDetails) -> Error | None:
    """One finding as an error; None where the document's own error says it already."""
    path, tags = _written(document, details["loc"])
    wrong = (details.get("ctx") or {}).get("error")
    of_key = details["loc"][-1:] == ("[key]",)
    if isinstance(wrong, Wrong):
        path, text, of_key = (*path, *wrong.at), str(wrong), of_key or wrong.key
    elif details["type"] == "extra_forbidden":
        key = str(path[-1])
        text, of_key = f"unknown key {shown(key)}{suggest(key, _keys(path, tags), 'expected one of')}", True
    elif details["type"] == "missing":
        key = str(details["loc"][-1])
        text = f"key '{key}' is missing, expected {_described(path, tags, key)}"
    else:
        text = _text(details, path)
    if document.is_broken(dotted(path)):
        return None
    return document.place(path, of_key=of_key), dotted(path[:-1] if of_key else path), text


def _text(details: ErrorDetails, path: Path) -> str:
    kind, found = details["type"], details["input"]
    if path[-1:] == ("anonymise",) and isinstance(found, str):  # perhaps the key itself
        return "found a word, expected a mapping"
    context: Mapping[str, Any] = details.get("ctx") or {}
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"found {shown(found)}, expected a mapping"
    if kind == "list_type":
        return f"found {shown(found)}, expected a list"
    if kind == "too_short":
        return (
            f"found {'an empty mapping' if isinstance(found, dict) else 'an empty list'}, expected at least {context['min_length']} entry"
        )
    if kind == "too_long":
        return f"found {len(found)} entries, expected at most {context['max_length']}"
    return details["msg"]


def _written(document: Document, location: tuple[str | int, ...]) -> tuple[Path, list[str]]:
    """The path in the document, and the tags of the alternatives that were chosen on the way (they start with @ and stand in no document).

    A step that does not exist there is left out: the index of a single word that stands for a list, a missing key.
    """
    path: Path = ()
    tags = []
    value = document.value
    for step in location:
        if isinstance(step, str) and step in TAGGED:
            tags.append(step)
        elif isinstance(value, dict) and step in value:
            path, value = (*path, step), value[str(step)]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path, value = (*path, step), value[step]
    return path, tags


def _part(path: Path, tags: list[str]) -> type[Part]:
    """What the mapping at `path` is made into."""
    if path and path[-1] in NESTED:
        return NESTED[str(path[-1])]
    if tags:
        return TAGGED[tags[-1]]
    return next((SECTIONS[key] for key in (".".join(map(str, path[:2])), str(path[0])) if key in SECTIONS), Whole) if path else Whole


def _keys(path: Path, tags: list[str]) -> list[str]:
    """The keys that may stand where the last step of `path` stands; those of shapes, which many parts have, come last."""
    part = _part(path[:-1], tags) if len(path) > 1 else Whole
    return sorted(written_fields(part), key=lambda key: key in RemotePart.model_fields)


def _described(path: Path, tags: list[str], key: str) -> str:
    return written_fields(_part(path, tags))[key].description or "it"
