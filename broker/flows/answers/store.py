"""The stored files as tables to ask, with DuckDB."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from broker.config.records.conditions import quoted
from broker.core.errors import TapmeshError
from broker.flows.answers.times import HOUR_NS, Period
from broker.flows.columns import FLOWS, METERS, Column
from broker.flows.store.hours import files

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")
FLOWS_TABLE, METERS_TABLE = "flows", "meters"
_COLUMNS = {FLOWS_TABLE: FLOWS, METERS_TABLE: METERS}
_TIMES = {FLOWS_TABLE: "last_ns", METERS_TABLE: "at_ns"}
_RETRIES = 3
_EVER_NS = (1 << 63) - 1
_ROWS_AT_ONCE = 1000


def import_duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise TapmeshError("stored flow records are asked with DuckDB, which is not installed: pip install 'tapmesh[flows]'") from None
    return duckdb


class Store:
    """Asks one directory, which is only read."""

    def __init__(self, directory: Path, threads: int = 0) -> None:
        try:
            os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            raise TapmeshError(f"{directory}: there is no store here") from None
        except OSError as error:
            raise TapmeshError(f"{directory}: {error.strerror}") from None
        self.directory = directory
        self._duckdb = import_duckdb()
        # For what memory does not hold: ours alone, because a name that can be guessed could be somebody else's already.
        spilled = tempfile.mkdtemp(prefix="tapmesh-flows-")
        weakref.finalize(self, shutil.rmtree, spilled, ignore_errors=True)
        settings = {"temp_directory": spilled, "autoinstall_known_extensions": False}  # nothing is loaded from the network
        self._connection: duckdb.DuckDBPyConnection = self._duckdb.connect(":memory:", config=settings)
        self.run("SET preserve_insertion_order = false")  # answers are ordered by what they are about
        self.run("SET TimeZone = 'UTC'")
        if threads:
            self.run(f"SET threads = {threads}")

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql).fetchall()

    def make_table(self, name: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Any]]) -> None:
        """A table of our own, not stored: (name, type) of each column."""
        self.run(f"CREATE OR REPLACE TEMP TABLE {name} ({', '.join(f'{column} {type_}' for column, type_ in columns)})")
        lines = [f"({', '.join(_literal(cell) for cell in row)})" for row in rows]
        for at in range(0, len(lines), _ROWS_AT_ONCE):
            self.run(f"INSERT INTO {name} VALUES {', '.join(lines[at : at + _ROWS_AT_ONCE])}")

    @property
    def io_error(self) -> type[Exception]:
        """What a file that has gone raises."""
        found: type[Exception] = self._duckdb.IOException
        return found

    def services(self, period: Period, condition: str = "true") -> str:
        """`flows`, where the port of the destination says what is served: of ICMP its type, which stands in the other port."""
        port = "CASE WHEN protocol IN (1, 58) THEN source_port ELSE destination_port END AS destination_port"
        return f"(SELECT * REPLACE ({port}) FROM {self.flows(period, condition)})"

    def flows(self, period: Period, condition: str = "true", *, whole_files: bool = False) -> str:
        """The records of a time (by `last_ns`) as something to select from. `whole_files`: and what else lies in their files."""
        whole, edges = self.files(period)
        return self.records([*whole, *edges], [], None, condition) if whole_files else self.records(whole, edges, period, condition)

    def others(self, period: Period) -> str:
        """The records of all files but those that `flows` reads `whole_files` of, as something to select from."""
        read = {path for paths in self.files(period) for path in paths}
        return self.records([path for path in files(self.directory, 0, _EVER_NS) if path not in read], [], None)

    def meters(self, period: Period, condition: str = "true") -> str:
        whole, edges = self.files(period, METERS_TABLE)
        return self.records(whole, edges, period, condition, METERS_TABLE)

    def files(self, period: Period, table: str = FLOWS_TABLE) -> tuple[list[Path], list[Path]]:
        """Those of hours that lie in the time as a whole, and the others that have rows of it."""
        found = files(self.directory, period.from_ns, period.to_ns, table)
        hours = (-(-period.from_ns // HOUR_NS) * HOUR_NS, period.to_ns // HOUR_NS * HOUR_NS)
        within = {path.parent for path in files(self.directory, *hours, table)}
        return [path for path in found if path.parent in within], [path for path in found if path.parent not in within]

    def records(
        self, whole: list[Path], edges: list[Path], period: Period | None, condition: str = "true", table: str = FLOWS_TABLE
    ) -> str:
        """Something to select from: all rows of the files `whole`, and those of `edges` that are of the time. Only these are asked for the
        time of each row: reading a column more costs."""
        parts = [_read(whole, condition)] if whole else []
        if edges and period is not None:
            time = _TIMES[table]
            parts.append(_read(edges, f"{time} >= {period.from_ns} AND {time} < {period.to_ns} AND {condition}"))
        return f"({' UNION ALL '.join(parts)})" if parts else _empty(_COLUMNS[table])

    def answered(self, question: Callable[[], T]) -> T:
        """What `question` returns; asked again when a file has gone meanwhile, as files do that are put together or grow old."""
        for left in reversed(range(_RETRIES)):
            try:
                return question()
            except self._duckdb.IOException as error:
                if not left:
                    raise TapmeshError(f"{self.directory}: {error}") from None
            except self._duckdb.OutOfMemoryException as error:
                raise TapmeshError(f"{self.directory}: not enough memory for this; ask for a shorter time: {error}") from None
            except self._duckdb.Error as error:  # what is wrong with a file has no class of its own
                raise TapmeshError(f"{self.directory}: a file is damaged, or it cannot be asked that: {error}") from None
            except OSError as error:
                raise TapmeshError(f"{error.filename or self.directory}: {error.strerror}") from None
        raise AssertionError


def _read(paths: list[Path], condition: str) -> str:
    listed = ", ".join(quoted(str(path)) for path in paths)
    return f"SELECT * FROM read_parquet([{listed}], hive_partitioning = false) WHERE {condition}"


def _literal(cell: Any) -> str:
    if cell is None:
        return "NULL"
    return quoted(cell) if isinstance(cell, str) else repr(cell)


def _empty(columns: tuple[Column, ...]) -> str:
    typed = ", ".join(f"NULL::{column.duckdb} AS {column.name}" for column in columns)
    return f"(SELECT * FROM (SELECT {typed}) WHERE false)"
