"""ClickHouse, over its HTTP interface: a request for each day that a segment touches.

Each row is there once: whoever does not know what became of a request (this process was killed, the connection broke) asks which rows are
there and sends the others only. A request that breaks off between two rows may have been taken for a whole one, so some of them may be
there. It asks only when the server has done with that request; until then the server refuses another with the same query_id, too.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.core.errors import TapmeshError
from broker.core.flow_model import Store
from broker.core.values import Tls
from broker.flows.export.transports import tls_context
from broker.flows.segments import Header, Rows, Segment
from broker.flows.store.base import StoreError
from broker.flows.store.migrations import APPLIED, MIGRATIONS, PARTITION_NS
from broker.flows.store.rowbinary import encode
from broker.flows.table import TIMES, part, to_table

TIMEOUT_S = 30.0
MOST_BYTES = 64 << 20  # of an answer: who asks for rows of a segment gets at most 10 for each
_MOST_BYTES = 256 << 20  # of an answer: 10 for each row of the longest segment are far less
_LOW_CARDINALITY = {"allow_experimental_low_cardinality_type": "1"}
"""Servers before 19.x want to be asked; later ones ignore it or do not know it."""


class ClickHouseStore:
    """See `base.StoreBackend`. TapmeshError when url, password or TLS files cannot be used."""

    held_bytes = 0
    expired_records = 0

    def __init__(self, store: Store) -> None:
        url = urllib.parse.urlsplit(store.url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise TapmeshError(f"flows.store.url: {store.url!r}, expected http(s)://host:port")
        self._host, self._database = url.hostname, store.database
        self._port = url.port or (8443 if url.scheme == "https" else 8123)
        tls = store.tls or Tls()
        self._tls = _context(tls) if url.scheme == "https" else None
        self._server_name = tls.server_name or self._host
        self._headers = {"X-ClickHouse-User": store.user or "default", **_password(store)}
        self._connection: http.client.HTTPConnection | None = None
        self._ready = False
        self._in_doubt = True  # the process before may have inserted the first segment

    def put(self, segment: Segment, header: Header, rows: Rows) -> int:
        try:
            return self._put(segment, header, rows)
        finally:
            self.close()  # a server ends one that is idle, and what is sent into it then is in doubt for nothing

    def _put(self, segment: Segment, header: Header, rows: Rows) -> int:
        if not self._ready:
            self._migrate()
        table = to_table(header, rows)
        days = rows[TIMES[header.kind]] // PARTITION_NS
        sent = 0
        for day in np.unique(days).tolist():
            chosen = np.flatnonzero(days == day)
            query_id = f"tapmesh-{header.node}-{header.kind}-{segment.name}-{day}"
            if self._in_doubt:
                self._await(query_id)
                chosen = chosen[self._missing(header, rows[chosen])]
                if not len(chosen):
                    continue
            content = encode(part(table, chosen))
            self._in_doubt = True
            names = ", ".join(table)
            query = f"INSERT INTO {header.kind} ({names}) FORMAT RowBinary"
            self._ask(query, content, query_id=query_id)
            self._in_doubt = False
            sent += len(content)
        self._in_doubt = False
        return sent

    def tend(self) -> None:
        """Merging and expiry are the server's."""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _await(self, query_id: str) -> None:
        """StoreError while the server still works on the request: what it has of it by now is not all that it will have."""
        query = f"SELECT count() FROM system.processes WHERE query_id = {quoted(query_id)}"  # noqa: S608 - quoted text
        if self._ask(query).strip() != b"0":
            raise StoreError(f"{self._host}:{self._port}: still works on a request whose connection has broken")

    def _missing(self, header: Header, rows: Rows) -> NDArray[np.bool_]:
        """Which of the rows, all of one day, are not there."""
        time = TIMES[header.kind]
        where = f"WHERE {time} BETWEEN {rows[time].min()} AND {rows[time].max()} AND node = {quoted(header.node)}"
        if header.kind == "meters":
            answer = self._ask(f"SELECT DISTINCT at_ns, name FROM meters {where} FORMAT TSVRaw")  # noqa: S608 - numbers, and quoted text
            known = {tuple(line.split(b"\t")) for line in answer.splitlines()}
            return np.array([(str(row["at_ns"]).encode(), row["name"]) not in known for row in rows], bool)
        where += f" AND run = {header.run} AND number BETWEEN {rows['number'].min()} AND {rows['number'].max()}"
        answer = self._ask(f"SELECT lane, number FROM flows {where} FORMAT RowBinary")  # noqa: S608 - numbers, and quoted text
        there = np.frombuffer(answer, [("lane", "<u2"), ("number", "<i8")])
        missing: NDArray[np.bool_] = ~np.isin(_one_number(rows), _one_number(there))
        return missing

    def _migrate(self) -> None:
        self._ask(f"CREATE DATABASE IF NOT EXISTS {identifier(self._database)}", database="")
        self._ask(APPLIED)
        found = int(self._ask("SELECT max(step) FROM migrations").strip() or 0)
        if found > len(MIGRATIONS):
            raise StoreError(f"{self._host}: database {self._database} was made by a later version (step {found}, here {len(MIGRATIONS)})")
        for step in range(found + 1, len(MIGRATIONS) + 1):
            # One that was killed between the two statements had made the table already.
            self._ask(MIGRATIONS[step - 1].replace("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ", 1), settings=_LOW_CARDINALITY)
            self._ask(f"INSERT INTO migrations VALUES ({step}, now())")  # noqa: S608 - a number
        self._ready = True

    def _ask(
        self,
        query: str,
        content: bytes | None = None,
        *,
        query_id: str = "",
        database: str | None = None,
        settings: dict[str, str] | None = None,
    ) -> bytes:
        """The answer. StoreError with what the server says, or why there is no answer."""
        parameters = {"database": self._database if database is None else database, **(settings or {})}
        if query_id:
            parameters["query_id"] = query_id
        if content is not None:
            parameters["query"] = query
        path = "/?" + urllib.parse.urlencode({name: value for name, value in parameters.items() if value})
        try:
            connection = self._connection = self._connection or self._connect()
            connection.request("POST", path, content if content is not None else query.encode(), self._headers)
            response = connection.getresponse()
            answer = response.read(MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise StoreError(f"{self._host}:{self._port}: {error or type(error).__name__}") from None
        if len(answer) > MOST_BYTES:
            self.close()
            raise StoreError(f"{self._host}:{self._port}: answers with more than {MOST_BYTES:,} bytes")
        if response.status != http.client.OK:
            self.close()  # it may not have read all of the request
            words = answer.decode(errors="replace").strip().partition("\n")[0][:500]
            raise StoreError(f"{self._host}:{self._port}: {response.status}: {words}")
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return _Https(self._host, self._port, self._tls, self._server_name)
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)


def _one_number(rows: NDArray[np.void]) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = rows["lane"].astype(np.int64) << 48 | rows["number"]
    return numbers


class _Https(http.client.HTTPSConnection):
    """To a server whose certificate may be for another name than the one it is dialled by."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S, context=context)
        self._tls, self._server_name = context, server_name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)


def quoted(text: str) -> str:
    """A string for a query."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    """A name for a query."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _context(tls: Tls) -> ssl.SSLContext:
    """TapmeshError when a file is not there or not what it should be."""
    try:
        return tls_context(tls)
    except OSError as error:
        files = ", ".join(f"{name} '{file}'" for name, file in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)) if file)
        raise TapmeshError(f"flows.store.tls: {files}: {error.strerror or error}") from None


def _password(store: Store) -> dict[str, str]:
    if not store.password_file:
        return {}
    try:
        return {"X-ClickHouse-Key": Path(store.password_file).read_text().partition("\n")[0].rstrip("\r")}
    except (OSError, UnicodeDecodeError) as error:
        raise TapmeshError(f"flows.store.password_file: {store.password_file}: {error}") from None
