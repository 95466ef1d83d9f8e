"""A capture worker dies and another goes on with its socket: every frame once, in order, whatever had been read, taken or published."""

from __future__ import annotations

import contextlib
import ctypes
import random
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.core.metrics import N_COUNTERS, index
from broker.core.model import Input, Lane
from broker.privileges import asking
from stages.capture.endpoint_kernels import SOCKET
from stages.capture.packet_socket import PacketSocket
from stages.capture.reading import READING, Reading
from stages.capture.received import Received
from stages.capture.socket_filter import TAKE_ALL
from tests.netns import needs_root
from tests.privileges.opener import opener_of
from tests.stages.capture.support import SLOT, Worker
from tests.stages.capture.test_endpoint import Host, host, send, take  # noqa: F401 - a fixture
from tests.stages.capture.test_interface import Wire, _accounted, _drain, _frame, _take, _worker, wire  # noqa: F401 - a fixture
from tests.stages.wire.tunnels import vxlan
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def kept(tmp_path: Path, wire: Wire) -> Iterator[Path]:  # noqa: F811
    """A directory whose opener is at work."""
    with opener_of(tmp_path):
        yield tmp_path


def _frames(worker: Worker) -> list[bytes]:
    return [r.data for r in worker.records]


def _closes(worker: Worker, n_sent: int) -> None:
    _drain(worker)
    assert worker.count("seen_packets") == _accounted(worker) == n_sent


def test_nothing_is_lost_between_two_workers(kept: Path, wire: Wire) -> None:  # noqa: F811
    frames = [_frame(n) for n in range(120)]
    worker = _worker(kept, wire).start()
    wire.send(*frames[:30])
    _take(worker, 30)
    wire.send(*frames[30:80])
    until(lambda: worker.step(publish=False), "packets of a block that is never published")
    worker.die()
    wire.send(*frames[80:])
    worker.start()
    assert _take(worker, 120) == frames
    assert worker.count("dropped_restart") == 0
    _closes(worker, 120)


@pytest.mark.parametrize("seed", range(6))
def test_any_number_of_deaths_anywhere(kept: Path, wire: Wire, seed: int) -> None:  # noqa: F811
    """Blocks of ours end anywhere in those of the kernel, which are used again and again, and with a small ring are all taken at times."""
    rng = random.Random(seed)
    small = seed % 2
    live = Input("near", "afpacket", SLOT, interface=wire.near, ring_bytes=512 * 1024 if small else 4 * 1024 * 1024, shed=False)
    worker = _worker(kept, wire, lane=Lane(0, (live,)), max_packets=rng.choice((7, 64, 1000)), data_bytes=256 * 1024).start()
    sent: list[bytes] = []
    deaths = 0
    for _ in range(200):
        if len(sent) - len(worker.records) < 150:
            more = [_frame(len(sent) + n, rng.randint(60, 1500)) for n in range(rng.randint(0, 80))]
            wire.send(*more)
            sent += more
        what = rng.random()
        if what < 0.7:
            worker.step()
        else:
            if what < 0.85:
                worker.step(publish=False)
            worker.die()
            worker.start()
            deaths += 1
    _closes(worker, len(sent))
    assert deaths > 20
    assert worker.count("dropped_restart") == 0
    assert len(worker.records) == len(sent) - worker.count("dropped_kernel")
    left = iter(sent)
    assert all(any(frame == other for other in left) for frame in _frames(worker)), "in order, and none twice"
    if not small:
        assert worker.count("dropped_kernel") == 0


def test_a_ring_that_overflows_while_nobody_reads_is_counted_to_the_packet(kept: Path, wire: Wire) -> None:  # noqa: F811
    worker = _worker(kept, wire, ring_bytes=256 * 1024).start()
    wire.send(*(_frame(n, 1000) for n in range(100)))
    until(lambda: worker.step(publish=False), "packets")
    worker.die()
    wire.send(*(_frame(n, 1000) for n in range(100, 5000)))
    worker.start()
    until(lambda: worker.step() == 0 and _accounted(worker) == 5000, "all of them")
    assert worker.count("dropped_kernel") > 0
    assert _frames(worker)[:100] == [r[:18] + _frames(worker)[n][18:] for n, r in enumerate(_frame(n, 1000) for n in range(100))]
    assert worker.count("dropped_restart") == 0
    _closes(worker, 5000)


