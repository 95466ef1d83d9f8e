"""Every tunnel on a wire between two namespaces: tshark reads what came, and the kernel's own vxlan device takes it in.

What files hold is read by the same tshark with the same expectation (test_tunnel_files.py).
"""

from __future__ import annotations

import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.core.model import Backend, Tool
from tests import packets as by_hand
from tests.netns import Namespace, needs_root
from tests.stages.delivery import NOON_NS, Sender, encapsulate, fill, gre_tool, new_batch, payload
from tests.stages.send.loopback import FAMILY
from tests.stages.send.tshark import CASES, GOOD, fields, whole
from tests.stages.send.two_hosts import ADDRESSES, FRAMES, capturing, mac_of, two_hosts
from tests.waiting import DEADLINE_S, until

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """They know each other: the kernel keeps only some frames while it asks for an address."""
    with two_hosts() as (near, far):
        for version in (4, 6):
            near.ip("neigh", "add", ADDRESSES[version][1], "lladdr", mac_of(far, "f0"), "dev", "n0")
        yield near, far


def deliver(host: Namespace, tools: list[Tool], frames: list[bytes], flows: list[int] | None = None) -> Sender:
    batch = new_batch()
    fill(batch, frames, (1 << len(tools)) - 1, flows=flows)
    with host.inside():
        encapsulate(batch, *tools)
        sender = Sender(*tools)
        sender.step(batch)
    return sender


