"""What must hold within a tool that has no tunnel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from broker.config.checking import check_one_of, error_at
from broker.config.document import Document, Error, Path, Text

ROTATE = ("rotate_bytes", "rotate_s")
ROTATED = ("keep_files", "compress")


def check_tool(document: Document, path: Path, value: dict[str, Any]) -> Iterator[Error]:
    kind = value.get("kind")
    if kind in ("pcap", "pcapng"):
        yield from _file(document, path, value)
    elif kind == "stream":
        yield from _stream(document, path, value)


def written_file(path: Path, value: dict[str, Any]) -> tuple[Path, str] | None:
    """The one file that the tool writes, and where it is said."""
    if value.get("kind") not in ("pcap", "pcapng") or any(key in value for key in ROTATE):
        return None
    if isinstance(value.get("file"), Text) and "directory" not in value:
        return (*path, "file"), os.path.normpath(value["file"])
    if isinstance(value.get("directory"), Text) and "file" not in value:
        return (*path, "directory"), os.path.normpath(os.path.join(value["directory"], f"{path[-1]}.{value['kind']}"))
    return None


def _file(document: Document, path: Path, value: dict[str, Any]) -> Iterator[Error]:
    yield from check_one_of(document, path, value, "file", "directory")
    if "directory" not in value:
        for key in (*ROTATE, *ROTATED):
            if key in value:
                yield error_at(document, (*path, key), "files that follow one another need a directory, expected directory instead of file")
    elif not any(key in value for key in ROTATE):
        for key in ROTATED:
            if key in value:
                yield error_at(document, (*path, key), "there is one file only, expected rotate_bytes or rotate_s too")


def _stream(document: Document, path: Path, value: dict[str, Any]) -> Iterator[Error]:
    yield from check_one_of(document, path, value, "connect", "listen")
    if isinstance(value.get("connect"), Text) and value["connect"].endswith(":0"):
        yield error_at(document, (*path, "connect"), "port 0 cannot be dialled, expected 1..65535")
    tls = value.get("tls")
    if not isinstance(tls, dict):
        return
    if "key" in tls and "cert" not in tls:
        yield error_at(document, (*path, "tls", "key"), "a key without its certificate, expected cert too")
    if "listen" in value:
        if "cert" not in tls:
            yield error_at(document, (*path, "tls"), "whoever listens has a certificate, expected cert")
        for key in ("server_name", "verify"):
            if key in tls:
                yield error_at(document, (*path, "tls", key), "is about the receiver that is dialled, expected connect instead of listen")