def test_a_member_of_a_fan_out_group_keeps_its_flows(kept: Path, wire: Wire) -> None:  # noqa: F811
    workers = []
    for number in range(2):
        live = Input("near", "afpacket", SLOT, interface=wire.near)
        workers.append(_worker(kept, wire, lane=Lane(number, (live,), fanout_group=4712, fanout_size=2)).start())
    frames = [_frame(n)[:6] + bytes([2, 0, 0, 0, 0, n % 50]) + _frame(n)[12:] for n in range(400)]
    wire.send(*frames[:200])
    workers[0].die()
    wire.send(*frames[200:])
    workers[0].start()
    for worker in workers:
        _drain(worker)
    taken = [_frames(worker) for worker in workers]
    assert sorted(taken[0] + taken[1]) == sorted(frames)
    assert not {f[6:12] for f in taken[0]} & {f[6:12] for f in taken[1]}


def test_after_a_stop_or_another_configuration_a_new_socket_is_opened(kept: Path, wire: Wire) -> None:  # noqa: F811
    worker = _worker(kept, wire).start()
    wire.send(_frame(1))
    _take(worker, 1)
    _drain(worker)
    assert asking.all_kept() == []
    worker.start()
    worker.die()
    other = _worker(kept, wire, ring_bytes=1024 * 1024).start()
    (only,) = asking.all_kept()
    with only.socket:
        assert " 1048576 " in only.described
    wire.send(_frame(2))
    _take(other, 1)


def test_an_interface_made_anew_while_nobody_captured_is_found(kept: Path, wire: Wire) -> None:  # noqa: F811
    """What the old one had brought is delivered."""
    worker = _worker(kept, wire).start()
    wire.send(_frame(1))
    worker.die()
    wire.host.ip("link", "del", wire.far)
    wire.make()
    worker.start()
    _take(worker, 1)

    def again() -> bool:
        wire.send(_frame(2))
        return bool(worker.step())

    until(again, "a packet of the new interface", 3.0)
    _drain(worker)
    assert worker.count("seen_packets") == _accounted(worker)


def test_without_its_opener_capture_goes_on(tmp_path: Path, wire: Wire) -> None:  # noqa: F811
    with opener_of(tmp_path) as opener:
        worker = _worker(tmp_path, wire).start()
        opener.send_signal(signal.SIGKILL)
        opener.wait()
        wire.send(*(_frame(n) for n in range(20)))
        _take(worker, 20)
        worker.die()
        worker.start()
        wire.send(*(_frame(n) for n in range(20)))
        _take(worker, 40)
        _closes(worker, 40)


@pytest.mark.parametrize("dies", ["before the kernel is asked", "after the kernel was asked", "before it is done", "never"])
def test_a_reading_is_never_lost_nor_counted_twice(tmp_path: Path, wire: Wire, dies: str) -> None:  # noqa: F811
    """The steps of `Reading.take`, up to where the worker dies."""
    live = np.zeros(N_COUNTERS, np.int64)
    seen_at, dropped_at = index("capture", "seen_packets"), index("capture", "dropped_kernel")
    live[seen_at], live[dropped_at] = 1000, 100
    near = Input("near", "afpacket", interface=wire.near)
    tap = PacketSocket(near, Lane(0, (near,)), TAKE_ALL)
    wire.send(*(_frame(n) for n in range(7)))
    reading = Reading(tmp_path, 0, live, seen_at, dropped_at)
    if dies == "never":
        assert reading.take(tap.fileno())
    else:
        row = np.memmap(tmp_path / "reading-0", READING, "r+")[0:1]
        row["seen"], row["dropped"], row["under_way"] = 1000, 100, 1
        if dies != "before the kernel is asked":
            raw = tap._socket.getsockopt(263, 6, 12)
            row["kernel_seen"], row["kernel_dropped"], _ = struct.unpack("III", raw)
        if dies == "before it is done":
            live[seen_at] = 1007
    again = Reading(tmp_path, 0, live, seen_at, dropped_at)
    again.take(tap.fileno())
    assert (int(live[seen_at]), int(live[dropped_at])) == (1007, 100)
    tap.close()


