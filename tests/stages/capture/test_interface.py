"""Live capture on veth pairs in a network namespace of the test's own; frames are sent by a packet socket at the far end."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from broker.core.layout import PACKET_TAG_RESTORED, Geometry
from broker.core.model import Input, Lane
from stages.capture.errors import SourceError
from tests.netns import Namespace, connect, needs_root
from tests.packets import UDP, ethernet, ipv4, udp
from tests.stages.capture.support import SLOT, Worker
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]


@dataclass
class Wire:
    """`far` is sent on, `near` is captured; both ends are on one host."""

    host: Namespace
    far: str = "tm-far"
    near: str = "tm-near"
    workers: list[Worker] = field(default_factory=list)

    def make(self) -> None:
        connect(self.host, self.far, self.host, self.near, mtu=65_535, quiet=True)

    def send(self, *frames: bytes) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind((self.far, 0))
            for frame in frames:
                sender.send(frame)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """The test runs on its host."""
    with contextlib.closing(Namespace()) as host, host.inside():
        made = Wire(host)
        made.make()
        yield made
        for worker in made.workers:
            worker.die()


def _worker(directory: Path, wire: Wire, *, ring_bytes: int = 16 * 1024 * 1024, lane: Lane | None = None, **sizes: int) -> Worker:
    live = Input("near", "afpacket", SLOT, interface=wire.near, ring_bytes=ring_bytes)
    wire.workers.append(Worker(directory, geometry=Geometry(**sizes), lane=lane or Lane(0, (live,))))
    return wire.workers[-1]


def _frame(n: int, length: int = 60) -> bytes:
    return (b"\x02\x00\x00\x00\x00\x0b\x02\x00\x00\x00\x00\x0a\x88\xb5" + struct.pack(">I", n) + os.urandom(length))[:length]


def _take(worker: Worker, n_packets: int) -> list[bytes]:
    until(lambda: worker.step() == 0 and len(worker.records) >= n_packets, f"{n_packets} packets")
    return [r.data for r in worker.records]


def _drain(worker: Worker) -> None:
    """As the runner does after SIGTERM."""
    worker.capture.stop()
    while not worker.capture.finished:
        worker.step()
    assert worker.step() == 0


def _accounted(worker: Worker) -> int:
    return sum(
        worker.count(name) for name in ("captured_packets", "dropped_kernel", "dropped_restart", "dropped_oversize", "dropped_malformed")
    )


def test_every_frame_is_captured_as_it_was_sent(tmp_path: Path, wire: Wire) -> None:
    """Bytes, lengths, order and times, over many blocks of both rings."""
    frames = [_frame(n, random.Random(n).randint(14, 1514)) for n in range(5000)]
    worker = _worker(tmp_path, wire).start()
    before_ns = time.time_ns()
    wire.send(*frames)
    assert _take(worker, 5000) == frames
    assert [r.wirelen for r in worker.records] == [len(f) for f in frames]
    times = [r.ts_ns for r in worker.records]
    assert before_ns <= times[0] <= times[-1] <= time.time_ns()
    assert times == sorted(times)
    assert worker.count("captured_bytes") == sum(len(f) for f in frames)
    assert set(worker.inputs) == {SLOT}
    _drain(worker)
    assert worker.count("seen_packets") == worker.count("captured_packets") == 5000
    assert worker.count("dropped_kernel") == 0


TAGS = {
    "802.1Q": bytes.fromhex("8100 0064"),
    "priority only": bytes.fromhex("8100 e000"),
    "drop eligible": bytes.fromhex("8100 1fff"),
    "vlan 0": bytes.fromhex("8100 0000"),
    "802.1ad": bytes.fromhex("88a8 0007"),
    "QinQ": bytes.fromhex("88a8 0007 8100 2064"),
    "802.1Q twice": bytes.fromhex("8100 0001 8100 0002"),
    "three": bytes.fromhex("88a8 0001 8100 0002 8100 0003"),
}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
@pytest.mark.parametrize("length", [60, 1514, 9000])
def test_a_stripped_vlan_tag_is_put_back(tmp_path: Path, wire: Wire, tags: bytes, length: int) -> None:
    """Untagged frames between them stay as they are."""
    plain = [_frame(n, length) for n in range(40)]
    sent = [f[:12] + tags + f[12:] if n % 2 else f for n, f in enumerate(plain)]
    worker = _worker(tmp_path, wire).start()
    wire.send(*sent)
    assert _take(worker, 40) == sent
    assert [r.wirelen for r in worker.records] == [len(f) for f in sent]
    assert worker.flags == [PACKET_TAG_RESTORED * (n % 2) for n in range(40)]
    assert worker.count("tags_restored") == 20


def test_frames_up_to_64_kib(tmp_path: Path, wire: Wire) -> None:
    tag = TAGS["802.1Q"]
    big = _frame(1, 65_535 + 14)
    frames = [_frame(0), big, big[:12] + tag + big[12:-4], _frame(2), big]
    worker = _worker(tmp_path, wire).start()
    wire.send(*frames)
    assert _take(worker, 5) == frames


def test_a_frame_longer_than_the_configured_block_is_counted(tmp_path: Path, wire: Wire) -> None:
    worker = _worker(tmp_path, wire, data_bytes=4096).start()
    wire.send(_frame(0), _frame(1, 9000), _frame(2))
    until(lambda: worker.step() == 0 and len(worker.records) == 2, "the short frames")
    assert worker.count("dropped_oversize") == 1
    _drain(worker)
    assert worker.count("seen_packets") == _accounted(worker) == 3


def test_the_kernel_is_told_how_long_a_packet_may_wait(tmp_path: Path, wire: Wire) -> None:
    """As ss(8) says of the socket; and after a stop the last packets are waited for as long."""
    live = Input("near", "afpacket", SLOT, interface=wire.near, latency_ms=250)
    worker = _worker(tmp_path, wire, lane=Lane(0, (live,))).start()
    told = subprocess.run(["ss", "-0", "-e"], capture_output=True, text=True, check=True).stdout
    assert "blk_size:262144,blk_nr:64," in told
    assert ",tmo:250," in told
    frames = [_frame(n) for n in range(3)]
    wire.send(*frames)
    _drain(worker)
    assert [r.data for r in worker.records] == frames


def test_frames_that_this_host_sends_are_not_captured(tmp_path: Path, wire: Wire) -> None:
    near, frames = Wire(wire.host, far=wire.near), [_frame(n) for n in range(20)]
    for lane in (None, Lane(0, (Input("near", "afpacket", SLOT, interface=wire.near),), fanout_group=77, fanout_size=2)):
        worker = _worker(tmp_path, wire, lane=lane).start()
        near.send(*(_frame(1000 + n) for n in range(20)))
        wire.send(*frames)
        assert _take(worker, 20) == frames
        _drain(worker)
        assert worker.count("seen_packets") == 20


def _flow(a: int, b: int, n: int) -> bytes:
    ends = (f"10.0.0.{a}", f"10.0.1.{b}")
    return ethernet(ipv4(*ends, UDP, udp(1000 + a, 2000 + b, struct.pack(">I", n), ends=ends)))


def _back(frame: bytes) -> bytes:
    """The same flow the other way."""
    return frame[:26] + frame[30:34] + frame[26:30] + frame[36:38] + frame[34:36] + frame[38:]


def test_a_fan_out_gives_each_packet_to_one_lane_and_a_flow_to_the_same(tmp_path: Path, wire: Wire) -> None:
    frames = []
    for n in range(2000):
        frame = _flow(n % 20, n % 13, n)
        frames.append(_back(frame) if n % 2 else frame)
    workers = []
    for number in range(2):
        live = Input("near", "afpacket", SLOT, interface=wire.near)
        directory = tmp_path / str(number)
        directory.mkdir()
        workers.append(_worker(directory, wire, lane=Lane(number, (live,), fanout_group=4711, fanout_size=2)).start())
    wire.send(*frames)
    for worker in workers:
        _drain(worker)
    taken = [[r.data for r in worker.records] for worker in workers]
    assert collections.Counter(taken[0] + taken[1]) == collections.Counter(frames)
    flows = [{frozenset((f[26:30] + f[34:36], f[30:34] + f[36:38])) for f in each} for each in taken]
    assert all(flows)
    assert not flows[0] & flows[1]
    for each in taken:  # the order within a lane is that of the wire
        positions = [frames.index(f) for f in each]
        assert positions == sorted(positions)


def test_what_does_not_fit_the_kernels_ring_is_counted(tmp_path: Path, wire: Wire) -> None:
    """Nobody reads while 5,000 frames come: sent = captured + dropped, to the packet."""
    worker = _worker(tmp_path, wire, ring_bytes=256 * 1024).start()
    wire.send(*(_frame(n, 1000) for n in range(5000)))
    _drain(worker)
    assert 0 < worker.count("dropped_kernel") < 5000
    assert worker.count("seen_packets") == _accounted(worker) == 5000
    assert worker.count("captured_packets") == len(worker.records) > 100


def test_the_kernels_drops_are_counted_while_idle(tmp_path: Path, wire: Wire) -> None:
    """A ring that overflowed and was emptied long ago: the count does not wait for the next packet."""
    worker = _worker(tmp_path, wire, ring_bytes=256 * 1024).start()
    wire.send(*(_frame(n, 1000) for n in range(1000)))
    until(lambda: worker.step() == 0 and worker.count("seen_packets") == 1000 and _accounted(worker) == 1000, "the drops in the counters")


def test_stop_gives_what_the_ring_holds_and_nothing_that_came_later(tmp_path: Path, wire: Wire) -> None:
    """The last packets lie in a block that the kernel has still open."""
    frames = [_frame(n) for n in range(2500)]
    worker = _worker(tmp_path, wire).start()
    wire.send(*frames)
    worker.capture.stop()
    wire.send(*(_frame(n) for n in range(50)))
    _drain(worker)
    assert [r.data for r in worker.records] == frames
    assert worker.count("seen_packets") == 2500


def test_a_kernel_block_is_given_back_only_after_its_packets_were_published(tmp_path: Path, wire: Wire) -> None:
    """A ring of two kernel blocks is walked to its end, and still the kernel has no room before the next step."""
    worker = _worker(tmp_path, wire, ring_bytes=256 * 1024, data_bytes=1024 * 1024, max_packets=4096).start()
    wire.send(*(_frame(n, 1000) for n in range(1000)))
    until(worker.step, "packets")
    taken = len(worker.records)
    wire.send(*(_frame(n, 1000) for n in range(100)))
    until(lambda: worker.step() == 0, "an empty ring")
    assert len(worker.records) == taken
    wire.send(_frame(1))
    _take(worker, taken + 1)
    _drain(worker)
    assert worker.count("seen_packets") == _accounted(worker) == 1101


def test_what_a_dead_worker_had_taken_is_counted_by_the_next(tmp_path: Path, wire: Wire) -> None:
    worker = _worker(tmp_path, wire).start()
    wire.send(*(_frame(n) for n in range(30)))
    _take(worker, 30)
    wire.send(*(_frame(n) for n in range(50)))
    until(lambda: worker.step(publish=False), "packets of a block that is never published")
    until(lambda: worker.step(publish=False) == 0 and worker.count("seen_packets") == 80, "the statistics")
    worker.die()
    worker.start()
    assert worker.count("dropped_restart") == 50
    wire.send(*(_frame(n) for n in range(10)))
    _take(worker, 40)
    _drain(worker)
    assert worker.count("seen_packets") == _accounted(worker) == 90
    worker.start()
    assert worker.count("dropped_restart") == 50


def test_an_interface_that_goes_down_and_up_is_captured_again(tmp_path: Path, wire: Wire) -> None:
    worker = _worker(tmp_path, wire).start()
    wire.send(_frame(1))
    _take(worker, 1)
    wire.host.ip("link", "set", wire.near, "down")
    until(lambda: worker.step() == 0 and not _readable(worker), "the error taken off the socket")
    wire.host.ip("link", "set", wire.near, "up")
    until(lambda: _sent(wire, _frame(2)) and worker.step(), "a packet after the interface came up")


def test_an_interface_that_vanishes_is_captured_again_when_it_is_back(tmp_path: Path, wire: Wire) -> None:
    """What came before is given, and nobody spins while it is gone."""
    worker = _worker(tmp_path, wire).start()
    wire.send(*(_frame(n) for n in range(3)))
    wire.host.ip("link", "del", wire.far)
    until(lambda: worker.step() == 0 and worker.capture.wait_fd == -1, "the socket closed")
    assert len(worker.records) == 3
    assert worker.capture.due_ns > time.monotonic_ns() - 10**9
    wire.make()
    until(lambda: _sent(wire, _frame(9)) and worker.step(), "a packet after the interface came back")
    _drain(worker)
    assert worker.count("seen_packets") == _accounted(worker)


def test_stop_ends_the_wait_for_a_lost_interface(tmp_path: Path, wire: Wire) -> None:
    worker = _worker(tmp_path, wire).start()
    wire.host.ip("link", "del", wire.far)
    until(lambda: worker.step() == 0 and worker.capture.wait_fd == -1, "the socket closed")
    worker.capture.stop()
    assert worker.capture.finished


def _readable(worker: Worker) -> bool:
    return bool(select.select([worker.capture.wait_fd], [], [], 0)[0])


def _sent(wire: Wire, frame: bytes) -> bool:
    with contextlib.suppress(OSError):
        wire.send(frame)
    return True


def test_nothing_to_do_means_nothing_to_wake_up_for(tmp_path: Path, wire: Wire) -> None:
    """After each step that gave nothing the descriptor is quiet, and it becomes readable when a packet comes."""
    worker = _worker(tmp_path, wire).start()
    for n in range(3):
        assert worker.step() == 0
        assert not _readable(worker)
        wire.send(_frame(n))
        until(lambda: _readable(worker), "the descriptor")
        _take(worker, n + 1)


def test_a_restarted_worker_waits_for_an_interface_that_is_missing(tmp_path: Path, wire: Wire) -> None:
    worker = _worker(tmp_path, wire).start()
    worker.die()
    wire.host.ip("link", "del", wire.far)
    worker.start()
    assert worker.step() == 0
    assert worker.capture.wait_fd == -1
    wire.make()
    until(lambda: _sent(wire, _frame(9)) and worker.step(), "a packet after the interface came back")


def test_a_fan_out_group_of_another_kind_is_refused_in_words(tmp_path: Path, wire: Wire) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as other:
        other.bind((wire.near, 3))
        other.setsockopt(263, 18, 99 | 1 << 16)  # PACKET_FANOUT_LB
        lane = Lane(0, (Input("near", "afpacket", SLOT, interface=wire.near),), fanout_group=99, fanout_size=2)
        with pytest.raises(SourceError, match=r"^tm-near: the kernel refuses .* the fan-out group"):
            _worker(tmp_path, wire, lane=lane).start()


def test_without_the_capability_it_says_which(tmp_path: Path, wire: Wire) -> None:
    script = """
import os
from broker.core.model import Input, Lane
from stages.capture.packet_socket import PacketSocket
os.setgroups([]); os.setgid(65534); os.setuid(65534)
live = Input("near", "afpacket", interface="lo")
PacketSocket(live, Lane(0, (live,)), b"")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert "lo: capturing needs the capability CAP_NET_RAW (or root)" in done.stderr
