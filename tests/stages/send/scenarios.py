"""What runs in a network namespace of its own (test_namespaces.py starts it): each gives a dictionary of what it saw."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from broker.core.model import Tool
from stages.send import sockets
from tests import packets as by_hand
from tests.stages.delivery import Sender, encapsulate, fill, gre_tool, new_batch, payload
from tests.waiting import until


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def step(sender: Sender, tools: list[Tool], packets: list[bytes], verdicts: int, seq: int = 0) -> None:
    batch = new_batch()
    batch.seq = seq
    fill(batch, packets, verdicts)
    encapsulate(batch, *tools)
    sender.step(batch)


def small_mtu() -> dict[str, Any]:
    """Frames several times longer than the MTU, over all four kinds of socket."""
    run("ip", "link", "set", "lo", "up", "mtu", "1280")
    lengths = [60, 1240, 1300, 5001, 60_000]
    packets = [payload(n, n) for n in lengths]
    receivers = []
    for version, family, address in ((4, socket.AF_INET, "127.0.0.9"), (6, socket.AF_INET6, "::1")):
        for kind in ("gre", "gre-udp"):
            receiver = socket.socket(family, socket.SOCK_RAW, 47) if kind == "gre" else socket.socket(family, socket.SOCK_DGRAM)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            receiver.bind((address, 0))
            receiver.settimeout(20)
            receivers.append((version, kind, address, receiver))
    tools = [
        gre_tool(slot, kind, address, port=receiver.getsockname()[1] or 4754, key=slot)
        for slot, (_, kind, address, receiver) in enumerate(receivers)
    ]
    sender = Sender(*tools)
    step(sender, tools, packets, 0b1111)
    same = {}
    for slot, (version, kind, _, receiver) in enumerate(receivers):
        skip = 20 if (version, kind) == (4, "gre") else 0
        got = [receiver.recv(70_000)[skip:] for _ in packets]
        same[f"{kind}/{version}"] = got == [by_hand.gre(packet, key=slot) for packet in packets]
    return {"same": same, "drops": [sender.drops(slot) for slot in range(4)], "delivered": [sender.delivered(slot) for slot in range(4)]}


def no_route() -> dict[str, Any]:
    """Nothing is reachable, and then it is."""
    tools = [gre_tool(0, "gre-udp", "192.0.2.9"), gre_tool(1, "gre", "2001:db8::9")]
    sender = Sender(*tools)
    step(sender, tools, [payload(60)] * 5, 3)
    before = [sender.drops(slot) for slot in range(2)]
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", "192.0.2.9/32", "dev", "lo")
    run("ip", "addr", "add", "2001:db8::9/128", "dev", "lo", "nodad")
    seq = 0

    def delivered() -> bool:
        nonlocal seq
        seq += 1
        step(sender, tools, [payload(60)], 3, seq)
        return all(sender.delivered(slot) > 0 for slot in range(2))

    until(delivered, "sockets that open once there is a route")
    return {"before": before, "sum": [sender.accounted(slot) - seq for slot in range(2)]}


def _slow_link() -> None:
    """A link of 80 kbit/s with a queue of 20,000 bytes, to a neighbour that is never asked for its address."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for command in (
        "link set v0 up", "link set v1 up", "addr add 10.9.0.1/24 dev v0", "addr add fd09::1/64 dev v0 nodad",
        "neigh add 10.9.0.2 lladdr 02:00:00:00:00:99 dev v0", "neigh add fd09::2 lladdr 02:00:00:00:00:99 dev v0",
    ):  # fmt: skip
        run("ip", *command.split())
    run(*["tc", "qdisc", "add", "dev", "v0", "root", "tbf", "rate", "80kbit", "burst", "3000", "limit", "20000"])


def _queue() -> tuple[int, int]:
    """(frames that left or wait, frames dropped) of the link's queue."""
    text = subprocess.run(["tc", "-s", "-j", "qdisc", "show", "dev", "v0"], check=True, capture_output=True, text=True).stdout
    (queue,) = json.loads(text)
    return queue["packets"] + queue["qlen"], queue["drops"]


def full_queue() -> dict[str, Any]:
    """The kernel's own queue drops what the socket took: ENOBUFS, which Linux hides unless asked. By IP version."""
    _slow_link()
    found = {}
    for version in (6, 4):
        if version == 4:  # whose neighbour discovery would use the link too
            run("sysctl", "-qw", "net.ipv6.conf.v0.disable_ipv6=1", "net.ipv6.conf.v1.disable_ipv6=1")
        kinds = [(kind, remote) for kind, remote in KINDS if (":" in remote) == (version == 6)]
        tools = [gre_tool(slot, kind, remote) for slot, (kind, remote) in enumerate(kinds)]
        sender = Sender(*tools)
        left_before, dropped_before = _queue()
        for seq in range(3):
            step(sender, tools, [payload(1000)] * 100, 0b11, seq)
        left, dropped = _queue()
        found[version] = {
            "left": left - left_before,
            "queue_dropped": dropped - dropped_before,
            "delivered": sum(sender.delivered(slot) for slot in range(2)),
            "full": sum(sender.drops(slot)["full"] for slot in range(2)),
        }
    return found


def full_socket() -> dict[str, Any]:
    """A socket whose own buffer fills first: EAGAIN."""
    _slow_link()
    sockets.SEND_BUFFER_BYTES = 4096
    tools = [gre_tool(slot, kind, remote) for slot, (kind, remote) in enumerate(KINDS)]
    sender = Sender(*tools)
    for seq in range(3):
        step(sender, tools, [payload(1000)] * 100, 0b1111, seq)
    return {"delivered": [sender.delivered(slot) for slot in range(4)], "drops": [sender.drops(slot) for slot in range(4)]}


KINDS = (("gre", "10.9.0.2"), ("gre-udp", "10.9.0.2"), ("gre", "fd09::2"), ("gre-udp", "fd09::2"))
SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    scenario.__name__: scenario for scenario in (small_mtu, no_route, full_queue, full_socket)
}

if __name__ == "__main__":
    found = SCENARIOS[sys.argv[1]]()
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)
