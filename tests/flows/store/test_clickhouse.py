"""A real ClickHouse: what it says it has, against the rows."""

from __future__ import annotations

import ipaddress
import json
import select
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core.errors import TapmeshError
from broker.core.flow_layout import EXPORT, NAMED_NAMES, TUNNEL_NAMES
from broker.core.flow_model import Store
from broker.core.values import Tls
from broker.flows import columns, segments
from broker.flows.meters import METER
from broker.flows.segments import Header, Segment
from broker.flows.spool import Spool
from broker.flows.store import clickhouse as module
from broker.flows.store.base import StoreError
from broker.flows.store.clickhouse import ClickHouseStore
from broker.flows.store.loop import Consumer
from broker.flows.store.rowbinary import encode
from broker.flows.table import to_table
from tests.flows.feeder import HOUR_NS, NOON_NS, random_rows
from tests.flows.store.clickhouse_server import NAME, Server, free_port
from tests.waiting import until

HEADER = Header("flows", "it's\\7", 17, {0: "span0", 3: "sp\u00e4n"})


def segment(number: int, kind: str = "flows") -> Segment:
    return Segment(Path("not-read"), kind, HEADER.run, number, 0)


def store(server: Server, **keys: Any) -> ClickHouseStore:
    return ClickHouseStore(Store("clickhouse", url=server.url, **keys))


def numbers(server: Server) -> list[int]:
    return [int(n) for n in server.ask("SELECT number FROM tapmesh.flows ORDER BY number").split()]


def inserts(server: Server) -> int:
    """How many the server has begun."""
    return int(server.ask("SELECT sum(value) FROM system.events WHERE event = 'InsertQuery'"))


def test_what_is_stored_and_what_becomes_of_retries(clickhouse: Server) -> None:
    """One server for all of it: starting it takes longer than everything else."""
    _every_column_is_what_it_was(clickhouse)
    _meters_are_what_they_were(clickhouse)
    _a_segment_that_may_be_there_is_not_inserted_again(clickhouse)
    _a_broken_connection_leaves_each_row_there_once(clickhouse)
    _the_user_and_the_password_are_used(clickhouse)
    _certificates_are_looked_at(clickhouse)
    _a_later_database_is_left_alone(clickhouse)


def _every_column_is_what_it_was(server: Server) -> None:
    rows = random_rows(1000)
    assert store(server).put(segment(1), HEADER, rows) > 0
    described = server.ask("SELECT name, type FROM system.columns WHERE database = 'tapmesh' AND table = 'flows'")
    assert [line.split("\t") for line in described.splitlines()] == [[c.name, c.clickhouse] for c in columns.FLOWS]
    answer = server.ask("SELECT * FROM tapmesh.flows ORDER BY number FORMAT JSONEachRow")
    for row, line in zip(rows, answer.splitlines(), strict=True):
        got = {name: value if name in TEXTS else int(value) for name, value in json.loads(line).items()}
        for end in ("source", "destination"):
            assert ipaddress.IPv6Address((got.pop(f"{end}_high") << 64) + got.pop(f"{end}_low")).packed == row[end].tobytes()
        for name in ("packets", "bytes", "min_bytes", "max_bytes", "tcp_flags", "tos", "retransmitted"):
            assert [got.pop(name), got.pop(f"{name}_back")] == row[name].tolist()
        assert [got.pop("rtt_source_us"), got.pop("rtt_destination_us")] == row["rtt_us"].tolist()
        assert (got.pop("node"), got.pop("run")) == ("it's\\7", 17)
        assert got.pop("input") == {0: "span0", 3: "sp\u00e4n"}[int(row["input"])]
        assert (got.pop("tunnel"), got.pop("named")) == (TUNNEL_NAMES[row["tunnel"]], NAMED_NAMES[row["named"]])
        assert got.pop("name") == row["name"].decode()
        assert got.pop("end_reason") == row["end"]
        assert got == {name: row[name] for name in got}


