"""Two hosts with a wire between them, for tests of what leaves on it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from stages.send.packet import PacketEgress
from tests import packets as by_hand
from tests.netns import Namespace, connect
from tests.stages.delivery import Sender, payload
from tests.waiting import DEADLINE_S

ADDRESSES = {4: ("10.77.0.1", "10.77.0.2"), 6: ("fd77::1", "fd77::2")}
"""Ours and the receiver's."""
FRAMES = [by_hand.ethernet(payload(n, n), type=0x88B5) for n in (46, 47, 700, 1400)]
"""An EtherType that nobody dissects."""


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """Where the test sends from (n0), and the receiver (f0), whose address nobody has told; MTU 1600, so that nothing is fragmented."""
    with contextlib.ExitStack() as closing:
        near, far = (closing.enter_context(contextlib.closing(Namespace())) for _ in range(2))
        connect(near, "n0", far, "f0", mtu=1600)
        for host, name, number in ((near, "n0", 0), (far, "f0", 1)):
            host.ip("addr", "add", f"{ADDRESSES[4][number]}/24", "dev", name)
            host.ip("addr", "add", f"{ADDRESSES[6][number]}/64", "dev", name, "nodad")
        yield near, far


def mac_of(host: Namespace, name: str) -> str:
    return str(json.loads(host.ip("-j", "link", "show", name))[0]["address"])


def look_twice(sender: Sender) -> None:
    """A next hop counts from the second look on."""
    for egress in sender.stage._egresses.values():
        assert isinstance(egress, PacketEgress)
        for _ in range(2):
            egress._heard_ns = 0
            egress._look()


@contextlib.contextmanager
def capturing(host: Namespace, interface: str, path: Path, what: str) -> Iterator[None]:
    with host.inside():
        process = subprocess.Popen(
            ["tcpdump", "-U", "--immediate-mode", "-B", "65536", "-s", "2048", "-Z", "root", "-i", interface, "-w", str(path), what],
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.stderr is not None
    for line in process.stderr:
        if "listening on" in line:
            break
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)
