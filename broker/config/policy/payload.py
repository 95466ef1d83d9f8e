"""``payload begins "GET "``: the first bytes of what TCP, UDP, SCTP or ICMP carry."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from broker.config.policy import link, tree
from broker.config.policy.errors import PolicyError
from broker.config.policy.tree import And, Node

if TYPE_CHECKING:
    from broker.config.policy.parser import Parser

MAX_BYTES = 64
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_CONTROLS = {"r": "\r", "n": "\n", "t": "\t", "0": "\0"}


def begins(p: Parser) -> Node:
    p.next()
    if not p.is_name("begins"):
        raise p.unexpected("'begins' or '['")
    p.next()
    token = p.peek()
    if token.kind != "text":
        raise p.unexpected('text in quotes, such as "GET " or "\\x16\\x03"')
    p.next()
    wanted = _bytes(token.text, token.at)
    items: list[Node] = []
    at = 0
    while at < len(wanted):
        size = next(size for size in (4, 2, 1) if size <= len(wanted) - at)
        number = int.from_bytes(wanted[at : at + size], "big")
        items.append(link.equals(link.field(p.layer, tree.PAYLOAD, at, size), number))
        at += size
    return And(tuple(items)) if len(items) > 1 else items[0]


def _bytes(text: str, at: int) -> bytes:
    """``\\x16`` and such for what has no letter; all else as UTF-8."""
    parts, start = [], 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[start : match.start()].encode())
        escape, start = match.group(1), match.end()
        if len(escape) == 3:
            parts.append(bytes([int(escape[1:], 16)]))
        elif escape in _CONTROLS or escape in ('"', "\\"):
            parts.append(_CONTROLS.get(escape, escape).encode())
        else:
            raise PolicyError(f"'\\{escape}' means nothing: expected \\xNN, \\r, \\n, \\t, \\0, \\\" or \\\\", at + 1 + match.start())
    found = b"".join((*parts, text[start:].encode()))
    if not 0 < len(found) <= MAX_BYTES:
        raise PolicyError(f"{len(found)} bytes, expected 1 to {MAX_BYTES}", at)
    return found