TEXTS = {c.name for c in columns.FLOWS if "String" in c.clickhouse}


def _meters_are_what_they_were(server: Server) -> None:
    rows = np.zeros(2, METER)
    rows["name"], rows["kind"], rows["at_ns"], rows["packets"] = [b"ids", b"it's"], 2, NOON_NS, [7, 1 << 50]
    for _ in range(2):
        store(server).put(segment(2, "meters"), Header("meters", HEADER.node, 17, {}), rows)
    answer = server.ask("SELECT node, at_ns, kind, name, packets FROM tapmesh.meters ORDER BY name FORMAT TSVRaw")
    assert [line.split("\t") for line in answer.splitlines()] == [
        ["it's\\7", str(NOON_NS), "tool", "ids", "7"],
        ["it's\\7", str(NOON_NS), "tool", "it's", str(1 << 50)],
    ]


def _a_segment_that_may_be_there_is_not_inserted_again(server: Server) -> None:
    """Killed between two days of a segment: the day that is there stays, the other comes."""
    rows = random_rows(2000, first=1000, at_ns=NOON_NS, for_ns=48 * HOUR_NS)
    first_day = rows["last_ns"] // (24 * HOUR_NS) == rows["last_ns"][0] // (24 * HOUR_NS)
    store(server).put(segment(3), HEADER, rows[first_day])
    store(server).put(segment(3), HEADER, rows)
    store(server).put(segment(3), HEADER, rows)
    assert numbers(server) == list(range(3000))
    assert server.ask("SELECT count() FROM tapmesh.flows FINAL") == "3000"


def _a_broken_connection_leaves_each_row_there_once(server: Server) -> None:
    """The server has taken all, and its answer is lost; or the request breaks off within a row; or between two."""
    half = len(encode(to_table(HEADER, random_rows(500, first=5000))))
    for number, forwarded in ((4, 1 << 30), (5, 20_001), (6, half)):
        rows = random_rows(1000, first=(number - 1) * 1000)
        rows[:500] = random_rows(500, first=(number - 1) * 1000)
        with Breaker(server.port, forwarded) as breaker:
            weak = ClickHouseStore(Store("clickhouse", url=f"http://127.0.0.1:{breaker.port}"))
            weak._ready = True
            weak._in_doubt = False
            begun = inserts(server)
            with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
                weak.put(segment(number), HEADER, rows)
            breaker.broken = False
            until(lambda begun=begun: inserts(server) > begun, "the server to begin with the request")  # type: ignore[misc]

            def put(weak: ClickHouseStore = weak, number: int = number, rows: Any = rows) -> bool:
                try:
                    weak.put(segment(number), HEADER, rows)
                except StoreError as error:
                    assert "still works" in str(error) or "already running" in str(error), error  # noqa: PT017
                    return False
                return True

            until(put, "the segment to be stored")
        assert numbers(server) == list(range(number * 1000))


class Breaker(threading.Thread):
    """Passes so many bytes of the content of a request on to a port, and breaks the connection then, or when the answer comes."""

    def __init__(self, to_port: int, n_bytes: int) -> None:
        super().__init__(daemon=True)
        self._to, self._n_bytes, self.broken = to_port, n_bytes, True
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]

    def __enter__(self) -> Breaker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self.join(20)
        assert not self.is_alive()
        self._listening.close()

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            with near, socket.create_connection(("127.0.0.1", self._to)) as far:
                self._pass_on(near, far)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        left, head = self._n_bytes if self.broken else 1 << 40, b""
        while True:
            for ready in select.select([near, far], [], [])[0]:
                content = ready.recv(65_536)
                if not content or (ready is far and self.broken):
                    return
                if ready is far:
                    near.sendall(content)
                    continue
                if b"\r\n\r\n" not in head:  # headers count for nothing
                    end = (head + content).find(b"\r\n\r\n") + 4 - len(head)
                    head += content
                    far.sendall(content[:end])
                    content = content[end:]
                far.sendall(content[:left])
                left -= len(content)
                if left <= 0:
                    return


