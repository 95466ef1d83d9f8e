"""Frozen values that parts of a configuration have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the operator's file something was written; columns and lines from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Sample:
    one_in: int
    by: Literal["packet", "flow"] = "flow"


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of PEM; what is not given is empty."""

    ca: str = ""  # dialling: empty is what the system trusts; listening: readers must show a certificate of it
    cert: str = ""
    key: str = ""  # empty: in `cert`
    server_name: str = ""  # dialling; empty: the address
    verify: bool = True
