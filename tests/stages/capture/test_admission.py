"""What is let in while the broker cannot keep up: the table of `admission.py`, and the same live on a veth pair, counted to the packet."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.config.policy import compile_policy
from broker.core import log
from broker.core.model import Config, Input, Lane, Map, Rule, Tool
from broker.core.stage import Generation
from stages.capture.admission import CALM_NS, FEWEST, WINDOW_NS, Admission
from stages.capture.packet_socket import PacketSocket
from stages.capture.socket_filter import SHARES, program
from tests import packets as p
from tests.netns import Namespace, connect, needs_root
from tests.stages.capture.support import SLOT, Worker
from tests.waiting import until


class Pressed:
    """An Admission, and the kernel's counts that it sees."""

    def __init__(self, prefilter: str = "auto", *, shed: bool = True, has_prefilter: bool = True) -> None:
        self.admission = Admission(prefilter, shed, log.get())  # type: ignore[arg-type]
        self.admission.has_prefilter = has_prefilter
        self.now_ns, self.seen, self.dropped = WINDOW_NS, 0, 0

    def window(self, seen: int = 1000, dropped: int = 0, *, crowded: bool = False) -> bool:
        self.now_ns += WINDOW_NS
        self.seen += seen
        self.dropped += dropped
        return self.admission.look(self.now_ns, self.seen, self.dropped, crowded)

    @property
    def state(self) -> tuple[bool, float]:
        return self.admission.prefiltering, round(self.admission.kept / SHARES, 2)


def test_a_ring_half_full_calls_for_the_prefilter_before_anything_is_lost() -> None:
    pressed = Pressed()
    assert not pressed.window()
    assert pressed.window(crowded=True)
    assert pressed.state == (True, 1.0)
    assert not pressed.window(crowded=True)


def test_flows_are_shed_when_the_prefilter_is_not_enough_and_come_back() -> None:
    pressed = Pressed()
    with capture_logs() as logs:
        assert pressed.window(dropped=500)
        assert pressed.state == (True, 1.0)
        assert pressed.window(dropped=500)
        assert pressed.state == (True, 0.47)
        shares = []
        while pressed.window():
            shares.append(pressed.state[1])
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert [line["event"] for line in logs] == ["prefilter_on", "shedding_began", "shedding_ended"]


def test_the_prefilter_goes_after_a_minute_without_pressure() -> None:
    pressed = Pressed()
    pressed.window(crowded=True)
    n = 0
    while not pressed.window():
        n += 1
    assert pressed.state == (False, 1.0)
    assert n * WINDOW_NS >= CALM_NS - 2 * WINDOW_NS


@pytest.mark.parametrize(("prefilter", "has"), [("auto", False), ("on", True), ("off", True)])
def test_without_a_prefilter_to_switch_on_flows_are_shed_at_once(prefilter: str, has: bool) -> None:
    pressed = Pressed(prefilter, has_prefilter=has)
    assert pressed.window(dropped=500)
    assert pressed.state == (prefilter == "on", 0.47)


def test_some_flows_are_always_kept_and_none_is_shed_if_it_must_not_be() -> None:
    pressed, whole = Pressed(), Pressed(shed=False, has_prefilter=False)
    for _ in range(50):
        pressed.window(dropped=999)
        assert not whole.window(dropped=999)
    assert pressed.admission.kept == FEWEST


def test_a_crowded_ring_is_not_given_more() -> None:
    pressed = Pressed()
    pressed.window(dropped=500)
    pressed.window(dropped=500)
    assert not pressed.window(crowded=True)
    assert pressed.window()


# ---- live


@pytest.fixture
def host() -> Iterator[Namespace]:
    with contextlib.closing(Namespace()) as made, made.inside():
        connect(made, "tm-far", made, "tm-near", mtu=9000, quiet=True)
        yield made


def _send(*frames: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("tm-far", 0))
        for frame in frames:
            sender.send(frame)


def _worker(directory: Path, prefilter: str, **keys: int) -> tuple[Worker, Input]:
    live = Input("near", "afpacket", SLOT, interface="tm-near", prefilter=prefilter, **keys)  # type: ignore[arg-type]
    return Worker(directory, lane=Lane(0, (live,))), live


def _load(worker: Worker, live: Input, number: int, *expressions: str) -> None:
    rules = tuple(Rule("pass", text) for text in expressions)
    config = Config("node", (live,), (Tool("t0", 0, file="-"),), (Map("m0", rules, ("t0",)),))
    image = np.frombuffer(compile_policy(config), np.uint8)
    worker.capture.load(Generation(number, config, image, int(image.ctypes.data)))


