"""One export: records in, messages out, and what has become of every record.

    records handed in = records (sent) + dropped_records + waiting_records        also for packets and bytes, as far as they have gone

Nothing waits: what the way to the collector does not take stays in a queue of `buffer_bytes`; beyond it the newest messages are dropped,
whole, and counted. A message that was begun when the connection broke is sent again from its start on the next one. What the kernel held
for a collector that has gone counts as sent: nobody can know.
"""

from __future__ import annotations

import binascii
import errno
import select
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from broker.core import log
from broker.core.errors import TapmeshError
from broker.core.flow_model import Export
from broker.core.flow_ring import Rows
from broker.core.values import Tls
from broker.flows.export.ipfix import Ipfix
from broker.flows.export.json_lines import JsonLines
from broker.flows.export.messages import Encoder, ExportContext, Message, total
from broker.flows.export.netflow5 import NetFlow5
from broker.flows.export.netflow9 import NetFlow9
from broker.flows.export.transports import (
    BACKOFF_LEAST_NS,
    BACKOFF_MOST_NS,
    File,
    GoneError,
    RotatedError,
    Stream,
    Transport,
    Udp,
    tls_context,
)

EVENTS = {
    "export_connected": "an export has reached its collector or file",
    "export_lost": "a collector or file refuses or has gone; it is tried again",
    "export_full": "records were dropped: more wait for a collector than its buffer holds",
}
_REFUSED = errno.ECONNREFUSED
_BUSY = (errno.ENOBUFS, errno.ENOMEM)
_NS = 1_000_000_000
STEADY_NS = 10 * _NS
"""A way that was open for less is tried again later and later, as one that cannot be opened."""


class Sink(Protocol):
    """Where records go. Nothing blocks but `close`."""

    name: str

    def take(self, rows: Rows) -> None:
        """FLOW rows; each is counted in the EXPORT row sooner or later."""

    def tick(self, now_ns: int) -> None:
        """Wall clock. Connect, tell again what must be known, send what waits."""

    def fds(self) -> list[tuple[int, int]]:
        """(file descriptor, events of poll(2)) after which `tick` has something to do."""

    def close(self, within_s: float) -> None:
        """Send what waits, as far as that time allows; the rest is counted as dropped."""


def make_sink(export: Export, row: np.void, context: ExportContext) -> Sink:
    """`row`: EXPORT, of this export. TapmeshError: a file of its TLS is missing or wrong."""
    domain = export.domain or binascii.crc32(context.node.encode()) or 1
    made: dict[str, Encoder] = {
        "ipfix": Ipfix(context, domain),
        "netflow9": NetFlow9(context, domain),
        "netflow5": NetFlow5(context, domain),
        "json": JsonLines(context),
    }
    return QueueSink(export, made[export.kind], _transport(export), row)


def _transport(export: Export) -> Transport:
    match export.transport:
        case "udp":
            return Udp(export.address, export.port, export.mtu_bytes)
        case "tcp":
            return Stream(export.address, export.port)
        case "tls":
            tls = export.tls or Tls()
            try:
                return Stream(export.address, export.port, tls_context(tls), tls.server_name)
            except OSError as error:
                files = ", ".join(f"{name} '{file}'" for name, file in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)) if file)
                raise TapmeshError(f"flows.exports.{export.name}.tls: {files}: {error.strerror or error}") from None
        case "file":
            return File(export.file)


@dataclass(slots=True)
class Gone:
    """What left the queue at once."""

    messages: int = 0
    sent_bytes: int = 0
    sent_records: int = 0
    queued_bytes: int = 0
    queued_records: int = 0
    refused: int = 0


