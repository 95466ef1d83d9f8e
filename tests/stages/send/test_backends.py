"""What `backend: auto` takes where, and that it goes past no rules, whenever they come."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from stages.send import backends, next_hop
from tests.netns import Namespace, needs_root
from tests.stages.delivery import Sender, gre_tool
from tests.stages.send.loopback import block
from tests.stages.send.two_hosts import ADDRESSES, FRAMES, look_twice, mac_of, two_hosts
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """The test is at the near one."""
    with two_hosts() as (near, far), near.inside():
        yield near, far


@pytest.mark.parametrize(
    ("remote", "backend", "reason"),
    [
        (ADDRESSES[4][1], "packet", "next hop"),
        ("127.0.0.1", "socket", "this host's own"),
        ("192.0.2.9", "socket", "no route"),
    ],
)
def test_auto_takes_packet_sockets_where_the_next_hop_is_on_ethernet(
    remote: str, backend: str, reason: str, hosts: tuple[Namespace, Namespace]
) -> None:
    assert len(hosts) == 2
    chosen, why = backends.choose(gre_tool(0, "gre", remote, backend="auto"))
    assert (chosen, reason in why) == (backend, True), why


def test_auto_takes_no_runs_where_nobody_cuts_them(hosts: tuple[Namespace, Namespace]) -> None:
    near, _ = hosts
    assert backends.choose(gre_tool(0, "vxlan", ADDRESSES[4][1], backend="auto"))[0] == "packet"
    assert backends.choose(gre_tool(0, "vxlan", "127.0.0.1", backend="auto"))[0] == "socket"
    near.ip("link", "add", "bridge0", "type", "bridge")
    near.ip("addr", "add", "10.78.0.1/24", "dev", "bridge0")
    near.ip("link", "set", "bridge0", "up")
    assert backends.choose(gre_tool(0, "vxlan", "10.78.0.2", backend="auto"))[0] == "segment"
    near.ip("link", "set", "n0", "master", "bridge0")
    assert backends.choose(gre_tool(0, "vxlan", "10.78.0.2", backend="auto"))[0] == "packet", "a port of the bridge is a veth"


def test_what_an_interface_sends_through_is_found() -> None:
    kind = next_hop._Kind
    links = {
        1: kind("lo", b"", True, 0, 0),
        2: kind("eth0", b"", False, 0, 6),
        3: kind("veth0", b"veth", False, 9, 5),
        4: kind("tagged", b"vlan", False, 5, 0),
        5: kind("br0", b"bridge", False, 0, 0),
        6: kind("bond0", b"bond", False, 0, 0),
        9: kind("not asked for", b"", False, 9, 9),
    }
    assert {index: set(next_hop._below(index, links)) for index in links} == {
        1: {1}, 2: {2}, 3: {3}, 4: {4, 5, 3}, 5: {5, 3}, 6: {6, 2}, 9: {9},
    }  # fmt: skip
    assert next_hop._below(0, links) == []


def test_auto_takes_no_runs_where_a_queue_cuts_them_and_drops_pieces(hosts: tuple[Namespace, Namespace]) -> None:
    near, _ = hosts
    near.ip("link", "add", "bridge0", "type", "bridge")
    near.ip("addr", "add", "10.78.0.1/24", "dev", "bridge0")
    near.ip("link", "set", "bridge0", "up")
    made = subprocess.run(["tc", "qdisc", "add", "dev", "bridge0", "root", "tbf", "rate", "1mbit", "burst", "2000", "limit", "9000"])
    if made.returncode:
        pytest.skip("this kernel has no tbf")
    assert next_hop.keeps_runs(gre_tool(0, "vxlan", "10.78.0.2").tunnel).startswith("tbf cuts runs")  # type: ignore[arg-type]
    assert backends.choose(gre_tool(0, "vxlan", "10.78.0.2", backend="auto"))[0] == "packet"


def test_auto_does_not_go_past_rules_of_ipsec(hosts: tuple[Namespace, Namespace]) -> None:
    near, _ = hosts
    policy = ("src", "10.77.0.0/24", "dst", "10.77.0.0/24", "dir", "out", "tmpl", "proto", "esp", "mode", "transport")
    try:
        near.ip("xfrm", "policy", "add", *policy)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel has no policies of IPsec: {error.stderr.strip()}")
    assert backends.choose(gre_tool(0, "gre", ADDRESSES[4][1], backend="auto")) == ("socket", "there are policies of IPsec")


def test_rules_that_come_later_are_not_gone_past(hosts: tuple[Namespace, Namespace]) -> None:
    """IPsec has its policies when the other end answers, long after the start."""
    near, far = hosts
    near.ip("neigh", "add", ADDRESSES[4][1], "lladdr", mac_of(far, "f0"), "dev", "n0")
    tool = gre_tool(0, "gre", ADDRESSES[4][1], backend="auto")
    sender = Sender(tool)
    look_twice(sender)
    batch = block([tool], FRAMES)

    def by_packet() -> bool:
        sender.step(batch)
        return bool(sender.stage._scratch.job["lead_len"][0] > 0)

    assert by_packet()
    policy = ("src", "10.77.0.0/24", "dst", "10.77.0.0/24", "dir", "out")
    try:
        near.ip("xfrm", "policy", "add", *policy, "action", "block")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel has no policies of IPsec: {error.stderr.strip()}")
    until(lambda: not by_packet(), "the policy to be noticed", 2.0)
    until(lambda: not by_packet() and sender.drops().get("forbidden", 0) > 0, "the kernel to refuse", 2.0)
    near.ip("xfrm", "policy", "delete", *policy)
    until(by_packet, "the packet socket to be used again")


def test_auto_leaves_routing_by_protocol_to_the_kernel(hosts: tuple[Namespace, Namespace]) -> None:
    near, _ = hosts
    near.ip("rule", "add", "ipproto", "gre", "lookup", "77")
    chosen, why = backends.choose(gre_tool(0, "gre", ADDRESSES[4][1], backend="auto"))
    assert (chosen, "routing rules" in why) == ("socket", True)
