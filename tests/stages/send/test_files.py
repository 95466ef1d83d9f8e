"""Files: what lies in them, and that they hold exactly what was counted as delivered, whatever fails and whenever the worker dies."""

from __future__ import annotations

import itertools
import os
import resource
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from broker.core.batch import Batch
from broker.core.model import Tool
from stages.send import egress
from tests import packets as by_hand
from tests.stages.delivery import (
    NOON_NS,
    Sender,
    Surroundings,
    encapsulate,
    file_tool,
    fill,
    frames,
    gre_tool,
    new_batch,
    payload,
)

RECORD = struct.Struct("<IIII")


def block(tools: list[Tool], packets: list[bytes], verdicts: list[int] | int = 1, seq: int = 0, **rows: list[int]) -> Batch:
    batch = new_batch()
    batch.seq = seq
    fill(batch, packets, verdicts, **rows)
    encapsulate(batch, *tools)
    return batch


def records(path: Path) -> tuple[int, list[tuple[int, int, bytes]]]:
    """(link type, [(ts_ns, original length, bytes)]), by struct; fails on anything cut."""
    data = path.read_bytes()
    magic, major, minor, zone, sigfigs, snaplen, linktype = struct.unpack_from("<IHHiIII", data)
    assert (magic, major, minor, zone, sigfigs, snaplen) == (0xA1B23C4D, 2, 4, 0, 0, 262_144)
    at, found = 24, []
    while at < len(data):
        seconds, nanoseconds, caplen, wirelen = RECORD.unpack_from(data, at)
        at += 16 + caplen
        assert at <= len(data), "the last record is cut"
        assert nanoseconds < 1_000_000_000
        found.append((seconds * 1_000_000_000 + nanoseconds, wirelen, data[at - caplen : at]))
    return linktype, found


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Writing past it is refused with EFBIG; Python ignores the signal."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_bare_frames_come_out_as_they_went_in_with_their_times_and_lengths_on_the_wire(tmp_path: Path) -> None:
    tool = file_tool(3, tmp_path / "out.pcap")
    packets = [payload(n, n) for n in (60, 0, 1514, 61)]
    times = [0, 1, 4_294_967_295_999_999_999, NOON_NS]
    sender = Sender(tool)
    sender.step(block([tool], packets, 8, times=times, wirelens=[60, 40, 9000, 61]))
    sender.stage.close()
    assert records(tmp_path / "out.pcap") == (1, list(zip(times, [60, 40, 9000, 61], packets, strict=True)))
    assert sender.count("file_bytes", 3) == (tmp_path / "out.pcap").stat().st_size
    assert (sender.delivered(3), sender.count("delivered_bytes", 3)) == (4, sum(map(len, packets)))


def test_outer_packets_are_raw_ip_and_a_cut_packet_says_so(tmp_path: Path) -> None:
    tool = gre_tool(0, file=str(tmp_path / "out.pcap"), key=5, sequence=True)
    sender = Sender(tool)
    batch = block([tool], [payload(60), payload(96)], wirelens=[60, 1500])
    sender.step(batch)
    outer = [header + window for _, _, header, window in frames(batch)]
    assert records(tmp_path / "out.pcap") == (101, [(NOON_NS, 92, outer[0]), (NOON_NS + 1, 1500 + 32, outer[1])])
    assert sender.count("delivered_bytes") == sum(map(len, outer))


