"""The fields of a packet in one line, as on a command line: ``ip.src=10.1.0.5 tcp.dst=443 tcp.flags=syn,ack``.

A field alone is ``field=true``. Lists have commas; the packet inside is in parentheses, ``vxlan.vni=5 inner=(ip.dst=10.0.0.1)``; a value
with blanks or any of ``"'(),`` is in quotes, in double ones with the escapes of JSON. What starts with ``{`` is read as in a configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from broker.config.document import Text, read_document
from broker.core.errors import ConfigErrors
from broker.core.model import Place

SOURCE = "packet"
"""The name of the file in messages."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<name>[A-Za-z0-9_.]+)|(?P<mark>[()=,])|(?P<end>\Z)|(?P<bad>.))""",
    re.DOTALL,
)
_VALUE = re.compile(r"""\s*(?:(?P<double>"(?:[^"\\]|\\.)*")|'(?P<single>[^']*)'|(?P<plain>[^\s"'(),]+))""", re.DOTALL)
_PLAIN = re.compile(r"""[^\s"'(),]+""")


def parse_fields(text: str) -> dict[str, Any]:
    """As they would stand in a configuration, for `build`. ConfigErrors says at which column the text is wrong."""
    if text.lstrip().startswith("{"):
        document = read_document(text, SOURCE)
        if document.errors:
            raise ConfigErrors(document.errors)
        found: dict[str, Any] = document.value
        return found
    reader = _Reader(text)
    found = reader.fields()
    reader.expect_end()
    return found


def fields_text(fields: Mapping[str, Any]) -> str:
    """What `parse_fields` reads as the same fields."""
    return " ".join(f"{name}={_written(value)}" for name, value in fields.items())


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({fields_text(value)})"
    if isinstance(value, list):
        return ",".join(map(_written, value))
    word = str(value)
    return word if _PLAIN.fullmatch(word) else json.dumps(word, ensure_ascii=False)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while name := self._name():
            if name in found:
                self._fail(f"'{name}' is given twice")
            found[name] = self._value(name) if self._take("=") else Text("true")
        return found

    def expect_end(self) -> None:
        token = self._token()
        if token.lastgroup != "end":
            self._fail(f"found '{token[token.lastgroup or 0]}', expected a field such as tcp.dst=443", token.start(token.lastgroup or 0))

    def _value(self, name: str) -> Any:
        if self._take("("):
            found = self.fields()
            if not self._take(")"):
                self._fail(f"the parenthesis of '{name}' is not closed")
            return found
        values = [self._word(name)]
        while self._take(","):
            values.append(self._word(name))
        return values[0] if len(values) == 1 else values

    def _word(self, name: str) -> Text:
        match = _VALUE.match(self.text, self.at)
        if match is None:
            self._fail(f"a value of '{name}' is missing")
        self.at = match.end()
        if match["double"] is None:
            return Text(match["single"] if match["plain"] is None else match["plain"])
        try:
            return Text(json.loads(match["double"], strict=False))
        except ValueError:
            self._fail(f"the value of '{name}' has an escape that JSON has not", match.start("double"))

    def _name(self) -> str:
        token = self._token()
        if token.lastgroup != "name":
            return ""
        self.at = token.end()
        return token["name"]

    def _take(self, mark: str) -> bool:
        token = self._token()
        if token["mark"] != mark:
            return False
        self.at = token.end()
        return True

    def _token(self) -> re.Match[str]:
        token = _TOKEN.match(self.text, self.at)
        assert token is not None  # the last alternative takes anything
        return token

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        before = self.text[: self.at if at is None else at]
        place = Place(SOURCE, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise ConfigErrors([(place, "", what)])
