"""Tunnels over UDP in runs: the very datagrams arrive, the order within a flow stays, and what cannot be a run goes one by one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.core import layout
from broker.core.model import Tool, Tunnel
from stages.send import backends, segments, sockets
from tests import packets as by_hand
from tests.netns import Namespace, needs_root
from tests.stages.delivery import Sender, Surroundings, frames, gre_tool, payload
from tests.stages.send.loopback import FAMILY, LOOPBACK, block, free_port, received
from tests.waiting import DEADLINE_S

LENGTHS = [60, 60, 572, 60, 1400, 1400, 60, 572, 60, 60]
N = 90  # what the buffer of a socket holds by default


def tool_to(receiver: socket.socket, kind: str = "gre-udp", slot: int = 0, **options: object) -> Tool:
    return gre_tool(slot, kind, receiver.getsockname()[0], port=receiver.getsockname()[1], backend="segment", **options)


def mixed(n: int = N, n_flows: int = 7) -> tuple[list[bytes], list[int]]:
    """Packets of several lengths and flows, each with its number in it, and the flows."""
    flows = [i % n_flows * 0x1234_5677 & 0xFFFF_FFFF for i in range(n)]
    return [bytes([flows[i] & 0xFF, i]) + payload(LENGTHS[i * 7 % len(LENGTHS)], i) for i in range(n)], flows


@pytest.mark.parametrize("kind", ["gre-udp", "vxlan", "geneve"])
@pytest.mark.parametrize(("version", "receiver"), [(4, 4), (6, 6)], indirect=["receiver"])
def test_every_datagram_arrives_once_and_flows_keep_their_order_and_port(kind: str, version: int, receiver: socket.socket) -> None:
    packets, flows = mixed()
    tool = tool_to(receiver, kind)
    sender = Sender(tool)
    batch = block([tool], packets, flows=flows)
    sender.step(batch)
    got = [receiver.recvfrom(2000) for _ in packets]
    skip = {4: 28, 6: 48}[version]
    want = [header[skip:] + window for _, _, header, window in frames(batch)]
    assert sorted(data for data, _ in got) == sorted(want)
    numbers, ports = defaultdict(list), defaultdict(set)
    inner = len(want[0]) - len(packets[0])
    for data, end in got:
        numbers[data[inner]].append(data[inner + 1])
        ports[data[inner]].add(end[1])
    assert len(numbers) == 7
    assert all(found == sorted(found) for found in numbers.values())
    assert all(len(found) == 1 for found in ports.values())
    assert set.union(*ports.values()) <= {49_152 + 2048 * n for n in range(8)}
    assert sender.count("delivered_bytes") == sum(len(header) + len(window) for _, _, header, window in frames(batch))
    assert [int(run["end"]) for run in sender.stage._scratch.runs.runs[:N]].index(N) + 1 < N * 2 / 3, "they went in runs"


def test_a_source_port_is_one_socket_whatever_the_flow(receiver: socket.socket) -> None:
    port = free_port()
    tool = tool_to(receiver, source_port=port)
    packets, flows = mixed()
    Sender(tool).step(block([tool], packets, flows=flows))
    assert {receiver.recvfrom(2000)[1][1] for _ in packets} == {port}


def test_a_port_that_somebody_has_is_left_to_him(receiver: socket.socket) -> None:
    packets, _ = mixed()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
        try:
            somebody.bind(("0.0.0.0", 49_152))
        except OSError:
            pytest.skip("port 49152 is taken on this machine")
        tool = tool_to(receiver)
        sender = Sender(tool)
        sender.step(block([tool], packets, flows=[0] * N))
        assert {receiver.recvfrom(2000)[1][1] for _ in packets} == {49_153}
    assert (sender.delivered(), sender.drops()) == (N, {})


def test_where_runs_are_refused_frames_go_one_by_one_and_that_is_told_once(
    receiver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself refuses: UDP_SEGMENT on a socket without checksums is EINVAL (udp_send_skb)."""

    def without_checksum(tunnel: Tunnel, send_buffer: int) -> socket.socket:
        return sockets.open_socket(replace(tunnel, udp_checksum=False), send_buffer)

    monkeypatch.setattr(segments.SegmentEgress.__init__, "__defaults__", (without_checksum,))
    tool = tool_to(receiver)
    packets, flows = mixed()
    with capture_logs() as logs:
        sender = Sender(tool)
        for seq in range(2):
            sender.step(block([tool], packets, flows=flows, seq=seq))
            assert sorted(received(receiver, N)) == sorted(by_hand.gre(packet) for packet in packets)
    assert [line["event"] for line in logs] == ["tool_opened", "tool_not_segmented"]
    assert (sender.delivered(), sender.drops()) == (2 * N, {})
    assert (sender.stage._scratch.runs.runs["end"][:N] == range(1, N + 1)).all(), "no runs in the second block"


def test_nobody_listening_costs_no_frame_of_a_run(receiver: socket.socket) -> None:
    other = tool_to(receiver, slot=1)
    closed = gre_tool(0, "gre-udp", "127.0.0.1", port=free_port(), backend="segment")
    packets, flows = mixed()
    sender = Sender(closed, other)
    for seq in range(3):
        sender.step(block([closed, other], packets, 3, seq=seq, flows=flows))
        assert sorted(received(receiver, N)) == sorted(by_hand.gre(packet) for packet in packets)
    assert (sender.delivered(0), sender.drops(0)) == (3 * N, {})
    assert sender.count("unheard_reports", 0) > 0


