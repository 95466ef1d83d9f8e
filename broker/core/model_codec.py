"""Frozen values of `model` as bytes and back: what a generation file holds. Needs msgpack only, so that workers need neither YAML nor
pydantic.

A value with fields is a map of field name to value, a tuple an array. Reading follows the types that `model` declares: what is missing,
too much or of another type is a PipelineError, so a file that another version wrote is refused in words and not half understood.
"""

from __future__ import annotations

import functools
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack

from broker.core.errors import PipelineError, VersionError
from broker.core.messages import MessageError, unpack
from broker.core.model import Config


def to_bytes(config: Config) -> bytes:
    packed: bytes = msgpack.packb(_plain(config))
    return packed


def from_bytes(content: bytes, *, rules: bool = True) -> Config:
    """PipelineError when `content` is not what `to_bytes` of this version made. Without `rules` maps have none: ten thousand take half a
    second."""
    try:
        plain = unpack(content)
    except MessageError as error:
        raise PipelineError(f"configuration of a generation: {error}") from None
    if not rules and isinstance(plain, dict) and isinstance(plain.get("maps"), list):
        plain["maps"] = [{**one, "rules": []} if isinstance(one, dict) else one for one in plain["maps"]]
    config: Config = _read(Config, plain, "config")
    return config


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _read(declared: Any, plain: Any, path: str) -> Any:
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return None if plain is None else _read(next(a for a in arguments if a is not types.NoneType), plain, path)
    if origin is tuple and isinstance(plain, list):
        return tuple(_read(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(plain))
    if origin is dict and isinstance(plain, dict):
        return {key: _read(arguments[1], item, f"{path}.{key}") for key, item in plain.items()}
    if origin is Literal and plain in arguments:
        return plain
    if isinstance(declared, type) and is_dataclass(declared) and isinstance(plain, dict):
        return _record(declared, plain, path)
    if declared is float and type(plain) in (int, float):
        return plain
    if isinstance(declared, type) and type(plain) is declared:
        return plain
    raise PipelineError(f"configuration of a generation: {path}: expected {declared}, found {plain!r}")


def _record(cls: type, plain: dict[str, Any], path: str) -> Any:
    hints = _hints(cls)
    if unknown := plain.keys() - hints.keys():
        raise VersionError(f"configuration of a generation: {path}: unknown {sorted(unknown)}; another version wrote it")
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    if missing := needed - plain.keys():
        raise VersionError(f"configuration of a generation: {path}: {sorted(missing)} missing; another version wrote it")
    return cls(**{name: _read(hints[name], item, f"{path}.{name}") for name, item in plain.items()})
