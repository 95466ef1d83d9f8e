"""Exports: nothing blocks, every record is sent, dropped and counted, or waiting; collectors come, go, come back, and do not read."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core import flow_layout as layout
from broker.core.flow_model import Export
from broker.core.values import Tls
from broker.flows.export.messages import total
from broker.flows.export.sinks import Sink, make_sink
from tests.certificates import make_certificate, serving
from tests.flows.export.read_ipfix import messages_of, n_flows, received
from tests.flows.export.rows import context, some_rows
from tests.waiting import DEADLINE_S, until

SECOND = 1_000_000_000
ROWS = some_rows(500)
MADE: list[Sink] = []  # to be closed when a test is over


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close(0)


class Exporting:
    """A sink with its counters, and what was handed to it."""

    def __init__(self, row: Any = None, **export: Any) -> None:
        self.rows = np.zeros(1, layout.EXPORT) if row is None else row
        self.sink = make_sink(Export(**{"name": "x", "kind": "ipfix", "address": "127.0.0.1", **export}), self.rows[0], context())
        MADE.append(self.sink)
        self.given = np.zeros(3, np.int64)
        self.now_ns = time.time_ns()

    def __getitem__(self, name: str) -> int:
        return int(self.rows[name][0])

    def take(self, rows: Any) -> None:
        self.given += total(rows)
        self.sink.take(rows)
        self.balanced()

    def tick(self, later_s: float = 0) -> None:
        self.now_ns += int(later_s * SECOND)
        self.sink.tick(self.now_ns)
        self.balanced()

    def balanced(self) -> None:
        assert self["records"] + self["dropped_records"] + self["waiting_records"] == self.given[0]

    def until(self, condition: Callable[[], object], what: str, step_s: float = 0) -> None:
        def ticked() -> object:
            self.tick(step_s)
            return condition()

        until(ticked, what)


class Collector:
    """Takes connections one after the other and reads messages by the length in their header; `reads` false: it does not."""

    def __init__(self, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.sessions: list[bytearray] = []

    def accept(self) -> Callable[[], None]:
        """The next connection, read by a thread until its end; the result waits for that."""
        data = bytearray()
        self.sessions.append(data)

        def run() -> None:
            opened, _ = self.listener.accept()
            opened.settimeout(DEADLINE_S)
            with (
                contextlib.suppress(OSError),
                self.context.wrap_socket(opened, server_side=True) if self.context else opened as stream,
            ):
                while part := stream.recv(65_536):
                    data.extend(part)

        thread = threading.Thread(target=run)
        thread.start()
        return lambda: thread.join(DEADLINE_S)

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "cert.pem")


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_a_stream_is_whole_messages_in_order(transport: str, certificate: Path) -> None:
    collector = Collector(serving(certificate) if transport == "tls" else None)
    done = collector.accept()
    tls = Tls(ca=str(certificate)) if transport == "tls" else None
    export = Exporting(transport=transport, port=collector.port, tls=tls)
    export.until(lambda: export["connected"], "the connection")
    for _ in range(20):
        export.take(ROWS)
    export.sink.close(10)
    done()
    collector.close()
    export.balanced()
    assert export["records"] == 20 * len(ROWS)
    found = messages_of(collector.sessions[0])
    assert sum(map(len, found)) == len(collector.sessions[0]) == export["bytes"]
    assert n_flows(found) == 20 * len(ROWS)
    assert len(found) == export["messages"]


def test_a_collector_that_is_not_known_is_refused(certificate: Path, tmp_path: Path) -> None:
    collector = Collector(serving(make_certificate(tmp_path / "other.pem")))
    done = collector.accept()
    export = Exporting(transport="tls", port=collector.port, tls=Tls(ca=str(certificate)))
    export.take(ROWS)
    export.until(lambda: export["errors"], "the refusal")
    done()
    collector.close()
    assert export["connected"] == 0
    assert export["waiting_records"] == len(ROWS)


def test_a_collector_that_comes_back_gets_what_waited(collector: Collector) -> None:
    """What was begun when it went is sent again whole; the new connection counts from 0 and begins with templates."""
    opened: list[socket.socket] = []
    export = Exporting(transport="tcp", port=collector.port)
    export.tick()
    opened.append(collector.listener.accept()[0])
    export.until(lambda: export["connected"], "the connection")
    while not export["waiting_records"]:  # until the kernel takes no more, in the middle of a message
        export.take(ROWS)
    sent = export["records"]
    part = bytearray()
    while len(part) < 100_000:
        part += opened[0].recv(50_000)
    opened[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    opened[0].close()
    export.until(lambda: not export["connected"], "the loss")
    for _ in range(5):
        export.take(ROWS)
    waiting = export["waiting_records"]
    assert export["errors"] == 1
    done = collector.accept()
    export.until(lambda: export["connected"], "the new connection", 0.1)
    export.sink.close(10)
    done()
    export.balanced()
    assert export["waiting_records"] == export["dropped_records"] == 0
    assert n_flows(messages_of(collector.sessions[0])) == waiting == export.given[0] - sent


def test_a_collector_that_does_not_read_blocks_nothing_and_what_is_dropped_is_counted(collector: Collector) -> None:
    export = Exporting(transport="tcp", port=collector.port, buffer_bytes=1_000_000)
    export.tick()
    opened, _ = collector.listener.accept()
    export.until(lambda: export["connected"], "the connection")
    began = time.monotonic()
    while export["dropped_records"] < 10 * len(ROWS):
        export.take(ROWS)
        assert time.monotonic() - began < 10
    assert export["waiting_records"] > 0
    before = export["records"]
    export.sink.close(0)
    export.balanced()
    assert export["waiting_records"] == 0
    assert export["records"] >= before
    # What it finds, should it read after all: whole messages as many as are counted, and one that was cut by the end.
    data = bytearray()
    opened.settimeout(DEADLINE_S)
    while part := opened.recv(1 << 20):
        data += part
    opened.close()
    assert n_flows(messages_of(data)) == export["records"]


def test_what_is_dropped_is_counted_in_packets_and_bytes_too() -> None:
    export = Exporting(transport="tcp", port=9, buffer_bytes=100_000)
    for _ in range(5):
        export.take(ROWS)
    export.sink.close(0)
    assert [export["dropped_records"], export["dropped_packets"], export["dropped_bytes"]] == export.given.tolist()


def test_nobody_there_is_tried_again_later_and_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    export = Exporting(transport="tcp", port=port)
    for n in range(1, 12):
        export.until(lambda n=n: export["errors"] == n, f"failure {n}")  # type: ignore[misc]
        export.tick()
        assert export["errors"] == n
        export.tick(min(0.25 * 2 ** (n - 1), 30) * 0.99)
        assert export["errors"] == n
        export.tick(0.31)


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.bind(("127.0.0.1", 0))
        yield made


def test_a_collector_that_hangs_up_at_once_is_tried_again_later_and_later(collector: Collector) -> None:
    export = Exporting(transport="tcp", port=collector.port)
    for n, wait_s in enumerate((0.25, 0.5, 1, 2), 1):
        export.until(lambda n=n: export["connected"] or export["errors"] == n, "an end")  # type: ignore[misc]
        collector.listener.accept()[0].close()
        export.until(lambda n=n: export["errors"] == n, "the loss")  # type: ignore[misc]
        export.tick(wait_s * 0.9)
        assert (export["errors"], export.sink.fds()) == (n, [])
        export.tick(wait_s * 0.2)
        assert export.sink.fds() != []
    export.until(lambda: export["connected"], "the connection")
    opened = collector.listener.accept()[0]
    export.tick(10)
    opened.close()
    export.until(lambda: export["errors"] == 5, "the loss")
    export.tick(0.3)
    assert export.sink.fds() != []


def test_templates_and_statistics_are_told_again(receiver: socket.socket) -> None:
    export = Exporting(port=receiver.getsockname()[1], template_refresh_s=10)
    export.tick()
    export.take(ROWS)
    first = received(receiver)
    assert struct.unpack_from(">H", first[0], 16)[0] == 2
    export.tick(9.9)
    assert received(receiver) == []
    export.tick(0.2)
    again = received(receiver)
    assert struct.unpack_from(">H", again[0], 16)[0] == 2
    assert n_flows([*first, *again]) == len(ROWS)  # sequence numbers go on
    assert max(map(len, first)) <= 1400


def test_a_clock_that_is_set_back_delays_nothing(receiver: socket.socket) -> None:
    export = Exporting(port=receiver.getsockname()[1], template_refresh_s=10)
    export.tick()
    received(receiver)
    export.tick(-3600)
    assert received(receiver)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    export = Exporting(transport="tcp", port=port)
    export.until(lambda: export["errors"] == 1, "a refusal")
    export.now_ns -= 3600 * SECOND
    export.until(lambda: export["errors"] == 2, "another attempt")


def test_sequence_numbers_go_on_over_a_restart(receiver: socket.socket) -> None:
    one = Exporting(port=receiver.getsockname()[1])
    one.tick()
    one.take(ROWS)
    one.sink.close(1)
    other = Exporting(one.rows, port=receiver.getsockname()[1])
    other.given = one.given
    other.tick()
    other.take(ROWS)
    assert n_flows(received(receiver)) == 2 * len(ROWS) == other["records"]


def test_what_a_killed_exporter_had_waiting_is_counted_as_dropped() -> None:
    one = Exporting(transport="tcp", port=9)
    one.take(ROWS)
    assert one["waiting_records"] == len(ROWS)
    other = Exporting(one.rows, transport="tcp", port=9)
    assert (other["dropped_records"], other["waiting_records"]) == (len(ROWS), 0)


def test_a_datagram_that_nobody_takes_is_an_error_that_stops_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    export = Exporting(port=port)
    export.tick()
    for _ in range(3):
        export.take(ROWS)
    assert export["errors"] > 0
    assert export["connected"] == 0
    assert export["records"] == 3 * len(ROWS)


def test_netflow_5_counts_what_it_cannot_say(receiver: socket.socket) -> None:
    export = Exporting(kind="netflow5", port=receiver.getsockname()[1])
    export.tick()
    export.take(ROWS)
    six = ROWS[ROWS["version"] == 6]
    assert (export["dropped_records"], export["dropped_packets"], export["dropped_bytes"]) == total(six)
    assert export["records"] == len(ROWS) - len(six)


def test_lines_are_written_and_the_file_may_be_rotated(tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    path.write_text('{"half')  # of somebody who was out of room
    export = Exporting(kind="json", transport="file", file=str(path))
    export.tick()
    export.take(ROWS)
    path.rename(tmp_path / "old.json")
    export.tick()
    export.take(ROWS[:10])
    export.sink.close(1)
    old = (tmp_path / "old.json").read_text().splitlines()[1:]
    assert [json.loads(line)["flow"]["number"] for line in old] == ROWS["number"].tolist()
    assert [json.loads(line)["flow"]["number"] for line in path.read_text().splitlines()] == ROWS["number"][:10].tolist()
    assert export["records"] == len(ROWS) + 10


def test_a_disk_that_is_full_is_tried_again_and_the_line_goes_on(tmp_path: Path) -> None:
    """A limit on the size of files behaves as a full disk does: a part is written, then nothing."""
    path = tmp_path / "flows.json"
    export = Exporting(kind="json", transport="file", file=str(path))
    export.tick()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_001, limits[1]))
    try:
        export.take(ROWS)
        assert export["errors"] == 1
        assert export["waiting_records"] > 0
        export.tick(1)
        assert export["errors"] == 2
        assert path.stat().st_size == 100_001
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    export.tick(1)
    assert export["waiting_records"] == 0
    assert [json.loads(line)["flow"]["number"] for line in path.read_text().splitlines()] == ROWS["number"].tolist()


def test_a_reader_that_comes_late_and_is_slow_gets_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    export = Exporting(kind="json", transport="file", file=str(path))
    export.take(ROWS)
    export.tick()
    assert (export["errors"], export["waiting_records"]) == (1, len(ROWS))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    data = bytearray()
    while export["waiting_records"]:
        export.tick(1)
        if select.select([reader], [], [], 0)[0]:
            data += os.read(reader, 3000)
    export.sink.close(1)
    while part := os.read(reader, 65_536):
        data += part
    os.close(reader)
    assert [json.loads(line)["flow"]["number"] for line in data.splitlines()] == ROWS["number"].tolist()


def test_what_there_is_to_wait_for_is_told(collector: Collector) -> None:
    export = Exporting(transport="tcp", port=collector.port)
    assert export.sink.fds() == []
    export.tick()
    opened, _ = collector.listener.accept()
    export.until(lambda: export["connected"], "the connection")
    ((fd, events),) = export.sink.fds()
    assert events == select.POLLIN
    while not export["waiting_records"]:
        export.take(ROWS)
    assert export.sink.fds() == [(fd, select.POLLIN | select.POLLOUT)]
    opened.close()
    export.sink.close(0)