def test_the_kernel_writes_its_counts_where_reading_looks() -> None:
    """struct tpacket_stats_v3 at its end, aligned."""
    assert READING.fields is not None
    assert [READING.fields[name][1] for name in ("kernel_seen", "kernel_dropped", "kernel_freezes")] == [24, 28, 32]
    assert ctypes.sizeof(ctypes.c_uint) == 4
    assert socket.SOL_SOCKET == 1


def _vxlan(*numbers: int) -> list[bytes]:
    return [vxlan(_frame(n), 1) for n in numbers]


@pytest.mark.parametrize("has_opener", [True, False])
def test_what_a_tunnel_input_had_taken_and_not_published_is_counted(host: Host, has_opener: bool) -> None:  # noqa: F811
    """Datagrams without sequence numbers: no receiver could tell that they are missing."""
    with opener_of(host.directory) if has_opener else contextlib.nullcontext():
        worker = host.worker("vxlan")
        send("vxlan", _vxlan(*range(10)))
        take(worker, 10)
        send("vxlan", _vxlan(*range(10, 30)))
        until(lambda: worker.step(publish=False), "datagrams of a block that is never published")
        worker.die()
        if has_opener:
            send("vxlan", _vxlan(*range(30, 60)))
        worker.start()
        send("vxlan", _vxlan(*range(60, 70)))
        take(worker, 50 if has_opener else 20)
        numbers = [int.from_bytes(frame[14:18], "big") for frame in _frames(worker)]
        assert numbers == [*range(10), *(range(30, 70) if has_opener else range(60, 70))]
        assert worker.count("dropped_restart") == 20
        assert worker.count("dropped_kernel") == 0
        worker.die()
        worker.start()
        assert worker.count("dropped_restart") == 20


def test_the_drops_of_a_socket_are_counted_once_by_all_its_workers(host: Host) -> None:  # noqa: F811
    """More than the buffer holds, also while nobody is there; what is rejected after a stop is no loss."""
    with opener_of(host.directory):
        worker = host.worker("vxlan", buffer_bytes=8192)
        for _ in range(3):
            send("vxlan", _vxlan(*range(400)))
            worker.die()
            worker.start()
            send("vxlan", _vxlan(*range(400)))
        until(lambda: worker.step() == 0 and worker.count("captured_packets") + worker.count("dropped_kernel") == 2400, "all of them")
        assert worker.count("dropped_kernel") > 1000
        before = worker.count("dropped_kernel")
        worker.capture.stop()
        send("vxlan", _vxlan(*range(10)))
        worker.die()
        worker.start()
        send("vxlan", _vxlan(1))
        until(worker.step, "a datagram")
        until(lambda: worker.step() == 0, "nothing more")
        assert worker.count("dropped_kernel") == before
        worker.capture.stop()
        until(lambda: worker.step() == 0 and worker.capture.finished, "the end")
        assert asking.all_kept() == []


def test_a_call_that_was_under_way_is_counted_by_what_the_kernel_has_written(host: Host) -> None:  # noqa: F811
    worker = host.worker("vxlan")
    send("vxlan", _vxlan(*range(20)))
    until(lambda: worker.step(publish=False), "datagrams")
    worker.die()
    row = np.memmap(host.directory / "received-0", SOCKET, "r+", shape=(1,))
    assert (int(row["received"][0]), int(row["before"][0])) == (20, 0)
    row["received"], row["receiving"] = 0, 1
    assert Received(host.directory, 0).datagrams == Received(host.directory, 0).datagrams == 20
