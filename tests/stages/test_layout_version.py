"""Rows in shared memory beside those of `broker.core.layout`, which carry no version of their own: they belong to a pipeline of one
LAYOUT_VERSION, and the next version of tapmesh may meet them running."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from broker.core import rule_counts, senders
from broker.core.layout import LAYOUT_VERSION
from stages.capture import endpoint_kernels, reading, received

ROWS = (
    rule_counts.RULES, rule_counts.HALF, rule_counts.RULE_COUNT,
    senders.SENDERS, senders.SENDER, senders.NOTE,
    endpoint_kernels.SOCKET, received.DROPS, reading.READING,
)  # fmt: skip
SEEN = (6, "3ed08c2c5110946f")
"""The version, and what the rows were in it."""


def drawn(row: np.dtype[Any]) -> list[tuple[str, str, int]]:
    assert row.fields is not None
    return [(name, str(field[0]), field[1]) for name, field in row.fields.items()]


def test_whoever_changes_a_row_in_shared_memory_raises_the_version() -> None:
    """Then write here what is found."""
    facts = repr([(drawn(row), row.itemsize) for row in ROWS]) + str((endpoint_kernels.VECTORS, received.FAMILIES))
    found = hashlib.sha256(facts.encode()).hexdigest()[:16]
    assert (LAYOUT_VERSION, found) == SEEN
