"""Rows of all bits, and paths of all kinds: no format raises, and each accounts for every record, packet and byte."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core import flow_layout as layout
from broker.core.flow_model import Export
from broker.flows.export.ipfix import Ipfix
from broker.flows.export.json_lines import JsonLines
from broker.flows.export.messages import Encoder, total
from broker.flows.export.netflow5 import NetFlow5
from broker.flows.export.netflow9 import NetFlow9
from broker.flows.export.sinks import make_sink
from tests.flows.export import dissect
from tests.flows.export.read_ipfix import received
from tests.flows.export.rows import NOW_NS, context, some_rows
from tests.flows.feeder import random_rows
from tests.netns import Namespace, needs_root

ENCODERS: dict[str, Any] = {
    "ipfix": lambda: Ipfix(context(), 7), "netflow9": lambda: NetFlow9(context(), 7), "netflow5": lambda: NetFlow5(context(), 7),
    "json": lambda: JsonLines(context()),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("n", [0, 1, 2, 700])
def test_whatever_is_in_a_row_is_accounted_for(tmp_path: Path, kind: str, n: int) -> None:
    rows = random_rows(n, seed=n)
    if n:
        rows["version"][-1] = 5
    encoder: Encoder = ENCODERS[kind]()
    messages, unsaid = encoder.encode(rows, 1400, NOW_NS)
    sent = [sum(of) for of in zip(*((m.records, m.packets, m.bytes) for m in messages), strict=True)] or [0, 0, 0]
    assert [a + b for a, b in zip(sent, total(unsaid), strict=True)] == list(total(rows))
    assert max((len(message.data) for message in messages), default=0) <= 1400
    if kind == "json":
        for message in messages:
            assert [json.loads(line)["event_type"] for line in bytes(message.data).splitlines()] == ["flow"] * message.records


@dissect.needs_tshark
def test_whatever_is_in_a_row_is_no_malformed_message(tmp_path: Path) -> None:
    for kind in ("ipfix", "netflow9", "netflow5"):
        encoder: Encoder = ENCODERS[kind]()
        rows = random_rows(100, seed=5)
        rows["bytes"] = rows["packets"] = rows["packets"] & 0xFFFF
        rows["protocol"], rows["end"] = 17, 1  # of others tshark says that it does not know them
        messages = [*encoder.greeting(1400, NOW_NS), *encoder.encode(rows, 1400, NOW_NS)[0]]
        dissect.assert_clean(dissect.lines(dissect.write_pcap(tmp_path / f"{kind}.pcap", dissect.stamped(encoder, messages))))


def exported(address: str, family: socket.AddressFamily, mtu_bytes: int) -> tuple[list[bytes], Any]:
    """What a socket gets of 200 records, and the counters."""
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((address, 0))
        row = np.zeros(1, layout.EXPORT)
        sink = make_sink(Export("x", "ipfix", address=address, port=receiver.getsockname()[1], mtu_bytes=mtu_bytes), row[0], context())
        sink.tick(time.time_ns())
        sink.take(some_rows(200))
        sink.close(1)
        return received(receiver), row[0]


def test_a_collector_may_have_an_address_of_ipv6() -> None:
    datagrams, row = exported("::1", socket.AF_INET6, 1400)
    assert (len(datagrams), row["records"]) == (row["messages"], 200)
    assert 1300 < max(map(len, datagrams)) <= 1400


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(("address", "family", "header_bytes"), [("127.0.0.1", socket.AF_INET, 28), ("::1", socket.AF_INET6, 48)])
def test_a_path_that_takes_less_gets_less(address: str, family: socket.AddressFamily, header_bytes: int) -> None:
    host = Namespace()
    try:
        host.ip("link", "set", "lo", "mtu", "1280")
        with host.inside():
            datagrams, row = exported(address, family, 9000)
    finally:
        host.close()
    assert (len(datagrams), row["records"]) == (row["messages"], 200)
    assert 1280 - header_bytes - 120 < max(map(len, datagrams)) <= 1280 - header_bytes