class QueueSink:
    """`queue`: messages of records; `first`: what the collector must know before. `at`: bytes of the first message that have gone."""

    def __init__(self, export: Export, encoder: Encoder, transport: Transport, row: np.void) -> None:
        self.name = export.name
        self._export, self._encoder, self._transport, self._row = export, encoder, transport, row
        self._log: Any = log.get(export=export.name)
        self._first: deque[Message] = deque()
        self._queue: deque[Message] = deque()
        self._queued_bytes = self._at = 0
        self._is_open = self._is_trying = self._is_full = False
        self._retry_ns = self._refresh_ns = self._ticked_ns = 0
        self._backoff_ns = BACKOFF_LEAST_NS
        row["dropped_records"] += row["waiting_records"]  # of a process before us that was killed: how many packets, it took with it
        row["connected"] = row["waiting_records"] = 0

    def take(self, rows: Rows) -> None:
        now_ns = time.time_ns()
        if self._queued_bytes >= self._export.buffer_bytes:  # no need to know how it would look
            self._drop(*total(rows))
            return
        messages, unsaid = self._encoder.encode(rows, self._transport.most_bytes, now_ns)
        self._drop(*total(unsaid), is_full=False)
        self._enqueue(messages)
        self._flush(now_ns)

    def _enqueue(self, messages: list[Message]) -> None:
        room = self._export.buffer_bytes - self._queued_bytes
        waiting = 0
        for message in messages:
            if len(message.data) > room:
                self._drop(message.records, message.packets, message.bytes)
                continue
            self._queue.append(message)
            room -= len(message.data)
            waiting += message.records
        self._queued_bytes = self._export.buffer_bytes - room
        self._row["waiting_records"] += waiting

    def _drop(self, records: int, packets: int, octets: int, *, is_full: bool = True) -> None:
        if not records and not packets:
            return
        self._row["dropped_records"] += records
        self._row["dropped_packets"] += packets
        self._row["dropped_bytes"] += octets
        if is_full and not self._is_full:
            self._is_full = True
            self._log.warning("export_full", buffer_bytes=self._export.buffer_bytes)

    def tick(self, now_ns: int) -> None:
        if now_ns < self._ticked_ns:  # the clock was set back: what was due then would be late by as much
            self._retry_ns = self._refresh_ns = 0
            if self._is_trying:
                self._close()
        self._ticked_ns = now_ns
        try:
            if not self._is_open:
                self._advance(now_ns)
            if self._is_open:
                self._transport.look(begun=self._at > 0)
        except RotatedError:
            self._close()
            self._retry_ns = now_ns
            self.tick(now_ns)
            return
        except (OSError, GoneError) as error:
            self._lost(error, now_ns)
        if self._is_open and now_ns >= self._refresh_ns:
            self._refresh(now_ns)
        self._flush(now_ns)

    def _advance(self, now_ns: int) -> None:
        if not self._is_trying:
            if now_ns < self._retry_ns:
                return
            self._is_trying = True
            self._transport.open(now_ns)
        if not self._transport.advance(now_ns):
            return
        self._is_trying, self._is_open = False, True
        self._row["connected"], self._row["since_ns"] = 1, now_ns
        self._log.info("export_connected")
        if self._transport.is_new:
            self._at = 0
            if self._encoder.per_session and self._transport.is_stream:
                self._row["sequence"] = 0  # RFC 7011, 3.1: a connection counts for itself
            self._first = deque(self._encoder.greeting(self._transport.most_bytes, now_ns))
            self._refresh_ns = now_ns

    def _refresh(self, now_ns: int) -> None:
        """Say again, over UDP, what must be known; and everywhere what is what, how much was sent and how much lost."""
        self._refresh_ns = now_ns + self._export.template_refresh_s * _NS
        if not self._transport.is_stream and not self._first:
            self._first.extend(self._encoder.greeting(self._transport.most_bytes, now_ns))
        self._enqueue(self._encoder.report(self._row, self._transport.most_bytes, now_ns))

    def _flush(self, now_ns: int) -> None:
        """Hand over what is taken. Counters are written once at the end: one by one they would cost more than the messages."""
        if not self._is_open:
            return
        gone = Gone()
        sequence = int(self._row["sequence"])
        try:
            while queue := self._first or self._queue:
                message = queue[0]
                if not self._at:
                    self._encoder.stamp(message.data, sequence, now_ns)
                n = self._send(message, gone)
                if n is None:
                    break
                self._at += n
                if self._at < len(message.data):
                    continue
                sequence += message.step
                gone.messages += 1
                gone.sent_bytes += len(message.data)
                gone.sent_records += message.records
                self._take_off(queue, gone)
        except (OSError, GoneError) as error:
            self._lost(error, now_ns)
        self._row["sequence"] = sequence
        self._count(gone)

    def _send(self, message: Message, gone: Gone) -> int | None:
        """How many bytes were taken; None: it has to wait."""
        data = message.data
        try:
            return self._transport.send(data[self._at :] if self._at else data) or None
        except OSError as error:
            if error.errno in _BUSY:
                return None
            if error.errno == _REFUSED and not self._transport.is_stream:  # of one that was sent before
                gone.refused += 1
                return 0
            raise

    def _take_off(self, queue: deque[Message], gone: Gone) -> None:
        message = queue.popleft()
        self._at = 0
        if queue is self._queue:
            gone.queued_bytes += len(message.data)
            gone.queued_records += message.records

    def _count(self, gone: Gone) -> None:
        row = self._row
        self._queued_bytes -= gone.queued_bytes
        row["waiting_records"] -= gone.queued_records
        row["errors"] += gone.refused
        if gone.messages:
            row["messages"] += gone.messages
            row["bytes"] += gone.sent_bytes
            row["records"] += gone.sent_records
            if self._is_open and not self._transport.is_stream:
                row["connected"] = not gone.refused
            self._is_full = self._is_full and bool(self._queue)

    def _lost(self, error: Exception, now_ns: int) -> None:
        if self._is_open and now_ns - int(self._row["since_ns"]) >= STEADY_NS:
            self._backoff_ns = BACKOFF_LEAST_NS
        self._close()
        self._row["errors"] += 1
        self._log.warning("export_lost", reason=str(error), again_in_s=self._backoff_ns / _NS)
        self._retry_ns = now_ns + self._backoff_ns
        self._backoff_ns = min(2 * self._backoff_ns, BACKOFF_MOST_NS)

    def _close(self) -> None:
        self._transport.close()
        self._is_open = self._is_trying = False
        self._row["connected"] = 0
        self._first.clear()

    def fds(self) -> list[tuple[int, int]]:
        return self._transport.interests(wants_room=bool(self._first or self._queue) or self._is_trying)

    def close(self, within_s: float) -> None:
        end = time.monotonic() + within_s
        self.tick(time.time_ns())
        while (self._first or self._queue) and (left := end - time.monotonic()) > 0:
            poller = select.poll()
            for fd, events in self.fds():
                poller.register(fd, events)
            poller.poll(min(left, 0.05) * 1000)
            self.tick(time.time_ns())
        for message in self._queue:
            self._drop(message.records, message.packets, message.bytes, is_full=False)
        self._queue.clear()
        self._queued_bytes = 0
        self._row["waiting_records"] = 0
        self._transport.finish()
        self._row["connected"] = 0
