"""Sockets: frames arrive byte for byte, and whatever a socket answers, every frame is delivered or counted."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from broker.core import layout
from broker.core.model import Tool, Tunnel
from stages.jit import PLAIN
from stages.send import datagrams, egress, sockets
from tests import packets as by_hand
from tests.again import run_plain
from tests.stages.delivery import (
    Sender,
    Surroundings,
    file_tool,
    frames,
    gre_tool,
    payload,
)
from tests.stages.send.loopback import FAMILY, LOOPBACK, block, free_port, needs_root, received

WINDOWS = [payload(n, n) for n in (0, 1, 60, 61, 1514, 9000)]

# ---- what arrives


@pytest.mark.parametrize(("version", "receiver"), [(4, 4), (6, 6)], indirect=["receiver"])
@pytest.mark.parametrize("options", [{}, {"key": 7}, {"key": 7, "sequence": True, "checksum": True}], ids=str)
def test_gre_in_udp_arrives_byte_for_byte_and_in_order(version: int, receiver: socket.socket, options: dict) -> None:
    tool = gre_tool(5, "gre-udp", LOOPBACK[version], port=receiver.getsockname()[1], **options)
    sender = Sender(tool)
    batch = block([tool], WINDOWS, 1 << 5)
    sender.step(batch)
    want = [
        by_hand.gre(
            window, key=options.get("key"), sequence=n if options.get("sequence") else None, with_checksum=options.get("checksum", False)
        )
        for n, window in enumerate(WINDOWS)
    ]
    assert received(receiver, len(WINDOWS)) == want
    assert sender.count("delivered_bytes", 5) == sum(len(header) + len(window) for _, _, header, window in frames(batch))
    assert sender.drops(5) == {}


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("version", [4, 6])
def test_gre_over_ip_arrives_byte_for_byte_with_its_ttl_and_dscp(version: int) -> None:
    remote = {4: "127.0.0.9", 6: "::1"}[version]
    tool = gre_tool(0, "gre", remote, source=LOOPBACK[version], key=1, sequence=True, checksum=True, ttl=33, dscp=46)
    with socket.socket(FAMILY[version], socket.SOCK_RAW, 47) as receiver:
        receiver.bind((remote, 0))
        receiver.settimeout(20)
        if version == 6:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        Sender(tool).step(block([tool], WINDOWS))
        for n, window in enumerate(WINDOWS):
            packet, ancillary, _, _ = receiver.recvmsg(70_000, 256)
            want = by_hand.gre(window, key=1, sequence=n, with_checksum=True)
            if version == 6:
                assert packet == want
                assert sorted(struct.unpack("i", value)[0] for _, _, value in ancillary) == [33, 46 << 2]
            else:
                assert packet[20:] == want
                assert (packet[1], packet[8], packet[6] & 0x40) == (46 << 2, 33, 0), "ToS, TTL, DF"


def test_frames_leave_from_the_configured_source_and_port_whatever_the_number_of_workers(receiver: socket.socket) -> None:
    port = free_port("127.0.0.3")
    tool = gre_tool(0, "gre-udp", "127.0.0.1", port=receiver.getsockname()[1], source="127.0.0.3", source_port=port)
    senders = [Sender(tool, surroundings=Surroundings(worker=w, n_workers=2)) for w in range(2)]
    batch = block([tool], [payload(60)] * 4, flows=[0, 1, 2, 3])
    for sender in senders:
        sender.step(batch)
    assert [receiver.recvfrom(2000)[1] for _ in range(4)] == [("127.0.0.3", port)] * 4


def test_workers_share_the_frames_by_flow_and_keep_the_order_within_one(receiver: socket.socket) -> None:
    tools = [gre_tool(slot, "gre-udp", "127.0.0.1", port=receiver.getsockname()[1], key=slot) for slot in range(2)]
    flows = [0xFFFF_FFFF - i % 7 for i in range(100)]
    packets = [bytes([flows[i] & 0xFF, i]) + payload(60) for i in range(100)]
    batch = block(tools, packets, 3, flows=flows)
    senders = [Sender(*tools, surroundings=Surroundings(worker=w, n_workers=3)) for w in range(3)]
    for sender in senders:
        sender.step(batch)
    got = received(receiver, 200)
    assert sorted(got) == sorted(by_hand.gre(packet, key=key) for packet in packets for key in (0, 1))
    by_flow: dict[tuple[bytes, int], list[int]] = {}
    for datagram in got:
        by_flow.setdefault((datagram[4:8], datagram[8]), []).append(datagram[9])
    assert len(by_flow) == 14
    assert all(numbers == sorted(numbers) for numbers in by_flow.values())


def peeked(sender: Sender) -> None:
    with pytest.raises(BlockingIOError):
        sender.stage._egresses[0]._socket.recv(100, socket.MSG_PEEK)  # type: ignore[attr-defined]


def test_answers_do_not_pile_up(receiver: socket.socket) -> None:
    tool = gre_tool(0, "gre-udp", "127.0.0.1", port=receiver.getsockname()[1], source_port=free_port())
    sender = Sender(tool)
    sender.step(block([tool], [payload(60)]))
    _, peer = receiver.recvfrom(2000)
    receiver.sendto(b"answer", peer)
    peeked(sender)


@pytest.mark.root
@needs_root
def test_answers_to_a_port_of_a_flow_do_not_pile_up(receiver: socket.socket) -> None:
    """A raw socket would get a copy of each."""
    tool = gre_tool(0, "gre-udp", "127.0.0.1", port=receiver.getsockname()[1])
    sender = Sender(tool)
    sender.step(block([tool], [payload(60)]))
    _, peer = receiver.recvfrom(2000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
        taker.bind(peer)
        taker.settimeout(20)
        receiver.sendto(b"answer", peer)
        assert taker.recv(100) == b"answer"
    peeked(sender)


# ---- what is refused


Ends = tuple[socket.socket, socket.socket]


def sender_to(near: socket.socket, *tools: Tool, monkeypatch: pytest.MonkeyPatch, room_bytes: int = 0) -> Sender:
    """A sender whose tunnels end in `near`: full, or without anybody at the other end, when the test wants it."""
    if room_bytes:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room_bytes)
    monkeypatch.setattr(sockets.SocketEgress.__init__, "__defaults__", (lambda tunnel, send_buffer: near.dup(),))
    return Sender(*tools)


def drain(far: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(far.recv(300_000))
        except BlockingIOError:
            return found


def test_a_full_socket_costs_counted_frames_and_what_arrived_was_delivered(unix_pair: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = gre_tool(0)
    near, far = unix_pair
    sender = sender_to(near, tool, monkeypatch=monkeypatch, room_bytes=20_000)
    arrived = []
    for seq in range(4):
        sender.step(block([tool], [payload(1000, i) for i in range(200)], seq=seq))
        arrived += drain(far)
    assert 0 < len(arrived) == sender.delivered() < 800
    assert sender.drops() == {"full": 800 - len(arrived)}
    assert sender.count("delivered_bytes") == sum(map(len, arrived)) + 20 * len(arrived)
    sender.step(block([tool], [payload(60)], seq=4))
    assert drain(far) == [by_hand.gre(payload(60))], "it has room again"


def test_a_tool_that_was_full_is_not_waited_for_again_until_it_has_room(unix_pair: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = gre_tool(0)
    near, far = unix_pair
    sender = sender_to(near, tool, monkeypatch=monkeypatch, room_bytes=20_000)
    waits: list[int] = []
    monkeypatch.setattr(sockets.SocketEgress, "_wait", lambda self, number, limit_ns: waits.append(limit_ns))
    for seq in range(3):
        sender.step(block([tool], [payload(1000)] * 100, seq=seq))
        if seq == 0:
            assert waits
            assert max(waits) <= datagrams.PATIENCE_NS
            waits.clear()
    assert waits == []
    drain(far)
    sender.step(block([tool], [payload(60)], seq=3))
    sender.step(block([tool], [payload(1000)] * 100, seq=4))
    assert waits, "patient again"


def test_a_full_tool_costs_another_tool_nothing(unix_pair: Ends, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full, file = gre_tool(0), file_tool(1, tmp_path / "out.pcap")
    sender = sender_to(unix_pair[0], full, file, monkeypatch=monkeypatch)
    for seq in range(3):
        sender.step(block([full, file], [payload(1000)] * 200, 3, seq=seq))
    assert (sender.delivered(1), sender.drops(1)) == (600, {})
    assert sender.drops(0)["full"] > 0


def test_frames_longer_than_the_path_takes_are_skipped_and_the_others_go_on(unix_pair: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = gre_tool(0)
    near, far = unix_pair
    sender = sender_to(near, tool, monkeypatch=monkeypatch, room_bytes=20_000)
    packets = [payload(60 if i % 3 else 60_000, i) for i in range(9)]
    sender.step(block([tool], packets))
    assert drain(far) == [by_hand.gre(p) for p in packets if len(p) == 60]
    assert sender.drops() == {"too_big": 3}


def test_a_socket_that_refuses_everything_is_given_up_and_opened_again_later(unix_pair: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried again after 0.1 s, and after twice as long each time it fails again."""
    start = 1_000_000_000
    now = [start]
    monkeypatch.setattr(egress, "time", SimpleNamespace(monotonic_ns=lambda: now[0]))
    tool = gre_tool(0)
    near, far = unix_pair
    dead, nobody = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    nobody.close()
    opened_at: list[int] = []

    def open_again(tunnel: Tunnel, send_buffer: int) -> socket.socket:
        opened_at.append((now[0] - start) // 1_000_000)
        if len(opened_at) == 1:
            return dead
        if len(opened_at) < 4:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        return near.dup()

    monkeypatch.setattr(sockets.SocketEgress.__init__, "__defaults__", (open_again,))
    sender = Sender(tool)
    sender.step(block([tool], [payload(60)] * 100))
    assert sender.drops() == {"other": 100}, "ENOTCONN"
    for seq in range(1, 80):
        now[0] = start + seq * 10_000_000
        sender.step(block([tool], [payload(60, seq)], seq=seq))
    assert opened_at == [0, 100, 300, 700]
    assert sender.drops() == {"other": 109, "unreachable": 60}
    assert drain(far) == [by_hand.gre(payload(60, seq)) for seq in range(70, 80)]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EPERM, "forbidden"),
        (errno.EACCES, "forbidden"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EADDRNOTAVAIL, "unreachable"),
        (errno.EMFILE, "tool_down"),
    ],
)
def test_a_socket_that_cannot_be_opened_costs_its_own_frames_only(
    number: int, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(tunnel: Tunnel, send_buffer: int) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sockets.SocketEgress.__init__, "__defaults__", (refuse,))
    tools = [gre_tool(0), file_tool(1, tmp_path / "out.pcap")]
    sender = Sender(*tools)
    sender.step(block(tools, [payload(60)] * 3, 3))
    assert (sender.drops(0), sender.delivered(1)) == ({reason: 3}, 3)