def test_a_full_socket_costs_counted_frames_and_what_arrives_was_delivered(
    unix_pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = unix_pair
    monkeypatch.setattr(segments, "PORT_BUFFER_BYTES", 20_000)
    monkeypatch.setattr(segments.SegmentEgress.__init__, "__defaults__", (lambda tunnel, send_buffer: near.dup(),))
    monkeypatch.setattr(segments.SegmentEgress, "_look", lambda self: 0)  # it knows no runs
    tool = gre_tool(0, "gre-udp", backend="segment")
    sender = Sender(tool)
    sender.step(block([tool], [payload(1000, i) for i in range(200)]))
    arrived = 0
    with contextlib.suppress(BlockingIOError):
        while far.recv(70_000):
            arrived += 1
    assert 0 < arrived == sender.delivered()
    assert sender.drops() == {"full": 200 - arrived}


def test_progress_is_never_behind_what_was_handed_over(receiver: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies in the last call has stored the last row of it, in the order of the runs."""
    tool = tool_to(receiver)
    surroundings = Surroundings()
    sender = Sender(tool, surroundings=surroundings)
    packets, flows = mixed()
    batch = block([tool], packets, flows=flows, seq=3)
    sender.step(batch)
    assert len(received(receiver, N)) == N
    assert surroundings.progress[0] == 3 << layout.PROGRESS_BITS | N
    again = Sender(tool, surroundings=Surroundings(epoch=2, progress=np.array([3 << layout.PROGRESS_BITS | 64], np.int64)))
    again.step(batch)
    assert again.count("repeated_frames") == 64
    assert len(received(receiver, N)) == N


# ---- auto


@pytest.mark.parametrize(
    ("kind", "remote", "options", "known", "backend"),
    [
        ("vxlan", "127.0.0.1", {}, True, "segment"),
        ("vxlan", "127.0.0.1", {}, False, "socket"),
        ("gre-udp", "127.0.0.1", {"sequence": True}, True, "socket"),
        ("gre-udp", "::1", {"sequence": True}, True, "socket"),
        ("gre", "127.0.0.1", {}, True, "socket"),
    ],
)
def test_auto_says_what_it_takes_and_why(
    kind: str, remote: str, options: dict[str, Any], known: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "knows_segments", lambda: known)
    monkeypatch.setattr(backends, "keeps_runs", lambda tunnel: "")
    tool = gre_tool(0, kind, remote, backend="auto", **options)
    with capture_logs() as logs:
        Sender(tool)
    (chosen,) = (line for line in logs if line["event"] == "backend_chosen")
    assert chosen["backend"] == backend
    assert chosen["reason"]


# ---- MTU


@pytest.fixture
def host() -> Iterator[Namespace]:
    with contextlib.closing(Namespace()) as made, made.inside():
        yield made


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("version", [4, 6])
def test_an_mtu_that_gets_smaller_is_noticed_and_one_that_grows_too(version: int, host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1]
    monkeypatch.setattr(segments, "time", SimpleNamespace(monotonic_ns=lambda: now[0]))
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as receiver:
        receiver.bind((LOOPBACK[version], 0))
        receiver.settimeout(DEADLINE_S)
        tool = tool_to(receiver)
        sender = Sender(tool)
        packets, flows = mixed()

        def runs_after(mtu: int) -> int:
            host.ip("link", "set", "lo", "mtu", str(mtu))
            sender.step(block([tool], packets, flows=flows))
            assert sorted(received(receiver, N)) == sorted(by_hand.gre(packet) for packet in packets)
            return int(sender.stage._scratch.runs.runs["end"].tolist().index(N)) + 1

        wide = runs_after(1500)
        refused = runs_after(1300)  # it does not know yet: the kernel refuses a run, and its frames go as fragments
        narrow = runs_after(1300)
        assert wide == refused < narrow
        assert runs_after(1500) == narrow
        now[0] += segments.LOOK_EVERY_NS
        assert runs_after(1500) == wide
    assert sender.drops() == {}


def test_a_kernel_that_says_einval_of_a_narrower_path_still_has_runs(receiver: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 6.14."""
    sender = Sender(tool_to(receiver))
    egress = sender.stage._egresses[0]
    assert isinstance(egress, segments.SegmentEgress)
    egress._longest = egress._look()
    monkeypatch.setattr(egress, "_look", lambda: 1000)
    egress._handed_over(errno.EINVAL)
    assert egress._may_segment
    egress._longest = 1000
    egress._handed_over(errno.EINVAL)
    assert not egress._may_segment
    egress.close()
    egress._handed_over(errno.EINVAL)


def test_sockets_that_cannot_all_be_opened_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []

    def third_fails(tunnel: Tunnel, send_buffer: int) -> socket.socket:
        if len(opened) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        return opened[-1]

    monkeypatch.setattr(segments.SegmentEgress.__init__, "__defaults__", (third_fails,))
    tool = gre_tool(0, "vxlan", "127.0.0.1", backend="segment")
    sender = Sender(tool)
    sender.step(block([tool], [payload(60)] * 3))
    assert sender.drops() == {"tool_down": 3}
    assert [one.fileno() for one in opened] == [-1, -1]
