"""Tunnels as whole Ethernet frames: what arrives, and that nothing is lost when the neighbour, the interface or the MTU is not as it was.

The far end's own sockets and tshark are the judges.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.core.model import Backend
from stages.send import packet
from stages.send.packet import PacketEgress
from tests import packets as by_hand
from tests.netns import Namespace, needs_root
from tests.stages.delivery import NOON_NS, Sender, gre_tool, payload
from tests.stages.send.loopback import FAMILY, block
from tests.stages.send.tshark import CASES, fields, whole
from tests.stages.send.two_hosts import ADDRESSES, FRAMES, capturing, look_twice, mac_of, two_hosts
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """The test is at the near one."""
    with two_hosts() as (near, far), near.inside():
        yield near, far


class Tool:
    """One tool and its sender; what comes to it in the far namespace."""

    def __init__(self, far: Namespace, version: int = 4, kind: str = "gre", backend: Backend = "packet", **options: Any) -> None:
        self.tool = gre_tool(0, kind, ADDRESSES[version][1], backend=backend, **options)
        self.sender = Sender(self.tool)
        self.version, self.kind = version, kind
        self.sent = 0
        self.seq = 0
        with far.inside():
            how = (socket.SOCK_RAW, 47) if kind == "gre" else (socket.SOCK_DGRAM, 0)
            self.receiver = socket.socket(FAMILY[version], how[0] | socket.SOCK_NONBLOCK, how[1])
            self.receiver.bind((ADDRESSES[version][1], 0 if kind == "gre" else self.tool.tunnel.udp_port))  # type: ignore[union-attr]
        self.came: list[bytes] = []

    @property
    def egress(self) -> PacketEgress:
        found = self.sender.stage._egresses[0]
        assert isinstance(found, PacketEgress)
        return found

    def step(self, *frames: bytes) -> bool:
        """True: they went by the packet socket. The last of them is in no other step."""
        numbered = [*frames, by_hand.ethernet(self.seq.to_bytes(4, "big") + payload(60), type=0x88B5)]
        self.take()  # else its buffer overflows while something is waited for
        self.sender.step(block([self.tool], numbered, seq=self.seq))
        self.seq += 1
        self.sent += len(numbered)
        return self.sender.stage._scratch.job["lead_len"][0] > 0

    def until_packet(self, *frames: bytes) -> None:
        until(lambda: self.step(*frames), "the packet socket to be used")

    def take(self) -> list[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.came.append(self.receiver.recv(70_000))
        return self.came

    def until_all(self) -> None:
        until(lambda: len(self.take()) >= self.sent, f"{self.sent} frames")
        assert len(self.came) == self.sent


@pytest.fixture
def tool(hosts: tuple[Namespace, Namespace]) -> Iterator[Tool]:
    made = Tool(hosts[1])
    yield made
    made.receiver.close()


@pytest.mark.parametrize("version", [4, 6])
def test_tshark_reads_every_tunnel_from_the_wire_to_the_exact_frame(
    version: int, hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    """The addresses of the Ethernet header are those of the two interfaces."""
    near, far = hosts
    ours, remote = ADDRESSES[version]
    common: dict[str, Any] = {"ttl": 9, "dscp": 46, "df": True, "interface": "n0"}
    cases = [case for case in CASES if case.kind != "gre-ip"]
    tools = [gre_tool(slot, case.kind, remote, backend="packet", **case.options, **common) for slot, case in enumerate(cases)]
    sender = Sender(*tools)
    dump = tmp_path / "wire.pcap"
    near.ip("neigh", "add", remote, "lladdr", mac_of(far, "f0"), "dev", "n0")
    look_twice(sender)
    with capturing(far, "f0", dump, "proto 47 or udp" if version == 4 else "ip6 proto 47 or (ip6 and udp)"):
        sender.step(block(tools, FRAMES, (1 << len(tools)) - 1))
        n = len(tools) * len(FRAMES)
        until(lambda: len(by_hand.read_pcap(whole(dump))[1]) >= n, "all frames on the wire")
    assert [sender.drops(slot) for slot in range(len(tools))] == [{}] * len(tools)
    on_wire = [data for _, data in by_hand.read_pcap(whole(dump))[1]]
    assert sum(sender.count("delivered_bytes", slot) for slot in range(len(tools))) == sum(len(data) - 14 for data in on_wire)
    outer = ["ip.src", "ip.dst", "ip.ttl", "ip.dsfield.dscp", "ip.flags.df", "ip.checksum.status"]
    outer6 = ["ipv6.src", "ipv6.dst", "ipv6.hlim", "ipv6.tclass.dscp", "ipv6.flow"]
    addresses = [ours, remote, "9", "46", "1", "1"] if version == 4 else [ours, remote, "9", "46", "0x000000"]
    want = []
    for case in cases:
        for number, frame in enumerate(FRAMES):
            want.append([*addresses, *case.expected(version, number, NOON_NS + number), "0x88b5", frame[14:].hex()])
    assert fields(dump, outer if version == 4 else outer6) == want
    assert on_wire[0][:12].hex() == (mac_of(far, "f0") + mac_of(near, "n0")).replace(":", "")


@pytest.mark.parametrize("version", [4, 6])
def test_a_neighbour_that_nobody_knows_is_found_and_every_frame_arrives(version: int, hosts: tuple[Namespace, Namespace]) -> None:
    """The kernel asks for it, and keeps what it is given meanwhile."""
    tool = Tool(hosts[1], version)
    with contextlib.closing(tool.receiver):
        assert not tool.step(*FRAMES)
        tool.until_all()
        tool.until_packet()
        tool.step(*FRAMES)
        tool.until_all()
        outer = (20 if version == 4 else 0) + 4  # a raw IPv4 socket gives the IP header too
        assert [data[outer:] for data in tool.came[-len(FRAMES) - 1 : -1]] == FRAMES
    assert (tool.sender.delivered(), tool.sender.drops()) == (tool.sent, {})


def test_a_neighbour_whose_address_changes_gets_the_frames_at_the_new_one(hosts: tuple[Namespace, Namespace], tool: Tool) -> None:
    near, far = hosts
    tool.step()
    tool.until_packet()
    tool.until_all()
    far.ip("link", "set", "f0", "address", "02:00:00:00:00:77")
    near.ip("neigh", "replace", ADDRESSES[4][1], "lladdr", "02:00:00:00:00:77", "dev", "n0", "nud", "reachable")

    def follows() -> bool:
        tool.step()
        return bytes(tool.egress._ethernet[:6]).hex() == "020000000077"

    until(follows, "the new address", 1.0)
    before, sent = len(tool.take()), tool.sent
    tool.until_packet(*FRAMES)
    until(lambda: len(tool.take()) - before >= tool.sent - sent, "what was sent since")


def test_a_neighbour_that_is_not_confirmed_is_asked_again_by_sending_to_it(hosts: tuple[Namespace, Namespace], tool: Tool) -> None:
    near, _ = hosts
    tool.step()
    tool.until_packet()
    near.ip("neigh", "change", ADDRESSES[4][1], "dev", "n0", "nud", "stale")
    until(lambda: not tool.step(), "a block by IP", 1.0)
    tool.until_packet()
    (known,) = json.loads(near.ip("-j", "neigh", "show", ADDRESSES[4][1], "dev", "n0"))
    assert known["state"][0] in ("DELAY", "PROBE", "REACHABLE")
    tool.until_all()


def test_a_neighbour_that_is_gone_is_told_as_it_is_of_sockets(hosts: tuple[Namespace, Namespace], tool: Tool) -> None:
    """The kernel takes the frames, asks in vain, and says so by its error queue: it knows of no errno then."""
    near, far = hosts
    with open("/proc/sys/net/ipv4/neigh/n0/retrans_time_ms", "w") as file:
        file.write("50")
    tool.step()
    tool.until_packet()
    tool.until_all()
    assert tool.sender.count("unheard_reports") == 0
    far.ip("addr", "del", f"{ADDRESSES[4][1]}/24", "dev", "f0")
    near.ip("neigh", "del", ADDRESSES[4][1], "dev", "n0")
    until(lambda: not tool.step() and tool.sender.count("unheard_reports") > 0, "reports of the kernel")
    far.ip("addr", "add", f"{ADDRESSES[4][1]}/24", "dev", "f0")
    tool.until_packet()


def test_an_interface_that_goes_down_and_comes_up_again(hosts: tuple[Namespace, Namespace], tool: Tool) -> None:
    near, _ = hosts
    tool.step()
    tool.until_packet()
    tool.until_all()
    near.ip("link", "set", "n0", "down")
    until(lambda: not tool.step() and tool.sender.drops().get("unreachable", 0) > 0, "frames counted as unreachable", 1.0)
    near.ip("link", "set", "n0", "up")
    tool.until_packet()
    before, sent = len(tool.take()), tool.sent
    tool.step(*FRAMES)
    until(lambda: len(tool.take()) - before == tool.sent - sent, "what was sent since")
    assert tool.sender.drops().keys() == {"unreachable"}


def test_an_mtu_that_gets_smaller_costs_nothing_but_speed(hosts: tuple[Namespace, Namespace], tool: Tool) -> None:
    """What is too long is fragmented by the kernel, as on a socket."""
    near, _ = hosts
    tool.step()
    tool.until_packet(*FRAMES)
    near.ip("link", "set", "n0", "mtu", "1300")

    until(lambda: tool.step() and tool.egress._hop.mtu == 1300, "the new MTU", 1.0)  # type: ignore[union-attr]
    assert not tool.step(*FRAMES)
    assert not tool.step(), "no back and forth"
    tool.until_packet()
    until(lambda: len(tool.take()) == tool.sender.delivered(), "all that was delivered")
    assert tool.sender.drops() == {}


def test_headers_with_another_source_address_than_the_sockets_are_not_used(tool: Tool) -> None:
    """They are made once a generation, perhaps when there was no route yet."""
    tool.step()
    tool.until_packet()
    assert tool.tool.tunnel is not None
    made_without_route = replace(tool.tool, tunnel=replace(tool.tool.tunnel, source="0.0.0.0"))
    with capture_logs() as logs:
        tool.sender.step(block([made_without_route], FRAMES))
    assert [line["event"] for line in logs] == ["tool_by_ip"]
    assert "source address" in logs[0]["reason"]
    until(lambda: len(tool.take()) == tool.sender.delivered(), "all of them")
    assert {data[12:16] for data in tool.came} == {socket.inet_aton(ADDRESSES[4][0])}


def test_a_source_address_that_is_gone_is_not_sent_from(hosts: tuple[Namespace, Namespace], tool: Tool) -> None:
    near, _ = hosts
    tool.step()
    tool.until_packet()
    near.ip("addr", "add", "10.77.0.9/24", "dev", "n0")
    near.ip("addr", "del", f"{ADDRESSES[4][0]}/24", "dev", "n0")
    old = block([replace(tool.tool, tunnel=replace(tool.tool.tunnel, source=ADDRESSES[4][0]))], FRAMES)  # type: ignore[type-var]
    until(lambda: tool.sender.step(old) or tool.sender.stage._scratch.job["lead_len"][0] == 0, "a block by IP", 1.0)


@pytest.mark.parametrize("kind", ["gre", "vxlan", "gre-udp"])
def test_what_icmp_says_of_frames_of_the_packet_socket_is_heard(kind: str, hosts: tuple[Namespace, Namespace]) -> None:
    near, far = hosts
    near.ip("neigh", "add", ADDRESSES[4][1], "lladdr", mac_of(far, "f0"), "dev", "n0")
    tool = gre_tool(0, kind, ADDRESSES[4][1], backend="packet")
    sender = Sender(tool)
    look_twice(sender)

    def heard() -> bool:
        sender.step(block([tool], FRAMES))
        assert sender.stage._scratch.job["lead_len"][0] > 0
        return sender.count("unheard_reports") > 0

    until(heard, "word that nobody takes this")
    assert sender.drops() == {}


def test_a_packet_socket_that_cannot_be_opened_leaves_the_way_by_ip_open(
    hosts: tuple[Namespace, Namespace], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(hosts) == 2

    def refuse(name: str, *, qdisc_bypass: bool) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    tool.step()
    by_ip = tool.egress._by_ip._socket
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(packet, "open_interface", refuse)
        until(lambda: tool.step() or any(line["event"] == "tool_down" for line in logs), "an attempt")
        assert not tool.step()
        assert tool.egress._by_ip._socket is by_ip
        assert tool.egress._news._socket.fileno() >= 0
    tool.until_packet()
    tool.until_all()


def test_frames_have_the_priority_that_they_have_by_ip(hosts: tuple[Namespace, Namespace]) -> None:
    tool = Tool(hosts[1], dscp=46)
    with contextlib.closing(tool.receiver):
        tool.step()
        tool.until_packet()
        both = (tool.egress._socket, tool.egress._by_ip._socket)
        ours, by_ip = (one.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) for one in both if one is not None)
        assert ours == by_ip > 0


def test_a_look_costs_nothing_while_there_is_no_news(
    hosts: tuple[Namespace, Namespace], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(hosts) == 2
    tool.step()
    tool.until_packet()
    looks: list[int] = []
    monkeypatch.setattr(packet, "find_next_hop", lambda tunnel, source: looks.append(1) or tool.egress._hop)  # type: ignore[func-returns-value]
    tool.egress._looked_ns = tool.egress._heard_ns = 1 << 62
    for _ in range(50):
        tool.step()
    assert not looks
