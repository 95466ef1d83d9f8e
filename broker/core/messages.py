"""What another process has said or written, taken in within bounds: msgpack and nothing else, and a refusal in words for what is none.

A message never takes more memory than a small multiple of its bytes: msgpack's own limits on arrays, maps and strings are the length of the
input. So what has to be bounded is that length, and what is asked of the values.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack

from broker.core.errors import PipelineError, TapmeshError

FILE_BYTES = 64 << 20
"""Of what a pipeline's processes write for each other: ten thousand rules take 2 MB."""


class MessageError(TapmeshError):
    """Not a message, or not one that means something here."""


def unpack(raw: bytes) -> Any:
    """The value. MessageError."""
    try:
        return msgpack.unpackb(raw)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise MessageError(f"not msgpack: {str(error) or type(error).__name__}") from None


def unpack_map(raw: bytes, **needed: type) -> dict[str, Any]:
    """A map in which at least `needed` is, of these types exactly. MessageError."""
    message = unpack(raw)
    if not isinstance(message, dict):
        raise MessageError(f"a {type(message).__name__}, expected a map")
    check(message, **needed)
    return message


def check(message: dict[str, Any], **needed: type) -> None:
    """MessageError unless `needed` is in it."""
    for name, kind in needed.items():
        if type(message.get(name)) is not kind:
            raise MessageError(f"{name}: expected {kind.__name__}, found {type(message.get(name)).__name__}")


def read_file(path: Path, most_bytes: int = FILE_BYTES) -> bytes:
    """All of it. FileNotFoundError as it comes; PipelineError for everything else, also when there is more than `most_bytes`."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > most_bytes:
        raise PipelineError(f"{path}: more than {most_bytes:,} bytes: damaged")
    return content


def damaged(path: Path, why: object) -> PipelineError:
    """What is raised of a file that holds something else than was written."""
    return PipelineError(f"{path}: damaged: {why}")
