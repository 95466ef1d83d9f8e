"""The ways out that `backend: auto` takes on a wire, through all stages: every frame, and the counts close when send is killed."""

from __future__ import annotations

import contextlib
import select
import socket
from pathlib import Path

import pytest

from tests.cli.tapmesh import numbered, running, unique_name
from tests.live.test_veth import SO_RCVBUFFORCE, Receiver, Wires, send, wires  # noqa: F401 - a fixture
from tests.netns import Namespace, needs_root
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

CONFIG = """
inputs:
  span0: {kind: afpacket, interface: b0}
tools:
  packet: {tunnel: {kind: gre, remote: 10.99.0.2}}
  segment: {tunnel: {kind: vxlan, remote: 10.99.0.2, vni: 7}, backend: segment}
maps:
  - {name: all, rules: [pass: udp], to: [packet, segment]}
"""
N = 3000
VXLAN_BYTES = 8


class UdpReceiver:
    """The kernel cuts runs for a socket, and verifies checksums."""

    def __init__(self, host: Namespace) -> None:
        with host.inside():
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            self.socket.bind(("10.99.0.2", 4789))
        self.frames: list[bytes] = []
        self.ports: set[int] = set()

    def take(self) -> None:
        while select.select([self.socket], [], [], 0)[0]:
            data, (_, port) = self.socket.recvfrom(65_536)
            self.frames.append(data[VXLAN_BYTES:])
            self.ports.add(port)


def test_every_frame_arrives_and_counts_close_when_send_is_killed(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    frames = numbered(N)
    with contextlib.ExitStack() as stack:
        receivers = [Receiver(wires.c, socket.AF_INET), UdpReceiver(wires.c)]
        stack.callback(lambda: [r.socket.close() for r in receivers])
        with wires.b.inside():
            broker = stack.enter_context(running(config, tmp_path, unique_name()))
        broker.wait_up()
        for part in range(3):
            send(wires.a, "a0", frames[part * 1000 : part * 1000 + 500])
            old = broker.kill("send") if part else 0
            send(wires.a, "a0", frames[part * 1000 + 500 : part * 1000 + 1000])
            if old:
                broker.wait_again("send", old)

        def all_there() -> bool:
            for receiver in receivers:
                receiver.take()
            return all(set(receiver.frames) >= set(frames) for receiver in receivers)

        until(all_there, "every frame at both")
        assert broker.stop() == 0
        ledger = broker.ledger()
        all_there()
        chosen = {line["tool"]: line["backend"] for line in broker.events("backend_chosen")}
    assert chosen == {"packet": "packet"}
    assert ledger["balanced"] is True
    assert 1 < len(receivers[1].ports) <= 8  # type: ignore[attr-defined]
    for name, receiver in zip(("packet", "segment"), receivers, strict=True):
        assert set(receiver.frames) == set(frames)
        tool = ledger["ledger"]["tools"][name]
        assert tool["delivered_frames"] == N
        assert len(receiver.frames) - N <= tool["repeated_frames_at_most"]
