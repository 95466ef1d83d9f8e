"""A broker that is stopped, or killed with all its processes, and started again goes on counting: no receiver sees a number twice."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from broker.supervisor.processes import find
from tests.cli.tapmesh import Broker, running, unique_name
from tests.live.test_veth import Receiver, Wires, send, wires  # noqa: F401 - a fixture
from tests.netns import needs_root
from tests.packets import udp_frame
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

CONFIG = """
inputs:
  span0: {kind: afpacket, interface: b0}
tools:
  ids: {tunnel: {kind: gre, remote: 10.99.0.2, sequence: true}}
maps:
  - {name: all, rules: [pass: udp], to: ids}
"""
N = 20


def stop(broker: Broker) -> None:
    assert broker.stop() == 0


def kill_all(broker: Broker) -> None:
    broker.process.kill()
    broker.process.wait()
    for pid in find(broker.name):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not find(broker.name), "all processes to be gone")


def test_numbers_go_on_over_a_stop_and_over_the_death_of_everything(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    config, name = tmp_path / "c.yaml", unique_name()
    config.write_text(CONFIG)
    with contextlib.ExitStack() as stack:
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        for run, end in enumerate((stop, kill_all, stop)):
            with wires.b.inside():
                broker = stack.enter_context(running(config, tmp_path, name))
            # not by its memory: that of the one before may still be there
            until(lambda broker=broker: broker.events("pipeline_up"), "all workers to be up")  # type: ignore[misc]
            send(wires.a, "a0", [udp_frame("10.1.0.1", 1, "10.1.0.2", 53, bytes([n])) for n in range(N)])

            def arrived(wanted: int = (run + 1) * N) -> bool:
                receiver.take()
                return len(receiver.numbers) == wanted

            until(arrived, "the frames of this run")
            end(broker)
    assert receiver.numbers == list(range(3 * N))