@pytest.mark.parametrize("version", [4, 6])
def test_tshark_reads_every_tunnel_from_the_wire_to_the_exact_frame(
    version: int, hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    near, far = hosts
    ours, remote = ADDRESSES[version]
    common: dict[str, Any] = {"ttl": 9, "dscp": 46, "df": True, "interface": "n0"}
    cases = [case for case in CASES if case.kind != "gre-ip"]
    tools = [gre_tool(slot, case.kind, remote, **case.options, **common) for slot, case in enumerate(cases)]
    dump = tmp_path / "wire.pcap"
    with capturing(far, "f0", dump, "proto 47 or udp" if version == 4 else "ip6 proto 47 or (ip6 and udp)"):
        sender = deliver(near, tools, FRAMES)
        n = len(tools) * len(FRAMES)
        until(lambda: len(by_hand.read_pcap(whole(dump))[1]) >= n, "all frames on the wire")
    assert [sender.drops(slot) for slot in range(len(tools))] == [{}] * len(tools)
    outer = ["ip.src", "ip.dst", "ip.ttl", "ip.dsfield.dscp", "ip.flags.df", "ip.checksum.status"]
    outer6 = ["ipv6.src", "ipv6.dst", "ipv6.hlim", "ipv6.tclass.dscp", "ipv6.flow"]
    addresses = [ours, remote, "9", "46", "1", "1"] if version == 4 else [ours, remote, "9", "46", "0x000000"]
    want = []
    for case in cases:
        for number, frame in enumerate(FRAMES):
            want.append([*addresses, *case.expected(version, number, NOON_NS + number), "0x88b5", frame[14:].hex()])
    got = fields(dump, outer if version == 4 else outer6)
    assert got == want


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("who_cuts", ["the device", "the kernel before it", "the kernel, and computes the checksums too"])
def test_datagrams_of_a_run_are_whole_packets_with_right_checksums(
    who_cuts: str, version: int, hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    """A veth that may cut passes a run on as it is, and the far end's socket cuts it: there tcpdump sees one packet."""
    near, far = hosts
    off = {"the device": [], "the kernel before it": ["tx-udp-segmentation"]}.get(
        who_cuts, ["tx-udp-segmentation", "tx-checksum-ip-generic"]
    )
    with near.inside():
        for feature in off:
            subprocess.run(["ethtool", "-K", "n0", feature, "off"], check=True, capture_output=True)
    _, remote = ADDRESSES[version]
    tool = gre_tool(0, "vxlan", remote, vni=7, ttl=9, dscp=46, df=True, backend="segment")
    frames = [by_hand.ethernet(payload(n, i), type=0x88B5) for i, n in enumerate([60] * 5 + [1400] * 5 + [60] * 5)]
    with far.inside(), socket.socket(FAMILY[version], socket.SOCK_DGRAM) as receiver:
        receiver.bind((remote, 4789))
        receiver.settimeout(DEADLINE_S)
        dump = tmp_path / "wire.pcap"
        with capturing(far, "f0", dump, "udp" if version == 4 else "ip6 and udp"):
            sender = deliver(near, [tool], frames, flows=[16 * i for i in range(5)] * 3)
            got = [receiver.recv(2000) for _ in frames]
            until(lambda: len(by_hand.read_pcap(whole(dump))[1]) >= (1 if not off else len(frames)), "what came, on the wire")
    assert sorted(got) == sorted(by_hand.vxlan(frame, vni=7) for frame in frames)
    assert (sender.delivered(), sender.drops()) == (len(frames), {})
    if off:
        names = ["ip.ttl", "ip.checksum.status"] if version == 4 else ["ipv6.hlim", "ipv6.flow"]
        seen = fields(dump, names)
        assert len(seen) == len(frames)
        assert {tuple(line[:2]) for line in seen} == {("9", "1") if version == 4 else ("9", "0x000000")}
        if len(off) == 2:
            assert {line[len(names) + 1] for line in seen} == {GOOD}


@pytest.mark.parametrize("backend", ["socket", "segment"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_kernels_vxlan_device_gives_the_very_frames(version: int, backend: Backend, hosts: tuple[Namespace, Namespace]) -> None:
    """It drops a wrong VNI, a wrong UDP checksum, and over IPv6 one that is missing."""
    near, far = hosts
    ours, remote = ADDRESSES[version]
    far.ip("link", "add", "vx0", "type", "vxlan", "id", "4242", "local", remote, "remote", ours, "dstport", "4789", "noudpcsum")
    far.ip("link", "set", "vx0", "mtu", "1500", "arp", "off", "up")
    with far.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as inner:
        inner.bind(("vx0", 0x88B5))
        deliver(near, [gre_tool(0, "vxlan", remote, vni=4242, backend=backend)], FRAMES * 8, flows=[0] * 8 * len(FRAMES))
        got = []
        while len(got) < 8 * len(FRAMES) and select.select([inner], [], [], DEADLINE_S)[0]:
            got.append(inner.recv(70_000))
    assert got == FRAMES * 8


def test_a_frame_longer_than_the_path_is_refused_with_df_and_fragmented_without(hosts: tuple[Namespace, Namespace]) -> None:
    near, _ = hosts
    kinds = [(kind, version, df) for kind in ("gre", "vxlan") for version in (4, 6) for df in (True, False)]
    tools = [gre_tool(slot, kind, ADDRESSES[version][1], df=df) for slot, (kind, version, df) in enumerate(kinds)]
    sender = deliver(near, tools, [payload(60), payload(1700), payload(61)])
    for slot, (_, _, df) in enumerate(kinds):
        assert (sender.delivered(slot), sender.drops(slot)) == ((2, {"too_big": 1}) if df else (3, {}))


def test_a_tool_behind_an_interface_that_is_missing_is_unreachable(hosts: tuple[Namespace, Namespace]) -> None:
    near, _ = hosts
    tools = [gre_tool(0, "vxlan", ADDRESSES[4][1], interface="nosuch0"), gre_tool(1, "gre", ADDRESSES[4][1])]
    sender = deliver(near, tools, [payload(60)])
    assert (sender.drops(0), sender.delivered(1)) == ({"unreachable": 1}, 1)


def test_the_interface_decides_where_a_frame_leaves(hosts: tuple[Namespace, Namespace]) -> None:
    """Bound to lo, nothing of it comes to the wire."""
    near, far = hosts
    with far.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((ADDRESSES[4][1], 4789))
        receiver.settimeout(DEADLINE_S)
        deliver(near, [gre_tool(0, "vxlan", ADDRESSES[4][1], interface="lo", vni=1)], [payload(60)])
        deliver(near, [gre_tool(0, "vxlan", ADDRESSES[4][1], interface="n0", vni=2)], [payload(61)])
        assert receiver.recv(2000) == by_hand.vxlan(payload(61), vni=2)
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(2000)
