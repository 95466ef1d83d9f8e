"""A cluster of librdkafka's own: what a consumer reads there, against the rows."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core.errors import TapmeshError
from broker.core.flow_layout import EXPORT, NAMED_NAMES, TUNNEL_NAMES
from broker.core.flow_model import Store
from broker.core.values import Tls
from broker.flows import columns
from broker.flows.meters import METER
from broker.flows.segments import Header, Segment
from broker.flows.spool import Spool
from broker.flows.store import kafka as module
from broker.flows.store.base import StoreError
from broker.flows.store.kafka import KafkaStore
from broker.flows.store.loop import Consumer
from tests.flows.feeder import NOON_NS, random_rows
from tests.flows.store.clickhouse_server import free_port
from tests.flows.store.kafka_cluster import Cluster
from tests.waiting import until

confluent_kafka = pytest.importorskip("confluent_kafka")

HEADER = Header("flows", "esx07", 17, {0: "span0", 3: "sp\u00e4n"})


def segment(number: int, kind: str = "flows") -> Segment:
    return Segment(Path("not-read"), kind, HEADER.run, number, 0)


@contextmanager
def store(server: str, **keys: Any) -> Iterator[KafkaStore]:
    made = KafkaStore(Store("kafka", servers=(server,), **keys))
    yield made
    made.close()


def read(server: str, topic: str, n: int) -> list[tuple[str, dict[str, Any]]]:
    """All messages of the topic, once there are `n` and no more come."""
    quick = {"fetch.wait.max.ms": 5, "fetch.queue.backoff.ms": 5, "fetch.error.backoff.ms": 5}
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": server, "group.id": "t", "enable.partition.eof": True, "log_level": 0, **quick}
    )
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, p, confluent_kafka.OFFSET_BEGINNING) for p in partitions])
    found: list[tuple[str, dict[str, Any]]] = []
    ended: set[int] = set()

    def all_read() -> bool:
        for message in consumer.consume(1000, 0.05):
            if message.error() is None:
                found.append((message.key().decode(), json.loads(message.value())))
            else:
                assert message.error().code() == confluent_kafka.KafkaError._PARTITION_EOF, message.error()
                ended.add(message.partition())
        return len(found) >= n and ended == set(partitions)

    until(all_read, f"{n} messages")
    consumer.close()
    return found


def test_every_field_of_every_record_is_what_it_was(cluster: Cluster) -> None:
    rows = random_rows(300)
    rows["source"][rows["version"] == 4, :12] = 0
    with store(cluster.server) as made:
        assert made.put(segment(1), HEADER, rows) > 0
        meters = np.zeros(1, METER)
        meters["name"], meters["kind"], meters["at_ns"], meters["packets"] = b"ids", 2, NOON_NS, 7
        made.put(segment(2, "meters"), Header("meters", "esx07", 17, {}), meters)
    found = sorted(read(cluster.server, "tapmesh.flows", 300), key=lambda message: message[1]["number"])
    assert [key for key, _ in found] == [f"esx07/17/0/{number}" for number in range(300)]
    names = {c.name for c in columns.FLOWS} - {f"{end}_{half}" for end in ("source", "destination") for half in ("high", "low")}
    for row, (_, got) in zip(rows, found, strict=True):
        assert set(got) == names | {"source", "destination"}
        for end in ("source", "destination"):
            packed = row[end].tobytes()
            assert ipaddress.ip_address(got.pop(end)).packed == (packed[12:] if row["version"] == 4 else packed)
        for name in ("packets", "bytes", "min_bytes", "max_bytes", "tcp_flags", "tos", "retransmitted"):
            assert [got.pop(name), got.pop(f"{name}_back")] == row[name].tolist()
        assert [got.pop("rtt_source_us"), got.pop("rtt_destination_us")] == row["rtt_us"].tolist()
        assert (got.pop("node"), got.pop("run")) == ("esx07", 17)
        assert got.pop("input") == {0: "span0", 3: "sp\u00e4n"}[int(row["input"])]
        assert (got.pop("tunnel"), got.pop("named")) == (TUNNEL_NAMES[row["tunnel"]], NAMED_NAMES[row["named"]])
        assert got.pop("name") == row["name"].decode()
        assert got.pop("end_reason") == row["end"]
        assert got == {name: row[name] for name in got}
    [(key, meter)] = read(cluster.server, "tapmesh.flows.meters", 1)
    assert key == f"esx07/tool/ids/{NOON_NS}"
    assert meter == {c.name: 0 for c in columns.METERS} | {"node": "esx07", "at_ns": NOON_NS, "kind": "tool", "name": "ids", "packets": 7}


def test_a_cluster_that_falls_silent_gets_each_record_once(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    monkeypatch.setattr("broker.flows.store.loop.BACK_OFF_S", (0.01, 0.05))
    row = np.zeros(1, EXPORT)[0]
    spool = Spool(tmp_path, HEADER, row, flush_s=0, max_bytes=1 << 30)
    with store(cluster.server, topic="silent") as made:
        consumer = Consumer(tmp_path, made, row)

        def stored(n: int) -> bool:
            consumer.step()
            return bool(row["records"] == n)

        spool.append("flows", random_rows(100))
        spool.tick(HEADER.inputs)
        until(lambda: stored(100), "the first segment")
        cluster.freeze()
        spool.append("flows", random_rows(2000, first=100))
        spool.close()
        until(lambda: stored(-1) or row["errors"] >= 3, "attempts in vain")
        assert (row["connected"], row["records"]) == (0, 100)
        cluster.thaw()
        until(lambda: stored(2100), "the rest")
    found = read(cluster.server, "silent", 2100)
    assert sorted(message["number"] for _, message in found) == list(range(2100))


def test_nobody_there_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    server = f"127.0.0.1:{free_port()}"

    def refused(made: KafkaStore) -> bool:
        with pytest.raises(StoreError, match=f"{server}: 0 of 1 messages are acknowledged") as told:
            made.put(segment(1), HEADER, random_rows(1))
        return "refused" in str(told.value) or "down" in str(told.value)

    with store(server) as made:
        until(lambda: refused(made), "the reason")


def test_what_librdkafka_does_not_take_is_told_at_once() -> None:
    with pytest.raises(TapmeshError, match=r"flows\.store: .*ssl\.ca\.location"):
        KafkaStore(Store("kafka", servers=("a:1",), tls=Tls(ca="/none")))
    with pytest.raises(TapmeshError, match="server_name"):
        KafkaStore(Store("kafka", servers=("a:1",), tls=Tls(server_name="b")))
