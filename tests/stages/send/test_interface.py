"""Frames out of an interface: what tcpdump sees at the other end of a veth pair, and what becomes of them when it is narrow, full,
down or gone."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.core.batch import Batch
from broker.core.model import Tool
from tests.libpcap import needs_libpcap, read
from tests.netns import Namespace, connect, needs_root
from tests.packets import ethernet, tcp_frame, udp_frame
from tests.stages.delivery import Sender, encapsulate, fill, new_batch, payload
from tests.waiting import DEADLINE_S, until

pytestmark = [pytest.mark.root, needs_root, needs_libpcap]


@pytest.fixture
def host() -> Iterator[Namespace]:
    """The test runs on it; out0 is wired to probe0."""
    with contextlib.closing(Namespace()) as made:
        connect(made, "out0", made, "probe0", quiet=True)
        with made.inside():
            yield made


def tool_of(slot: int = 0, interface: str = "out0", *, qdisc_bypass: bool = False) -> Tool:
    return Tool(f"probe{slot}", slot, interface=interface, qdisc_bypass=qdisc_bypass)


def block(tool: Tool, frames: list[bytes], seq: int = 0) -> Batch:
    batch = new_batch()
    batch.seq = seq
    fill(batch, frames, 1 << tool.slot)
    encapsulate(batch, tool)
    return batch


@contextlib.contextmanager
def captured(path: Path, n: int) -> Iterator[None]:
    """tcpdump at the other end until it has got `n` frames."""
    process = subprocess.Popen(
        ["tcpdump", "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-i", "probe0", "-c", str(n), "-w", str(path)],
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "listening on" in line:
            break
    try:
        yield
        process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()


TRAFFIC = [
    tcp_frame("10.0.0.1", 1, "10.0.0.2", 443, payload(n)) for n in (0, 1, 100, 1460)
] + [
    udp_frame("10.0.0.1", 1, "10.0.0.2", 53, payload(50), vlans=(30,)),
    udp_frame("10.0.0.1", 1, "10.0.0.2", 53, payload(1400), vlans=(0x6000 | 30, 40)),
    udp_frame("2001:db8::1", 1, "2001:db8::2", 53, payload(50)),
    ethernet(payload(46), type=0x88B5),
    ethernet(b"", type=0x0800),
]  # fmt: skip


@pytest.mark.parametrize("qdisc_bypass", [False, True])
def test_frames_arrive_byte_for_byte_in_order_with_their_tags(host: Namespace, tmp_path: Path, qdisc_bypass: bool) -> None:
    tool = tool_of(7, qdisc_bypass=qdisc_bypass)
    sender = Sender(tool)
    frames = TRAFFIC * 20
    with captured(tmp_path / "got.pcap", len(frames)):
        sender.step(block(tool, frames))
    assert [record.data for record in read(tmp_path / "got.pcap").records] == frames
    assert (sender.delivered(7), sender.drops(7)) == (len(frames), {})
    assert sender.count("delivered_bytes", 7) == sum(map(len, frames))


@pytest.mark.parametrize("qdisc_bypass", [False, True])
def test_frames_longer_than_the_mtu_are_counted_and_the_others_arrive(host: Namespace, tmp_path: Path, qdisc_bypass: bool) -> None:
    """A VLAN tag may make a frame 4 bytes longer."""
    tool = tool_of(qdisc_bypass=qdisc_bypass)
    sender = Sender(tool)
    fits = [ethernet(payload(n), type=0x88B5) for n in (46, 1500)] + [ethernet(payload(1500), type=0x88B5, vlans=(5,))]
    too_long = [ethernet(payload(n), type=0x88B5) for n in (1501, 9000, 60_000)]
    with captured(tmp_path / "got.pcap", 3):
        sender.step(block(tool, [frame for pair in zip(too_long, fits, strict=True) for frame in pair]))
    assert [record.data for record in read(tmp_path / "got.pcap").records] == fits
    assert (sender.delivered(), sender.drops()) == (3, {"too_big": 3})


def test_what_is_no_frame_is_counted(host: Namespace, tmp_path: Path) -> None:
    tool = tool_of()
    sender = Sender(tool)
    with captured(tmp_path / "got.pcap", 1):
        sender.step(block(tool, [payload(13), b"", TRAFFIC[0]]))
    assert (sender.delivered(), sum(sender.drops().values())) == (1, 2)


def until_delivered(sender: Sender, tool: Tool) -> None:
    seq = 100
    before = sender.delivered()

    def again() -> bool:
        nonlocal seq
        seq += 1
        sender.step(block(tool, TRAFFIC[:1], seq))
        return sender.delivered() > before

    until(again, "the interface to be used again")


def test_an_interface_that_goes_down_and_comes_up_again_is_used_again(host: Namespace) -> None:
    tool = tool_of()
    sender = Sender(tool)
    sender.step(block(tool, TRAFFIC))
    host.ip("link", "set", "out0", "down")
    sender.step(block(tool, TRAFFIC * 4, 1))
    assert (sender.delivered(), sender.drops()) == (len(TRAFFIC), {"unreachable": 4 * len(TRAFFIC)})
    host.ip("link", "set", "out0", "up")
    until_delivered(sender, tool)


def test_an_interface_that_vanishes_is_used_again_when_another_has_its_name(host: Namespace) -> None:
    tool, other = tool_of(), tool_of(1, "lo")
    sender = Sender(tool, other)
    sender.step(block(tool, TRAFFIC))
    host.ip("link", "del", "out0")
    sender.step(block(tool, TRAFFIC * 4, 1))
    assert sender.delivered() == len(TRAFFIC)
    assert sum(sender.drops().values()) == 4 * len(TRAFFIC)
    assert set(sender.drops()) <= {"unreachable", "tool_down"}
    sender.step(block(other, TRAFFIC, 2))
    assert sender.delivered(1) == len(TRAFFIC), "the other tool is not affected"
    connect(host, "out0", host, "probe0", quiet=True)
    until_delivered(sender, tool)


def test_an_interface_that_is_not_there_yet_is_a_tool_that_is_unreachable(host: Namespace) -> None:
    tool = tool_of(interface="later0")
    sender = Sender(tool)
    sender.step(block(tool, TRAFFIC))
    assert sender.drops() == {"unreachable": len(TRAFFIC)}
    connect(host, "later0", host, "peer0", quiet=True)
    until_delivered(sender, tool)


def test_a_full_queue_costs_counted_frames_and_holds_nobody_up(host: Namespace) -> None:
    subprocess.run(["tc", "qdisc", "add", "dev", "out0", "root", "tbf", "rate", "80kbit", "burst", "3000", "limit", "20000"], check=True)
    tool = tool_of()
    sender = Sender(tool)
    for seq in range(3):
        sender.step(block(tool, [ethernet(payload(1000), type=0x88B5)] * 100, seq))
    assert sender.delivered() > 0
    assert sender.drops() == {"full": 300 - sender.delivered()}


def test_past_the_queueing_discipline_its_rate_means_nothing(host: Namespace, tmp_path: Path) -> None:
    subprocess.run(["tc", "qdisc", "add", "dev", "out0", "root", "tbf", "rate", "80kbit", "burst", "3000", "limit", "20000"], check=True)
    tool = tool_of(qdisc_bypass=True)
    sender = Sender(tool)
    with captured(tmp_path / "got.pcap", 100):
        sender.step(block(tool, [ethernet(payload(1000), type=0x88B5)] * 100))
    assert (sender.delivered(), sender.drops()) == (100, {})


def test_nothing_is_received(host: Namespace) -> None:
    sender = Sender(tool_of())
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as other_end:
        other_end.bind(("probe0", 0))
        other_end.send(TRAFFIC[0])
    with pytest.raises(BlockingIOError):
        sender.stage._egresses[0]._socket.recv(100)  # type: ignore[attr-defined]
