"""What keys are made of: annotations that say how a value is read and described to editors, and what all parts have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from broker.config import scalars


@dataclass(frozen=True, eq=False, slots=True)
class Parsed:
    """An annotation: values go through `parse` first; `json` describes what may be written."""

    parse: Callable[[Any], Any]
    json: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.json)


def whole(low: int, high: int) -> Parsed:
    number: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    # To an editor that reads YAML 1.2 a number like 1_000_000 is text.
    grouped = {"type": "string", "pattern": "^[1-9][0-9]{0,2}(_[0-9]{3})+$"}
    return Parsed(partial(scalars.integer, low=low, high=high), {"anyOf": [number, grouped]} if high >= 100_000 else number)


def power_of_two(low: int, high: int) -> Parsed:
    powers = [1 << n for n in range(low.bit_length() - 1, high.bit_length())]
    return Parsed(partial(scalars.power_of_two, low=low, high=high), {"enum": powers})


def choice(*words: str) -> Parsed:
    return Parsed(partial(scalars.choice, words=words), {"type": "string", "enum": list(words)})


def text(parse: Callable[[Any], str], **json: Any) -> Parsed:
    return Parsed(parse, {"type": "string", **json})


def kind(word: str) -> Parsed:
    return Parsed(str, {"const": word})


NAME = text(scalars.name, pattern=scalars.NAME_PATTERN)
FILE = text(scalars.file, minLength=1)
INTERFACE = text(scalars.interface, minLength=1, maxLength=15)
TRUTH = Parsed(scalars.boolean, {"type": "boolean"})


@dataclass(frozen=True, slots=True)
class OneOrMany:
    """An annotation: a list, for which a single word may stand, or a single mapping."""

    mappings: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(partial(scalars.one_or_many, mappings=self.mappings), handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        listed = handler(schema)
        listed = next((option for option in listed.get("anyOf", ()) if option.get("type") == "array"), listed)
        return {"anyOf": [listed["items"], listed]}


Names = Annotated[list[Annotated[str, NAME]], OneOrMany()]


def defaults(cls: type) -> dict[str, Any]:
    """Of the frozen value that a part becomes: said once, there."""
    return {f.name: f.default for f in fields(cls) if f.default is not MISSING}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def written_fields(part: type[Part]) -> dict[str, FieldInfo]:
    """By the key that stands in a document: `from` cannot be a name in Python."""
    return {field.alias or name: field for name, field in part.model_fields.items()}


def tagged_kind(value: Any) -> str:
    return f"@{value['kind']}" if isinstance(value, dict) else f"@{value.kind}"
