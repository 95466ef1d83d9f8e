"""Columns -> a Parquet file, through DuckDB."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from broker.core.errors import TapmeshError
from broker.flows.segments import sync_directory
from broker.flows.table import Table, Words

MEMORY_LIMIT = "192MB"
"""Of DuckDB; compaction needs most."""
ROW_GROUP = 122_880


def connect() -> Any:
    """A DuckDB in memory. TapmeshError when it is not installed."""
    try:
        import duckdb
    except ImportError:
        raise TapmeshError("the store of files needs DuckDB: install the extra `flows` (pip install 'tapmesh[flows]')") from None
    # One thread: the packet path has the better claim to the other cores.
    return duckdb.connect(":memory:", config={"threads": 1, "memory_limit": MEMORY_LIMIT})


def write(connection: Any, table: Table, path: Path) -> int:
    """The columns as a file, durably; how many bytes. What had that name is replaced."""
    # Text is joined to its numbers there: an object for each row would take twice the time of all other columns.
    views: dict[str, dict[str, Any]] = {"numbers": {}}
    select, joins = [], ""
    for name, column in table.items():
        if isinstance(column, Words):
            views["numbers"][name] = column.codes
            words = np.array([*column.words, None], object)[:-1]  # never an array of arrays, nor of fixed width
            views[f"words_{name}"] = {"code": np.arange(len(words), dtype=np.int32), "word": words}
            joins += f" JOIN words_{name} ON words_{name}.code = numbers.{name}"
            select.append(f"words_{name}.word AS {name}")
        else:
            views["numbers"][name] = column
            select.append(f"numbers.{name}")
    for view, arrays in views.items():
        connection.register(view, arrays)
    try:
        return copy(connection, f"SELECT {', '.join(select)} FROM numbers{joins}", path, level=1)  # noqa: S608 - names of columns
    finally:
        for view in views:
            connection.unregister(view)


def copy(connection: Any, select: str, path: Path, *, level: int = 3) -> int:
    """The rows of a query as a file that appears whole or not at all; its bytes. `level` of zstd. OSError also when the disk is full, which
    DuckDB tells in words of its own."""
    import duckdb

    scratch = path.with_name(f".{path.name}.tmp")
    options = f"FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL {level}, ROW_GROUP_SIZE {ROW_GROUP}"
    try:
        connection.execute(f"COPY ({select}) TO {quoted(scratch)} ({options})")
        fd = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            n_bytes = os.fstat(fd).st_size
        finally:
            os.close(fd)
        scratch.rename(path)
    except (duckdb.Error, OSError) as error:
        scratch.unlink(missing_ok=True)  # on a full disk it is what keeps the next from finding room
        if isinstance(error, duckdb.IOException) and os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise
    sync_directory(path.parent)
    return n_bytes


def quoted(*paths: Path) -> str:
    """For SQL, with commas between them."""
    return ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
