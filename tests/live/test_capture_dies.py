"""A capture worker that is gone when its pipeline is to end: what its socket holds is delivered all the same."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cli.tapmesh import running, unique_name
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


@contextlib.contextmanager
def _broker(wires: Wires, directory: Path) -> Any:  # noqa: F811
    config = directory / "c.yaml"
    config.write_text(CONFIG)
    with wires.b.inside(), running(config, directory, unique_name()) as broker:
        yield broker.wait_up()


def _send(wires: Wires, *numbers: int) -> None:  # noqa: F811
    send(wires.a, "a0", [udp_frame("10.1.0.1", 1, "10.1.0.2", 53, n.to_bytes(2, "big")) for n in numbers])


def test_what_a_dead_capture_had_not_published_at_a_stop_is_delivered(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    receiver = Receiver(wires.c, socket.AF_INET)
    with contextlib.closing(receiver.socket), _broker(wires, tmp_path) as broker:
        _send(wires, *range(10))

        def arrived(wanted: int) -> bool:
            receiver.take()
            return len(receiver.frames) >= wanted

        until(lambda: arrived(10), "the first frames")
        broker.kill("capture", number=signal.SIGSTOP)
        _send(wires, *range(10, 30))
        broker.kill("capture")
        assert broker.stop() == 0
        until(lambda: arrived(30), "what its socket held")
        assert broker.ledger()["ledger"]["packets"]["received"] == 30