def test_a_file_is_there_as_soon_as_its_tool_is(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        Sender(file_tool(0, tmp_path / "out.pcap"))
    finally:
        os.umask(mask)
    assert records(tmp_path / "out.pcap") == (1, [])
    assert stat.S_IMODE((tmp_path / "out.pcap").stat().st_mode) == 0o640


def test_frames_that_fill_many_buffers_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.send.formats.BUFFER_BYTES", 2000)
    tool = file_tool(0, tmp_path / "out.pcap")
    packets = [payload(40 + 7 * n, n) for n in range(100)]
    sender = Sender(tool)
    for seq in range(3):
        sender.step(block([tool], packets, seq=seq))
    assert [data for _, _, data in records(tmp_path / "out.pcap")[1]] == packets * 3


def test_tshark_reads_every_outer_packet_back_to_the_frame_with_every_checksum_right(tmp_path: Path) -> None:
    """IPv4 and IPv6, GRE and GRE-in-UDP, every combination of key, sequence and checksum, odd and even lengths. Over IPv4 there is no UDP
    checksum: tshark says 3 of that, absent."""
    ends = {4: ("198.51.100.7", "192.0.2.9"), 6: ("2001:db8::7", "2001:db8:1::9")}
    combinations = list(itertools.product((4, 6), ("gre", "gre-udp"), (None, 0xFFFF_FFFF), (False, True), (False, True)))
    tools = [
        gre_tool(
            slot,
            kind,
            ends[version][1],
            str(tmp_path / f"{slot}.pcap"),
            source=ends[version][0],
            key=key,
            sequence=sequence,
            checksum=checksum,
        )
        for slot, (version, kind, key, sequence, checksum) in enumerate(combinations)
    ]
    packets = [by_hand.ethernet(payload(n, n), type=0x88B5) for n in (46, 47, 333, 1500)]  # an EtherType that nobody dissects
    Sender(*tools).step(block(tools, packets, (1 << len(tools)) - 1))
    joined = tmp_path / "all.pcap"
    joined.write_bytes(
        (tmp_path / "0.pcap").read_bytes() + b"".join((tmp_path / f"{slot}.pcap").read_bytes()[24:] for slot in range(1, len(tools)))
    )
    names = ["ip.checksum.status", "udp.checksum.status", "gre.checksum.status", "gre.key", "gre.sequence_number", "eth.type", "data.data"]
    command = ["tshark", "-r", str(joined), "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-T", "fields"]
    command += [part for name in names for part in ("-e", name)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    got = [line.split("\t") for line in result.stdout.splitlines()]
    good, absent = "1", "3"
    want = [
        [
            good if version == 4 else "", (absent if version == 4 else good) if kind == "gre-udp" else "", good if checksum else "",
            "0xffffffff" if key else "", str(number) if sequence else "", "0x88b5", packet[14:].hex(),
        ]
        for version, kind, key, sequence, checksum in combinations
        for number, packet in enumerate(packets)
    ]  # fmt: skip
    assert got == want


def test_dpkt_reads_the_file(tmp_path: Path) -> None:
    dpkt = pytest.importorskip("dpkt", reason="dpkt is not installed")
    tool = file_tool(0, tmp_path / "out.pcap")
    Sender(tool).step(block([tool], [payload(60), payload(61)], times=[NOON_NS, NOON_NS + 1000]))
    with (tmp_path / "out.pcap").open("rb") as file:
        reader = dpkt.pcap.Reader(file)
        assert reader.datalink() == 1
        assert [data for _, data in reader] == [payload(60), payload(61)]


def test_each_lane_writes_its_own_file_and_each_file_has_one_worker(tmp_path: Path) -> None:
    tools = [file_tool(slot, tmp_path / f"out{slot}.pcap") for slot in range(3)]
    for worker in range(2):
        Sender(*tools, surroundings=Surroundings(lane=1, lanes_total=2, worker=worker, n_workers=2)).step(block(tools, [payload(60)], 7))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out0-lane1.pcap", "out1-lane1.pcap", "out2-lane1.pcap"]
    assert all(len(records(p)[1]) == 1 for p in tmp_path.iterdir())


def test_a_new_pipeline_begins_its_files_anew(tmp_path: Path) -> None:
    tool = file_tool(0, tmp_path / "out.pcap")
    for n in (5, 2):
        Sender(tool).step(block([tool], [payload(60)] * n))
    assert len(records(tmp_path / "out.pcap")[1]) == 2


@pytest.mark.parametrize("torn", [b"", b"\x01", payload(5000)])
def test_after_a_crash_the_file_is_cut_to_what_was_committed_and_the_block_written_once(tmp_path: Path, torn: bytes) -> None:
    """The worker dies in block 1, after any part of it has been written; the next one does block 1 again."""
    path = tmp_path / "out.pcap"
    tool = file_tool(0, path)
    died = Sender(tool)
    died.step(block([tool], [payload(60)] * 3, seq=0))
    committed = died.surroundings.counters.copy()
    died.step(block([tool], [payload(70)] * 4, seq=1))
    died.stage.close()
    with path.open("ab") as file:
        file.write(torn)
    after = Surroundings(epoch=2, counters=committed, progress=died.surroundings.progress)
    again = Sender(tool, surroundings=after)
    again.step(block([tool], [payload(70)] * 4, seq=1))
    assert [data for _, _, data in records(path)[1]] == [payload(60)] * 3 + [payload(70)] * 4
    assert (again.delivered(), again.count("repeated_frames")) == (7, 0)
    assert again.count("file_bytes") == path.stat().st_size


def test_a_file_that_was_put_aside_during_the_crash_is_begun_anew_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "out.pcap"
    tool = file_tool(0, path)
    died = Sender(tool)
    died.step(block([tool], [payload(60)] * 3))
    died.stage.close()
    path.rename(tmp_path / "aside.pcap")
    path.write_bytes(payload(9000))
    again = Sender(tool, surroundings=Surroundings(epoch=2, counters=died.surroundings.counters))
    again.step(block([tool], [payload(61)], seq=1))
    assert [len(records(p)[1]) for p in (tmp_path / "aside.pcap", path)] == [3, 1]


def test_a_reload_keeps_the_file_of_a_tool_that_stays_and_appends_where_only_the_tunnel_changed(tmp_path: Path) -> None:
    stays, gone = file_tool(0, tmp_path / "stays.pcap"), file_tool(1, tmp_path / "gone.pcap")
    changes, changed = (gre_tool(2, file=str(tmp_path / "changes.pcap"), key=key) for key in (1, 2))
    sender = Sender(stays, gone, changes)
    sender.step(block([stays, gone, changes], [payload(60)], 7))
    fds = {slot: egress._fd for slot, egress in sender.stage._egresses.items()}  # type: ignore[attr-defined]
    sender.load(stays, changed)
    assert sender.stage._egresses[0]._fd == fds[0]  # type: ignore[attr-defined]
    assert set(sender.stage._egresses) == {0, 2}
    sender.step(block([stays, changed], [payload(60)], 5, seq=1))
    assert [len(records(tmp_path / f"{name}.pcap")[1]) for name in ("stays", "gone", "changes")] == [2, 1, 2]


def test_a_slot_that_another_tool_takes_over_does_not_inherit_the_length(tmp_path: Path) -> None:
    one, other = file_tool(0, tmp_path / "one.pcap"), Tool("other", 0, None, str(tmp_path / "other.pcap"))
    sender = Sender(one)
    sender.step(block([one], [payload(60)] * 9))
    sender.load(other)
    sender.step(block([other], [payload(60)], seq=1))
    assert [len(records(p)[1]) for p in (tmp_path / "one.pcap", tmp_path / "other.pcap")] == [9, 1]


def test_reloads_to_another_file_and_back_keep_what_is_in_both(tmp_path: Path) -> None:
    a, b = file_tool(0, tmp_path / "a.pcap"), file_tool(0, tmp_path / "b.pcap")
    sender = Sender(a)
    for seq, tool in enumerate((a, b, a, b)):
        if seq:
            sender.load(tool)
        sender.step(block([tool], [payload(60 + seq)], seq=seq))
    assert [[len(data) for _, _, data in records(path)[1]] for path in (tmp_path / "a.pcap", tmp_path / "b.pcap")] == [[60, 62], [61, 63]]


def test_a_reload_overwrites_nothing_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(payload(9000))
    sender = Sender(file_tool(0, tmp_path / "mine.pcap"))
    theirs = file_tool(0, tmp_path / "theirs")
    sender.load(theirs)
    sender.step(block([theirs], [payload(60)]))
    assert (tmp_path / "theirs").read_bytes() == payload(9000)
    assert sender.drops() == {"tool_down": 1}


def test_records_of_another_link_type_are_never_mixed_in(tmp_path: Path) -> None:
    bare, outer = file_tool(0, tmp_path / "out.pcap"), gre_tool(0, file=str(tmp_path / "out.pcap"))
    sender = Sender(bare)
    sender.step(block([bare], [payload(60)]))
    sender.load(outer)
    sender.step(block([outer], [payload(60)], seq=1))
    assert len(records(tmp_path / "out.pcap")[1]) == 1
    assert sender.drops() == {"tool_down": 1}


def test_a_disk_that_is_full_costs_whole_records_which_are_counted_and_the_file_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "out.pcap"
    tool = file_tool(0, path)
    sender = Sender(tool)
    sender.step(block([tool], [payload(60)] * 10, seq=0))
    with largest_file(24 + 14 * 76 + 75):  # room for four and almost a fifth
        sender.step(block([tool], [payload(60)] * 10, seq=1))
        assert (sender.delivered(), sender.drops()) == (14, {"disk": 6})
        assert path.stat().st_size == 24 + 14 * 76 == sender.count("file_bytes")
        sender.step(block([tool], [payload(60)] * 10, seq=2))
        assert (sender.delivered(), sender.drops()) == (14, {"disk": 16})
    sender.step(block([tool], [payload(60)] * 10, seq=3))
    assert (sender.delivered(), sender.drops()) == (24, {"disk": 16})
    assert len(records(path)[1]) == 24


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_file_system_without_space_costs_whole_records_and_other_tools_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        tools = [file_tool(0, small / "out.pcap"), file_tool(1, tmp_path / "out.pcap")]
        sender = Sender(*tools)
        for seq in range(4):
            sender.step(block(tools, [payload(1400)] * 20, 3, seq=seq))
        sender.stage.close()
        n = len(records(small / "out.pcap")[1])
        assert n == sender.delivered(0) == (65_536 - 24) // 1416
        assert sender.drops(0) == {"disk": 80 - n}
        assert sender.delivered(1) == 80
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_tool_whose_directory_is_missing_is_down_until_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000_000]
    monkeypatch.setattr(egress, "time", SimpleNamespace(monotonic_ns=lambda: now[0]))
    tools = [file_tool(0, tmp_path / "later/out.pcap"), file_tool(1, tmp_path / "out.pcap")]
    sender = Sender(*tools)
    sender.step(block(tools, [payload(60)] * 2, 3))
    assert (sender.drops(0), sender.delivered(1)) == ({"tool_down": 2}, 2)
    (tmp_path / "later").mkdir()
    sender.step(block(tools, [payload(60)], 3, seq=1))  # not asked again yet
    assert sender.drops(0) == {"tool_down": 3}
    now[0] += 100_000_000
    sender.step(block(tools, [payload(60)], 3, seq=2))
    assert (sender.drops(0), sender.delivered(0)) == ({"tool_down": 3}, 1)
    assert len(records(tmp_path / "later/out.pcap")[1]) == 1


def test_a_device_that_is_always_full_is_a_full_disk_and_one_that_takes_all_gets_all() -> None:
    tools = [file_tool(0, "/dev/full"), file_tool(1, "/dev/null")]
    sender = Sender(*tools)
    sender.step(block(tools, [payload(60)] * 3, 3))
    assert (sender.drops(0), sender.drops(1), sender.delivered(1)) == ({"disk": 3}, {}, 3)
