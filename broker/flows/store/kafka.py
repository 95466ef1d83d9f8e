"""Kafka: a message for each record, JSON, acknowledged by all replicas that are in sync before its segment is removed.

A topic takes messages; it does not know that one has come before. Within the life of this process the producer is idempotent; a segment
that it was killed over comes once more. The key, ``NODE/RUN/LANE/NUMBER``, tells a record from all others: who reads can leave out what
has come, and a compacted topic does. Meters go to the topic with ``.meters`` behind its name, key ``NODE/KIND/NAME/AT_NS``.

The fields are the columns of `broker.flows.columns`, but `source` and `destination` are addresses as text: half of one is more than
the numbers of most readers of JSON hold.
"""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core.errors import TapmeshError
from broker.core.flow_model import Store
from broker.flows.segments import Header, Rows, Segment
from broker.flows.store.base import StoreError
from broker.flows.table import Numbers, Words, to_table

TIMEOUT_S = 5.0
"""How long a segment is waited for at a time."""

Message = tuple[bytes, bytes]
"""Key and value."""


class KafkaStore:
    """See `base.StoreBackend`. TapmeshError when the extra is not installed, or the options are not what librdkafka takes."""

    held_bytes = 0
    expired_records = 0

    def __init__(self, store: Store, **options: str) -> None:
        try:
            import confluent_kafka
        except ImportError:
            raise TapmeshError("the store kafka needs confluent-kafka: install the extra `kafka` (pip install 'tapmesh[kafka]')") from None
        self._topics = {"flows": store.topic, "meters": f"{store.topic}.meters"}
        self._servers = ", ".join(store.servers)
        self._refused = ""
        self._job: _Job | None = None
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(store.servers),
            "client.id": "tapmesh",
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "lz4",
            "linger.ms": 20,
            "queue.buffering.max.kbytes": 65_536,
            "message.timeout.ms": 0,  # none: a message stays until it is acknowledged or refused
            "error_cb": self._note,
            "log_level": 0,  # what matters is told by `error_cb`, as a line like all others
            **_tls(store),
            **options,
        }
        try:
            self._producer = confluent_kafka.Producer(settings)
        except (confluent_kafka.KafkaException, ValueError) as error:
            raise TapmeshError(f"flows.store: {error}") from None

    def put(self, segment: Segment, header: Header, rows: Rows) -> int:
        if self._job is None or self._job.segment != segment:
            self._job = _Job(segment, messages(header, rows))
        job, topic, give_up = self._job, self._topics[header.kind], time.monotonic() + TIMEOUT_S
        job.again()
        while job.good < len(rows):
            if job.reason or time.monotonic() > give_up:
                told = job.reason or self._refused or "no answer"
                raise StoreError(f"{self._servers}: {job.good} of {len(rows)} messages are acknowledged: {told}")
            message = job.next()
            try:
                if message is not None:
                    self._producer.produce(topic, message[1], message[0], on_delivery=job.acknowledge)
            except BufferError:
                job.failed.append(message)
                job.again()
                message = None
            self._producer.poll(0.05 if message is None else 0)
        self._job, self._refused = None, ""
        return job.n_bytes

    def tend(self) -> None:
        self._producer.poll(0)

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(1.0)

    def _note(self, error: Any) -> None:
        self._refused = str(error)


class _Job:
    """A segment on its way. It stays when `put` gives up: librdkafka goes on with what it has, and nothing is given to it twice."""

    def __init__(self, segment: Segment, todo: Iterator[Message]) -> None:
        self.segment, self._todo = segment, todo
        self.failed: list[Any] = []
        self.good = self.n_bytes = 0
        self.reason = ""

    def next(self) -> Message | None:
        return next(self._todo, None)

    def again(self) -> None:
        """What was refused comes first."""
        self._todo, self.failed, self.reason = itertools.chain(self.failed, self._todo), [], ""

    def acknowledge(self, error: Any, message: Any) -> None:
        if error is None:
            self.good += 1
            self.n_bytes += len(message.value())
        else:
            self.failed.append((message.key(), message.value()))
            self.reason = str(error)


def messages(header: Header, rows: Rows) -> Iterator[Message]:
    """Key and value of each row."""
    table = to_table(header, rows)
    if header.kind == "flows":
        for end in ("source", "destination"):
            del table[f"{end}_high"], table[f"{end}_low"]
            table[end] = _addresses(rows["version"], rows[end])
        keys = ("node", "run", "lane", "number")
    else:
        keys = ("node", "kind", "name", "at_ns")
    # Each text is quoted once, and a row is put together in one go: a third of the time of an encoder.
    value = "{" + ",".join(f'"{name}":%s' for name in table) + "}"
    quoted = [_column(column, json.dumps) for column in table.values()]
    bare = [_column(table[key], str) for key in keys]
    for key, fields in zip(zip(*bare, strict=True), zip(*quoted, strict=True), strict=True):
        yield "/".join(map(str, key)).encode(), (value % fields).encode()


def _column(column: Numbers | Words, write: Callable[[str], str]) -> list[Any]:
    if isinstance(column, Words):
        words = [write(word) for word in column.words]
        return [words[code] for code in column.codes.tolist()]
    plain: list[Any] = column.tolist()
    return plain


def _addresses(versions: Numbers, ends: NDArray[np.uint8]) -> Words:
    """Each is written out once."""
    known: dict[bytes, int] = {}
    packed = np.concatenate([versions.reshape(-1, 1), ends], axis=1).tobytes()
    codes = np.fromiter((known.setdefault(packed[at : at + 17], len(known)) for at in range(0, len(packed), 17)), np.int32, len(ends))
    return Words(codes, [_text(end) for end in known])


def _text(end: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET, end[13:]) if end[0] == 4 else socket.inet_ntop(socket.AF_INET6, end[1:])


def _tls(store: Store) -> dict[str, Any]:
    tls = store.tls
    if tls is None:
        return {}
    if tls.server_name:
        raise TapmeshError("flows.store.tls.server_name: a client of Kafka has no such option; the names of the servers count")
    files = {"ssl.ca.location": tls.ca, "ssl.certificate.location": tls.cert, "ssl.key.location": (tls.key or tls.cert) if tls.cert else ""}
    checks = {"enable.ssl.certificate.verification": tls.verify, "ssl.endpoint.identification.algorithm": "https" if tls.verify else "none"}
    return {"security.protocol": "ssl", **{name: file for name, file in files.items() if file}, **checks}