def _drain(worker: Worker) -> None:
    worker.capture.stop()
    while not worker.capture.finished:
        worker.step()
    worker.die()


def _received(worker: Worker) -> int:
    names = ("captured_packets", "filtered_in_kernel_packets", "dropped_shed_in_kernel", "dropped_kernel", "dropped_restart")
    return sum(worker.count(name) for name in names)


def _udp(port: int, host: int = 1, vlans: tuple[int, ...] = (), length: int = 40) -> bytes:
    return p.udp_frame(f"10.0.0.{host}", 1000, "10.0.1.1", port, bytes(length), vlans=vlans)


@pytest.mark.root
@needs_root
def test_tags_that_the_kernel_strips_are_seen_by_the_prefilter(host: Namespace, tmp_path: Path) -> None:
    """Of untagged, tagged and twice tagged packets; a new policy replaces it; all are counted."""
    worker, live = _worker(tmp_path, "on")
    worker.start()
    _load(worker, live, 1, "udp port 53", "vlan 5 and udp port 80")
    frames = [_udp(port, vlans=vlans) for port in (53, 80, 99) for vlans in ((), (5,), (6,), (5, 7))] * 20
    _send(*frames)
    wanted = [_udp(53), _udp(80, vlans=(5,)), *(_udp(port, vlans=(5, 7)) for port in (53, 80, 99))]
    until(lambda: worker.step() == 0 and _received(worker) == len(frames), "all of them")
    assert sorted(record.data for record in worker.records) == sorted(wanted * 20)
    assert worker.count("filtered_in_kernel_packets") == len(frames) - 100
    _load(worker, live, 2, "udp port 99")
    _send(*frames)
    until(lambda: worker.step() == 0 and _received(worker) == 2 * len(frames), "all of them again")
    assert sorted(record.data for record in worker.records[100:]) == sorted([_udp(99), *wanted[2:]] * 20)
    _drain(worker)
    assert worker.count("seen_packets") == _received(worker) == 2 * len(frames)


@pytest.mark.root
@needs_root
def test_an_overflow_brings_the_prefilter_and_then_sheds_whole_flows_and_every_packet_is_counted(host: Namespace, tmp_path: Path) -> None:
    """Nobody reads while more comes than the ring holds, twice; then all is taken, by a few flows less each time."""
    worker, live = _worker(tmp_path, "auto", ring_bytes=1 << 20)
    worker.start()
    _load(worker, live, 1, "udp port 53")
    burst = [_udp(port, host, length=1000) for host in range(100) for port in (53, 54) for _ in range(20)]
    n_sent = 0

    def overflow() -> None:
        nonlocal n_sent
        _send(*burst)
        n_sent += len(burst)
        until(lambda: worker.step() == 0 and _received(worker) == n_sent, "all of them in the counters")

    assert worker.count("filtered_in_kernel_packets") == 0
    overflow()
    assert worker.count("dropped_kernel") > 0
    before = len(worker.records)
    _send(*burst[:80])
    n_sent += 80
    until(lambda: worker.step() == 0 and _received(worker) == n_sent, "what the prefilter leaves, and the count of the others")
    assert worker.count("filtered_in_kernel_packets") == 40
    assert len(worker.records) == before + 40
    until(lambda: (overflow(), worker.count("dropped_shed_in_kernel") > 0)[1], "packets that were shed")
    _drain(worker)
    assert worker.count("seen_packets") == _received(worker) == n_sent
    assert worker.count("dropped_restart") == 0


_OPTMEM = Path("/proc/sys/net/core/optmem_max")
_OLD_OPTMEM = "20480"  # the default before Linux 6.7


@pytest.mark.root
@needs_root
@pytest.mark.usefixtures("host")
def test_where_the_kernel_has_no_room_for_two_programs_one_takes_the_place_of_the_other() -> None:
    """The option is of this namespace; where it is not, there is no file in here."""
    if not _OPTMEM.exists():
        pytest.skip("needs net.core.optmem_max of each namespace: Linux 6.8")
    live = Input("near", "afpacket", SLOT, interface="tm-near", ring_bytes=1 << 20)
    large = program(b"\x15\x00\x00\x00\xff\xff\xff\xff" * 900, SHARES // 2)  # compares, and goes on either way
    _OPTMEM.write_text(_OLD_OPTMEM)
    with contextlib.closing(PacketSocket(live, Lane(0, (live,)), program(b"", SHARES))) as socket_:
        socket_.attach(large)
        with pytest.raises(OSError, match="Cannot allocate"):
            socket_._attach(large)
        socket_.attach(large)
        with pytest.raises(OSError, match="Cannot allocate"):
            socket_.attach(large + large)
        socket_.reject_all()
