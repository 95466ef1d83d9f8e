"""What a single value below `flows` may be: as `scalars`."""

from __future__ import annotations

import re
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from broker.config.scalars import Wrong, alternatives, endpoint, host, is_close, name, net, server_name, shown, suggest, text

NAME_LEN = 32
"""Of an export: what its row in shared memory has room for."""
DATABASE_PATTERN = "^[A-Za-z_][A-Za-z0-9_]{0,62}$"
TOPIC_PATTERN = "^[A-Za-z0-9._-]{1,200}$"

_SET = re.compile(r"\$[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_PORT = re.compile("[0-9]{1,5}")


def collector(value: Any, schemes: tuple[str, ...]) -> str:
    """``udp://address:port`` with one of `schemes`; IPv6 in brackets."""
    expected = f"expected {alternatives([f'{scheme}://' for scheme in schemes])} and address:port, such as {schemes[0]}://192.0.2.9:4739"
    word = text(value, expected.removeprefix("expected "))
    scheme, mark, rest = word.partition("://")
    if not mark:
        raise Wrong(f"{shown(value)} is not where to send, {expected}")
    if scheme not in schemes:
        raise Wrong(f"unknown word '{scheme}', {expected}{suggest(scheme, schemes) if is_close(scheme, schemes) else ''}")
    try:
        where = endpoint(rest)
        address, _, port = where.rpartition(":")
        host(address.strip("[]"))
    except Wrong as wrong:
        raise Wrong(str(wrong)) from None
    if port == "0":
        raise Wrong("port 0 cannot be sent to, expected 1..65535")
    return f"{scheme}://{where}"


def split_collector(word: str) -> tuple[Literal["udp", "tcp", "tls"], str, int]:
    """Scheme, address and port of what `collector` gave."""
    scheme, _, rest = word.partition("://")
    address, _, port = rest.rpartition(":")
    return cast(Literal["udp", "tcp", "tls"], scheme), address.strip("[]"), int(port)


def url(value: Any) -> str:
    """``http://host:port`` or ``https://host:port``, and nothing behind it: no path, no user."""
    expected = "expected http:// or https:// and host:port, such as http://127.0.0.1:8123"
    word = text(value, expected.removeprefix("expected "))
    try:
        found = urlsplit(word)
        port = found.port
    except ValueError:
        raise Wrong(f"{shown(value)} is not a URL, {expected}") from None
    if found.username is not None or found.password is not None:
        raise Wrong("a user or a password in it would be shown wherever it is, expected the keys 'user' and 'password_file'")
    if found.scheme not in ("http", "https") or not found.hostname or found.path not in ("", "/") or found.query or found.fragment:
        raise Wrong(f"{shown(value)} is not the URL of a server, {expected}")
    server_name(found.hostname)
    where = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    return f"{found.scheme}://{where}:{port or {'http': 8123, 'https': 8443}[found.scheme]}"


def server(value: Any) -> str:
    """``host:port``; a name or an address, IPv6 in brackets."""
    word = text(value, "host:port")
    if word.startswith("["):
        return endpoint(value)
    at, _, port = word.rpartition(":")
    if ":" in at or not at or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65_535:
        raise Wrong(f"{shown(value)} is not host:port, expected such as kafka1.example.net:9092 or '[2001:db8::1]:9092'")
    return f"{server_name(at)}:{int(port)}"


def database(value: Any) -> str:
    word = text(value, "the name of a database")
    if not re.fullmatch(DATABASE_PATTERN, word):
        raise Wrong(f"{shown(value)} is not the name of a database, expected up to 63 letters, digits and '_', not starting with a digit")
    return word


def topic(value: Any) -> str:
    """Kafka takes 249 characters; some are left for what is put behind it."""
    word = text(value, "the name of a topic")
    if not re.fullmatch(TOPIC_PATTERN, word) or word in (".", ".."):
        raise Wrong(f"{shown(value)} is not the name of a topic, expected up to 200 letters, digits, '.', '_' and '-'")
    return word


def export_name(value: Any) -> str:
    word = name(value)
    if len(word) > NAME_LEN:
        raise Wrong(f"{shown(value)} is too long for an export, expected up to {NAME_LEN} characters")
    if word == "store":
        raise Wrong("'store' is what the store is called in counters, expected another name")
    return word


def site_net(value: Any) -> str:
    """An address, a net, or ``$NAME`` of a set."""
    word = text(value, "an address, a net or $SET")
    if word.startswith("$"):
        if not _SET.fullmatch(word):
            raise Wrong(f"{shown(value)} is not $ and the name of a set")
        return word
    return net(value)
