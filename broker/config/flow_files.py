"""The secrets that `flows` names: files, because what stands in a configuration is shown, stored and sent to managers."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from broker.config.document import Document, Error, dotted
from broker.core.flow_model import Flows

KEY_BYTES = 32
NO_SUCH_FILE = "there is no file of that name, expected the name of a file that holds it"
"""The name is not shown: it may be the secret itself."""


def read_key(file: str) -> bytes:
    """The 32 bytes with which addresses are replaced. ValueError, in words, where the file cannot be read or holds something else."""
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(4096)
    except OSError as error:
        raise ValueError(_unread(file, error)) from None
    if len(content) == KEY_BYTES:
        return content
    text = content.strip()
    if re.fullmatch(rb"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text.decode())
    raise ValueError(f"'{file}' holds {len(content)} bytes, expected {KEY_BYTES}, or 64 hexadecimal digits (openssl rand -hex 32)")


def read_password(file: str) -> str:
    """Its first line. ValueError, in words, where there is none."""
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(4096)
        password = content.decode().partition("\n")[0].rstrip("\r")
    except OSError as error:
        raise ValueError(_unread(file, error)) from None
    except UnicodeDecodeError:
        raise ValueError(f"'{file}' holds no UTF-8, expected a password in its first line") from None
    if not password:
        raise ValueError(f"'{file}' has an empty first line, expected a password in it")
    return password


def _unread(file: str, error: OSError) -> str:
    exists = os.path.lexists(file)
    return f"'{file}' cannot be read: {error.strerror}" if exists else NO_SUCH_FILE


def check_secrets(flows: Flows, document: Document) -> Iterator[Error]:
    for path, file in secrets(flows):
        try:
            read_key(file) if path[-1] == "key_file" else read_password(file)
        except ValueError as error:
            yield document.place(path), dotted(path), str(error)


def secrets(flows: Flows) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where each is named, and its file."""
    if flows.anonymise_key_file:
        yield ("flows", "anonymise", "key_file"), flows.anonymise_key_file
    if flows.store and flows.store.password_file:
        yield ("flows", "store", "password_file"), flows.store.password_file


def readable_by_others(file: str) -> bool:
    """False where it cannot be looked at."""
    try:
        return bool(os.stat(file).st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False
