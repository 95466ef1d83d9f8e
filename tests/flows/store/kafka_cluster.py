"""A cluster of Kafka in a process of its own: the mock that librdkafka brings. Run as a program it says where it listens."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest


class Cluster:
    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-I", __file__], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.server = self.process.stdout.readline().strip()
        assert self.server, "the cluster does not start"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")
    made = Cluster()
    yield made
    made.close()


def main() -> None:
    import confluent_kafka

    holder = confluent_kafka.Producer({"bootstrap.servers": "ignored", "test.mock.num.brokers": 1, "log_level": 0})
    [broker] = holder.list_topics(timeout=20).brokers.values()
    sys.stdout.write(f"{broker.host}:{broker.port}\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main()