@pytest.mark.root
@needs_root
def test_without_the_right_to_raw_sockets_a_gre_tool_is_forbidden() -> None:
    tool = gre_tool(0, remote="127.0.0.1")
    Sender(tool).step(block([tool], [payload(60)]))  # kernels are in memory: their cache is root's
    batch = block([tool], [payload(60)] * 2)
    os.seteuid(65_534)
    try:
        sender = Sender(tool)
        sender.step(batch)
    finally:
        os.seteuid(0)
    assert sender.drops() == {"forbidden": 2}


def test_frames_to_a_port_where_nobody_listens_are_accepted_by_the_kernel_and_its_reports_are_counted(receiver: socket.socket) -> None:
    """ICMP speaks of frames that have left: they count as delivered, and no later frame is lost because of it."""
    other = gre_tool(1, "gre-udp", "127.0.0.1", port=receiver.getsockname()[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        tool = gre_tool(0, "gre-udp", "127.0.0.1", port=closed.getsockname()[1])
    sender = Sender(tool, other)
    for seq in range(3):
        sender.step(block([tool, other], [payload(60, i) for i in range(100)], 3, seq=seq))
        assert received(receiver, 100) == [by_hand.gre(payload(60, i)) for i in range(100)]
    assert (sender.delivered(0), sender.drops(0)) == (300, {})
    assert 0 < sender.count("unheard_reports", 0) <= 300
    assert sender.count("unheard_reports", 1) == 0


def test_a_listener_that_comes_late_gets_every_frame_from_then_on() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
    tool = gre_tool(0, "gre-udp", "127.0.0.1", port=address[1])
    sender = Sender(tool)
    sender.step(block([tool], [payload(60)] * 10))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(20)
        sender.step(block([tool], [payload(60, i) for i in range(50)], seq=1))
        assert received(listener, 50) == [by_hand.gre(payload(60, i)) for i in range(50)]
    assert (sender.delivered(), sender.drops()) == (60, {})


# ---- crash, reload, damage


def test_after_a_crash_only_what_may_have_gone_out_already_counts_as_repeated(receiver: socket.socket) -> None:
    tools = [gre_tool(slot, "gre-udp", "127.0.0.1", port=receiver.getsockname()[1]) for slot in range(2)]
    batch = block(tools, [payload(60)] * 100, 3, seq=3)
    progress = np.array([3 << layout.PROGRESS_BITS | 164], np.int64)  # died with all of tool 0 and 64 of tool 1 handed over
    again = Sender(*tools, surroundings=Surroundings(epoch=2, progress=progress))
    again.step(batch)
    assert [again.count("repeated_frames", slot) for slot in (0, 1)] == [100, 64]
    assert progress[0] == 3 << layout.PROGRESS_BITS | 200
    batch.seq = 4
    again.step(batch)
    assert [again.count("repeated_frames", slot) for slot in (0, 1)] == [100, 64]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_worker_that_died_between_two_blocks_repeats_nothing(receiver: socket.socket, epoch: int) -> None:
    tool = gre_tool(0, "gre-udp", "127.0.0.1", port=receiver.getsockname()[1])
    progress = np.array([2 << layout.PROGRESS_BITS | 100], np.int64)
    sender = Sender(tool, surroundings=Surroundings(epoch=epoch, progress=progress))
    sender.step(block([tool], [payload(60)] * 100, seq=3))
    assert sender.count("repeated_frames") == 0


def test_a_reload_keeps_the_socket_of_a_tool_that_stays() -> None:
    stays, gone, new = (gre_tool(slot, "gre-udp", "127.0.0.1", port=9) for slot in range(3))
    sender = Sender(stays, gone)
    before = dict(sender.stage._egresses)
    closed = before[1]._socket  # type: ignore[attr-defined]
    sender.load(gre_tool(0, "gre-udp", "127.0.0.1", port=9), new)
    assert sender.stage._egresses[0] is before[0]
    assert set(sender.stage._egresses) == {0, 2}
    assert closed.fileno() == -1


def test_a_frame_of_a_tool_that_is_not_configured_is_counted() -> None:
    tool = gre_tool(0, "gre-udp", "127.0.0.1", port=9)
    sender = Sender()
    sender.step(block([tool], [payload(60)] * 3))
    assert sender.drops() == {"tool_down": 3}


@pytest.mark.parametrize(
    ("column", "value"),
    [("header_at", 0xFFFF_FFFF), ("header_len", 0xFFFF), ("data_at", 0xFFFF_FFFF), ("data_len", 0xFFFF_FFFF), ("packet", 4), ("tool", 64)],
)
def test_rows_that_point_outside_the_block_are_counted_and_not_followed(column: str, value: int, tmp_path: Path) -> None:
    tool = file_tool(0, tmp_path / "out.pcap")
    batch = block([tool], [payload(60)] * 4)
    batch.frames[column][1] = value
    sender = Sender(tool)
    sender.step(batch, check=False)
    assert (sender.delivered(), sender.drops()) == (3, {"damaged_frame": 1})


@pytest.mark.parametrize("n_frames", [-1, 1 << 40])
def test_a_number_of_frames_that_cannot_be_is_not_believed(n_frames: int, tmp_path: Path) -> None:
    tool = file_tool(0, tmp_path / "out.pcap")
    batch = block([tool], [payload(60)])
    batch.block["n_frames"] = n_frames
    sender = Sender(tool)
    sender.step(batch, check=False)
    assert sender.delivered() <= batch.max_frames


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_python_does_the_same_and_stays_within_bounds() -> None:
    """These tests and those of the files once more, uncompiled: each access must lie in memory that the stage may touch."""
    run_plain(*(Path(__file__).with_name(f"test_{name}.py") for name in ("sockets", "source_ports", "files")))