def _the_user_and_the_password_are_used(server: Server) -> None:
    file = server.place / "password"
    file.write_text("wrong\n")
    with pytest.raises(StoreError, match="password"):
        store(server, user="tapmesh", password_file=str(file)).put(segment(9), HEADER, random_rows(1, first=6000))
    file.write_text("it's secret\nthe first line counts\n")
    store(server, user="tapmesh", password_file=str(file)).put(segment(9), HEADER, random_rows(1, first=6000))
    assert numbers(server) == list(range(6001))


def _certificates_are_looked_at(server: Server) -> None:
    rows, ca = random_rows(1, first=6001), str(server.certificate)

    def put(tls: Tls | None) -> None:
        ClickHouseStore(Store("clickhouse", url=server.tls_url, tls=tls)).put(segment(10), HEADER, rows)

    for tls, words in (
        (None, "self.signed certificate"),
        (Tls(ca=ca), "IP address mismatch"),
        (Tls(ca=ca, server_name="b.example"), "mismatch"),
    ):
        with pytest.raises(StoreError, match=words):
            put(tls)
    for tls in (Tls(ca=ca, server_name=NAME), Tls(verify=False)):
        put(tls)
    assert numbers(server) == list(range(6002))


def _a_later_database_is_left_alone(server: Server) -> None:
    server.ask("INSERT INTO tapmesh.migrations VALUES (77, now())")
    with pytest.raises(StoreError, match=r"later version .step 77"):
        store(server).put(segment(9), HEADER, random_rows(1))


def test_a_store_that_is_down_for_a_while_loses_nothing(clickhouse: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, not stopped; the segments wait, and are drained when it is back."""
    monkeypatch.setattr("broker.flows.store.loop.BACK_OFF_S", (0.01, 0.05))
    row = np.zeros(1, EXPORT)[0]
    spool = Spool(tmp_path / "spool", HEADER, row, flush_s=0, max_bytes=1 << 30)
    consumer = Consumer(tmp_path / "spool", store(clickhouse), row)

    def feed(number: int) -> None:
        spool.append("flows", random_rows(100, first=100 * number))
        spool.tick(HEADER.inputs)

    def stored(n: int) -> bool:
        consumer.step()
        return bool(row["records"] == n)

    feed(0)
    until(lambda: stored(100), "the first segment")
    assert (row["connected"], row["errors"]) == (1, 0)
    clickhouse.kill()
    for number in range(1, 4):
        feed(number)
    until(lambda: stored(-1) or row["errors"] >= 3, "attempts in vain")
    spool.close()
    assert (row["connected"], row["records"], row["waiting_records"], row["dropped_records"]) == (0, 100, 300, 0)
    clickhouse.start()
    until(lambda: stored(400), "the rest")
    assert numbers(clickhouse) == list(range(400))
    assert segments.closed(tmp_path / "spool") == []
    assert row["connected"] == 1
    assert consumer.close() == 0


def test_nobody_there_is_told_with_the_reason() -> None:
    port = free_port()
    with pytest.raises(StoreError, match=f"127.0.0.1:{port}: .*refused"):
        ClickHouseStore(Store("clickhouse", url=f"http://127.0.0.1:{port}")).put(segment(1), HEADER, random_rows(1))


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StoreError, match="timed out"):
        ClickHouseStore(Store("clickhouse", url=f"http://127.0.0.1:{silent.getsockname()[1]}")).put(segment(1), HEADER, random_rows(1))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"url": "tcp://a:1"}, "flows.store.url: 'tcp://a:1', expected http"),
        ({"url": "http://a", "password_file": "/none"}, "flows.store.password_file: /none: .*No such file"),
    ],
)
def test_what_cannot_be_used_is_told_at_once(keys: dict[str, str], words: str) -> None:
    with pytest.raises(TapmeshError, match=words):
        ClickHouseStore(Store("clickhouse", **keys))
