"""Sockets on links that are slow, narrow or missing, each in a network namespace of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator

import pytest

from broker.core.model import Tool
from stages.send import datagrams
from tests import packets as by_hand
from tests.netns import Namespace, needs_root
from tests.stages.delivery import Sender, encapsulate, fill, gre_tool, new_batch, payload
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

KINDS = (("gre", "10.9.0.2"), ("gre-udp", "10.9.0.2"), ("gre", "fd09::2"), ("gre-udp", "fd09::2"))


@pytest.fixture
def host() -> Iterator[Namespace]:
    """The test runs on it."""
    with contextlib.closing(Namespace()) as made, made.inside():
        yield made


def step(sender: Sender, tools: list[Tool], packets: list[bytes], verdicts: int, seq: int = 0) -> None:
    batch = new_batch()
    batch.seq = seq
    fill(batch, packets, verdicts)
    encapsulate(batch, *tools)
    sender.step(batch)


def test_frames_longer_than_the_mtu_arrive_whole(host: Namespace) -> None:
    """Several times longer, over all four kinds of socket."""
    host.ip("link", "set", "lo", "mtu", "1280")
    packets = [payload(n, n) for n in (60, 1240, 1300, 5001, 60_000)]
    with contextlib.ExitStack() as closing:
        receivers = []
        for family, address in ((socket.AF_INET, "127.0.0.9"), (socket.AF_INET6, "::1")):
            for kind in ("gre", "gre-udp"):
                receiver = socket.socket(family, socket.SOCK_RAW, 47) if kind == "gre" else socket.socket(family, socket.SOCK_DGRAM)
                closing.enter_context(receiver)
                receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                receiver.bind((address, 0))
                receiver.settimeout(20)
                receivers.append((kind, address, receiver))
        tools = [
            gre_tool(slot, kind, address, port=receiver.getsockname()[1] or 4754, key=slot)
            for slot, (kind, address, receiver) in enumerate(receivers)
        ]
        sender = Sender(*tools)
        step(sender, tools, packets, 0b1111)
        for slot, (kind, address, receiver) in enumerate(receivers):
            skip = 20 if (kind, address) == ("gre", "127.0.0.9") else 0  # a raw IPv4 socket gives the IP header too
            assert [receiver.recv(70_000)[skip:] for _ in packets] == [by_hand.gre(packet, key=slot) for packet in packets]
            assert (sender.drops(slot), sender.delivered(slot)) == ({}, len(packets))


def test_without_a_route_frames_are_unreachable_until_there_is_one(host: Namespace) -> None:
    tools = [gre_tool(0, "gre-udp", "192.0.2.9"), gre_tool(1, "gre", "2001:db8::9")]
    sender = Sender(*tools)
    step(sender, tools, [payload(60)] * 5, 3)
    assert [sender.drops(slot) for slot in range(2)] == [{"unreachable": 5}] * 2
    host.ip("addr", "add", "192.0.2.9/32", "dev", "lo")
    host.ip("addr", "add", "2001:db8::9/128", "dev", "lo", "nodad")
    seq = 0

    def delivered() -> bool:
        nonlocal seq
        seq += 1
        step(sender, tools, [payload(60)], 3, seq)
        return all(sender.delivered(slot) > 0 for slot in range(2))

    until(delivered, "sockets that open once there is a route")
    assert [sender.accounted(slot) - seq for slot in range(2)] == [5, 5]


def _slow_link(host: Namespace) -> None:
    """A link of 80 kbit/s with a queue of 20,000 bytes, to a neighbour that is never asked for its address."""
    host.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for command in (
        "link set v0 up", "link set v1 up", "addr add 10.9.0.1/24 dev v0", "addr add fd09::1/64 dev v0 nodad",
        "neigh add 10.9.0.2 lladdr 02:00:00:00:00:99 dev v0", "neigh add fd09::2 lladdr 02:00:00:00:00:99 dev v0",
    ):  # fmt: skip
        host.ip(*command.split())
    _slow_queue("add")


def _slow_queue(*does: str) -> None:
    for do in does:
        what = [] if do == "del" else ["tbf", "rate", "80kbit", "burst", "3000", "limit", "20000"]
        subprocess.run(["tc", "qdisc", do, "dev", "v0", "root", *what], check=True)


def _queue() -> tuple[int, int]:
    """(frames that left or wait, frames dropped) of the link's queue."""
    text = subprocess.run(["tc", "-s", "-j", "qdisc", "show", "dev", "v0"], check=True, capture_output=True, text=True).stdout
    (queue,) = json.loads(text)
    return queue["packets"] + queue["qlen"], queue["drops"]


def test_what_the_kernels_own_queue_drops_is_not_called_delivered(host: Namespace) -> None:
    """ENOBUFS for what the socket took, which Linux hides unless asked: no more is counted as delivered than left or waits to leave."""
    _slow_link(host)
    for version in (6, 4):
        if version == 4:  # whose neighbour discovery would use the link too
            subprocess.run(["sysctl", "-qw", "net.ipv6.conf.v0.disable_ipv6=1", "net.ipv6.conf.v1.disable_ipv6=1"], check=True)
            _slow_queue("del", "add")  # an empty one
        kinds = [(kind, remote) for kind, remote in KINDS if (":" in remote) == (version == 6)]
        tools = [gre_tool(slot, kind, remote) for slot, (kind, remote) in enumerate(kinds)]
        sender = Sender(*tools)
        left_before, dropped_before = _queue()
        for seq in range(3):
            step(sender, tools, [payload(1000)] * 100, 0b11, seq)
        left, dropped = _queue()
        delivered = sum(sender.delivered(slot) for slot in range(2))
        assert dropped > dropped_before
        assert delivered + sum(sender.drops(slot)["full"] for slot in range(2)) == 600
        if version == 4:
            assert delivered == left - left_before > 0
        else:
            assert delivered <= left - left_before


def test_a_socket_buffer_that_is_full_costs_counted_frames(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket whose own buffer fills first: EAGAIN."""
    _slow_link(host)
    monkeypatch.setattr(datagrams, "SEND_BUFFER_BYTES", 4096)
    tools = [gre_tool(slot, kind, remote) for slot, (kind, remote) in enumerate(KINDS)]
    sender = Sender(*tools)
    for seq in range(3):
        step(sender, tools, [payload(1000)] * 100, 0b1111, seq)
    for slot in range(4):
        assert sender.drops(slot) == {"full": 300 - sender.delivered(slot)}
    assert sum(sender.delivered(slot) for slot in range(4)) > 0
