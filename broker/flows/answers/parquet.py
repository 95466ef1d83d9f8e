"""An answer as a Parquet file that says by itself what it is about."""

from __future__ import annotations

import json

from broker.config.records.conditions import quoted
from broker.core.errors import TapmeshError
from broker.flows.answers.answer import Answer
from broker.flows.answers.store import Store

_TYPES = {"text": "VARCHAR", "share": "DOUBLE", "rate": "DOUBLE", "micros": "DOUBLE"}


def write_parquet(answer: Answer, path: str, store: Store) -> None:
    """The facts and notes are in the file's metadata (`parquet_kv_metadata`), under `tapmesh`; times become timestamps (UTC)."""
    store.make_table("answer", [(column.key, _TYPES.get(column.kind, "BIGINT")) for column in answer.columns], answer.rows)
    columns = [
        f"make_timestamp_ns({column.key}) AS {column.key.removesuffix('_ns')}" if column.kind == "time" else column.key
        for column in answer.columns
    ]
    facts = json.dumps({"title": answer.title, **answer.facts, "notes": list(answer.notes)})
    options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{tapmesh: {quoted(facts)}}}"
    try:
        store.run(f"COPY (SELECT {', '.join(columns)} FROM answer) TO {quoted(path)} ({options})")
    except store.io_error as error:
        raise TapmeshError(f"{path}: {error}") from None
