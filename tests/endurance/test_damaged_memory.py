"""Shared memory that says what cannot be: it is told in words, its lane stands still, and nobody reads where nothing of ours lies."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core import layout
from broker.core.shm import pipeline_directory
from tests.cli.tapmesh import Broker, numbered, running, tapmesh, write_config
from tests.endurance.sizes import seed, size
from tests.packets import gre, pcap
from tests.waiting import until

CONFIG = """
inputs:
  remote: {{kind: tunnel, listen: gre-udp, address: 127.0.0.1, port: {port}, from: 127.0.0.1}}
tools:
  recorder: {{kind: pcap, file: {directory}/out.pcap}}
maps:
  - {{name: all, rules: [pass: udp], to: recorder}}
flows: {{exports: {{lines: {{kind: json, file: {directory}/flows.json}}}}}}
"""


@dataclass
class Fed:
    broker: Broker
    send: Callable[[], None]


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Fed]:
    """A broker that has done what came and waits for more."""
    config = tmp_path / "c.yaml"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        port = 20_000 + sender.getsockname()[1] % 10_000  # nobody's ephemeral one

        def send() -> None:
            for frame in numbered(20):
                sender.sendto(gre(frame), ("127.0.0.1", port))

        config.write_text(CONFIG.format(port=port, directory=tmp_path))
        with running(config, tmp_path) as broker:
            broker.wait_up()
            send()
            until(lambda: broker.cursor("send") >= 1 and broker.cursor("send") == broker.cursor("capture"), "the first frames to be sent")
            yield Fed(broker, send)


def _of(broker: Broker, event: str, kind: str) -> list[dict[str, Any]]:
    return [line for line in broker.events(event) if kind in (line.get("stage"), str(line.get("worker")).partition("[")[0])]


def _told(broker: Broker, kind: str, text: str) -> None:
    """In the log and by `tapmesh status`; the supervisor lives on."""
    until(lambda: _of(broker, "worker_given_up", kind), f"{kind} to give up")
    (refused,), (given_up,) = _of(broker, "worker_refused", kind), _of(broker, "worker_given_up", kind)
    assert refused["reason"].startswith("shared memory of lane 0 is damaged: ")
    assert text in refused["reason"]
    assert "its shared memory is damaged" in given_up["reason"]
    status = tapmesh("status", "--name", broker.name)
    assert status.returncode == 1
    assert kind in status.stdout + status.stderr
    assert broker.process.poll() is None
    assert broker.stop() != 0


@pytest.mark.parametrize(("moved", "finds"), [("capture", "filter"), ("filter", "encapsulate"), ("encapsulate", "send")])
def test_a_cursor_that_announces_what_nobody_has_done_is_found_by_the_next(fed: Fed, moved: str, finds: str) -> None:
    fed.broker.row(moved)["cursor"] += 2
    _told(fed.broker, finds, "where block ")


@pytest.mark.parametrize("value", [-1, 1 << 40, 1 << 62])
def test_a_block_with_too_many_packets_is_found(fed: Fed, value: int) -> None:
    broker = fed.broker
    at = broker.cursor("capture")
    broker.kill("filter", number=signal.SIGSTOP)
    fed.send()
    until(lambda: broker.cursor("capture") > at, "the next block")
    memory = broker.pipeline().lanes[0]
    memory.batch(at % memory.geometry.n_blocks).block["n_packets"] = value
    broker.kill("filter", number=signal.SIGCONT)
    _told(broker, "filter", f"has {value} packets")


def test_noise_anywhere_kills_nobody(tmp_path: Path) -> None:
    """Words of noise in cursors, block headers, rows, outer headers and tickets, while packets pass. A worker may find it and give up; none
    may be ended by the kernel for reading where there is nothing."""
    n_words, number = size("damaged_words", 1500, 1_000_000), seed()
    rng = random.Random(number)
    source = tmp_path / "in.pcap"
    source.write_bytes(pcap(numbered(200_000)))
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap", pace=60_000)
    config.write_text(config.read_text() + f"flows: {{exports: {{lines: {{kind: json, file: {tmp_path}/flows.json}}}}}}\n")
    by_the_kernel = {-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)}
    done = 0
    while done < n_words:
        with running(config, tmp_path) as broker:
            broker.wait_up()
            words = np.memmap(pipeline_directory(broker.name) / "lane-0", "<i8", "r+")
            first = layout.PAGE // 8
            while done < n_words and not broker.events("worker_given_up") and broker.process.poll() is None:
                for _ in range(50):
                    value = rng.choice((rng.getrandbits(63), -rng.getrandbits(63), rng.getrandbits(32), 0, -1, 1 << 62))
                    words[rng.randrange(first, len(words)) if rng.random() < 0.7 else first + rng.randrange(2048)] = value
                done += 50
            died = [event for event in broker.events("worker_died") if event["status"] in by_the_kernel]
            assert not died, (number, died)
            assert broker.process.poll() in (None, 0, 1), (number, broker.stderr)
