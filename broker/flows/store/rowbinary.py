"""Columns -> RowBinary of ClickHouse, without a loop over rows.

A row is its values one after the other: numbers little-endian, text as its length (LEB128: one byte up to 127) and its bytes. All rows
are laid out with room for the longest text of each column, and what no text fills is left out in one go.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.flows.table import Table, Words, n_rows

LONGEST = 127
"""Of a text, in bytes; what is longer is cut."""


def encode(table: Table) -> bytes:
    """All rows, their columns in the order of `table`."""
    n = n_rows(table)
    parts: list[NDArray[np.uint8]] = []
    there: list[NDArray[np.bool_]] = []
    for column in table.values():
        if isinstance(column, Words):
            text, lengths = _padded(column.words)
            parts.append(text[column.codes])
            there.append(np.arange(text.shape[1]) <= lengths[column.codes, None])
        else:
            parts.append(column.astype(column.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(n, -1))
            there.append(np.ones((n, column.dtype.itemsize), bool))
    return np.concatenate(parts, axis=1)[np.concatenate(there, axis=1)].tobytes()


def _padded(words: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8[n_words, 1 + longest]: length and bytes of each; int64[n_words]: the lengths."""
    texts = [word.encode()[:LONGEST] for word in words]
    lengths = np.array([len(text) for text in texts], np.int64)
    padded = np.zeros((len(texts), 1 + int(lengths.max(initial=0))), np.uint8)
    padded[:, 0] = lengths
    for row, text in zip(padded, texts, strict=True):
        row[1 : 1 + len(text)] = np.frombuffer(text, np.uint8)
    return padded, lengths
