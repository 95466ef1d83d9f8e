"""The exporter as it is started, and killed: sequence numbers go on, and what its queues took with them is counted."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from broker.core.flow_model import Export
from broker.core.shm import Pipeline
from tests.flows.export.read_ipfix import n_flows, received
from tests.flows.feeder import Feeder, config, exports_row, make_pipeline, random_rows
from tests.waiting import until


class Running:
    """``python -I -m broker.flows export``."""

    def __init__(self, pipeline: Pipeline) -> None:
        command = [sys.executable, "-I", "-m", "broker.flows", "export", "--pipeline", pipeline.name]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def started() -> Iterator[list[Running]]:
    made: list[Running] = []
    yield made
    for one in made:
        one.kill()


def feed(feeder: Feeder, first: int) -> None:
    feeder.put(random_rows(1000, first=first, seed=first))
    until(lambda: feeder.room == feeder.memory.sizes.n_records, "all to be taken")


def test_sequence_numbers_go_on_after_a_kill(name: str, started: list[Running]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.bind(("127.0.0.1", 0))
        export = Export("x", "ipfix", address="127.0.0.1", port=receiver.getsockname()[1])
        pipeline = make_pipeline(name, config(None, exports=(export,)))
        feeder, row = Feeder(pipeline), exports_row(pipeline, "x")
        for n in range(2):
            started.append(Running(pipeline))
            feed(feeder, 1000 * n)
            until(lambda n=n: row["records"] == 1000 * (n + 1), "all to be sent")  # type: ignore[misc]
            started[-1].kill()
        messages = received(receiver)
    assert n_flows(messages) == 2000
    assert (row["messages"], row["dropped_records"], row["waiting_records"]) == (len(messages), 0, 0)


def test_what_waited_for_a_collector_that_does_not_read_is_counted(name: str, started: list[Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        export = Export("x", "ipfix", "tcp", address="127.0.0.1", port=listener.getsockname()[1])
        pipeline = make_pipeline(name, config(None, exports=(export,)))
        feeder, row = Feeder(pipeline), exports_row(pipeline, "x")
        started.append(Running(pipeline))
        fed = 0
        opened: Any = listener.accept()[0]
        while not row["waiting_records"]:
            feed(feeder, fed)
            fed += 1000
        waiting = int(row["waiting_records"])
        started[-1].kill()
        opened.close()
        started.append(Running(pipeline))
        until(lambda: row["connected"], "the next exporter")
        opened = listener.accept()[0]
        assert (row["dropped_records"], row["waiting_records"]) == (waiting, 0)
        assert row["records"] + row["dropped_records"] == fed
        opened.close()
