"""What is done to records before anything of them leaves the exporter: addresses replaced, attributes emptied."""

from __future__ import annotations

from collections.abc import Callable

from broker.config.flow_files import read_key
from broker.core.errors import TapmeshError
from broker.core.flow_model import Flows
from broker.core.flow_ring import Rows
from broker.flows.export.anonymise import Anonymiser
from broker.flows.export.minimise import minimise

Prepare = Callable[[Rows], Rows]


def make_prepare(flows: Flows) -> Prepare:
    """Changes the rows that it is given. TapmeshError: the key cannot be read, or what it needs is not installed."""
    anonymiser = _anonymiser(flows.anonymise_key_file) if flows.anonymise_key_file else None

    def prepare(rows: Rows) -> Rows:
        if anonymiser is not None:
            anonymiser.replace(rows)
        minimise(rows, flows.drop)
        return rows

    return prepare


def _anonymiser(file: str) -> Anonymiser:
    try:
        return Anonymiser(read_key(file))
    except ValueError as error:
        raise TapmeshError(f"flows.anonymise.key_file: {error}") from None
