"""pcapng files with every kind of block, written by hand from the draft; libpcap and tshark are the measure where they can read them."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from broker.core.layout import MAX_FRAME_BYTES
from stages.capture.walk import MAX_NS
from tests import libpcap
from tests.libpcap import Record
from tests.stages.capture import tshark
from tests.stages.capture.support import Worker, files, read
from tests.stages.capture.writers import Pcapng, frame, option
from tests.waiting import until

SECOND = 10**9
NOW = 1_700_000_000


def _write(path: Path, *sections: Pcapng) -> Path:
    path.write_bytes(b"".join(section.bytes() for section in sections))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tsresol", [None, *range(20), *range(128, 192)])
def test_every_time_resolution(tmp_path: Path, order: str, tsresol: int | None) -> None:
    """The twin is exact arithmetic; libpcap agrees wherever its 64 bits hold the product."""
    per_s = 10**6 if tsresol is None else (2 ** (tsresol & 127) if tsresol & 128 else 10**tsresol)
    units = [0, 1, per_s - 1, per_s, min(NOW * per_s + per_s // 3, 2**64 - 1), 2**63 - 1, 2**63, 2**64 - 1]
    section = Pcapng(order).section().interface(tsresol=tsresol)
    for n, each in enumerate(units):
        section.enhanced(frame(n), units=each)
    path = _write(tmp_path / "a.pcapng", section)
    worker = read(tmp_path, path)
    assert [r.ts_ns for r in worker.records] == [min(each * SECOND // per_s, MAX_NS) for each in units]
    assert [r.data for r in worker.records] == [frame(n) for n in range(len(units))]
    if per_s * SECOND < 2**64:
        theirs = [min(r.ts_ns, MAX_NS) for r in libpcap.read(path).records]
        assert all(a == b.ts_ns for a, b, n in zip(theirs, worker.records, units, strict=True) if n < 2**63)  # its time_t is signed


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("offset", [0, 3600, -3600, -(2**63), 2**63 - 1, -NOW - 10])
def test_every_time_offset(tmp_path: Path, order: str, offset: int) -> None:
    path = _write(tmp_path / "a.pcapng", Pcapng(order).section().interface(tsoffset=offset).enhanced(frame(1), units=NOW * 10**6 + 5))
    (record,) = read(tmp_path, path).records
    exact = (NOW + offset) * SECOND + 5000
    floor = NOW * SECOND + 5000 - MAX_NS // SECOND * SECOND
    assert record.ts_ns == max(min(exact, MAX_NS), floor)
    if abs(offset) < 2**31:
        assert libpcap.read(path).records[0].ts_ns == exact


@pytest.mark.parametrize("order", ["<", ">"])
def test_all_kinds_of_packet_blocks_and_those_without_packets(tmp_path: Path, order: str) -> None:
    section = Pcapng(order).section(options=option(4, b"by hand", order)).interface(tsresol=9)
    section.enhanced(frame(1, 61), wirelen=1000, units=NOW * SECOND + 1)
    section.block(5, bytes(12))  # interface statistics
    section.block(4, bytes(4))  # name resolution
    section.obsolete(frame(2, 62), wirelen=70, units=NOW * SECOND + 2)
    section.block(0x0BAD, bytes(8)).block(0x4000_0BAD, bytes(300_000)).block(10, bytes(20))
    section.simple(frame(3, 63))
    path = _write(tmp_path / "a.pcapng", section)
    expected = [
        Record(NOW * SECOND + 1, 1000, frame(1, 61)),
        Record(NOW * SECOND + 2, 70, frame(2, 62)),
        Record(0, 63, frame(3, 63)),
    ]
    worker = read(tmp_path, path)
    assert worker.records == libpcap.read(path).records == expected
    assert not worker.report


@pytest.mark.parametrize("orders", ["<<", ">>", "<>", "><", "<><"])
def test_sections_have_their_own_byte_order_and_interfaces(tmp_path: Path, orders: str) -> None:
    """libpcap refuses a byte order that changes; Wireshark reads it."""
    sections, expected = [], []
    for n, order in enumerate(orders):
        section = Pcapng(order).section((1, 2 * (n % 2))).interface(tsresol=6 + n)
        section.enhanced(frame(n), units=(NOW + n) * 10 ** (6 + n))
        section.interface(tsresol=0, snaplen=10).enhanced(frame(n + 10), interface=1, units=NOW)
        sections.append(section)
        expected += [Record((NOW + n) * SECOND, 60, frame(n)), Record(NOW * SECOND, 60, frame(n + 10))]
    path = _write(tmp_path / "a.pcapng", *sections)
    worker = read(tmp_path, path)
    assert worker.records == expected
    assert tshark.read(path) == (expected, 0, True)


def test_packets_of_other_interfaces_are_counted_and_dropped(tmp_path: Path) -> None:
    section = Pcapng().section().interface().interface(linktype=113).interface()
    for n in range(300):
        section.enhanced(frame(n), interface=n % 3)
    path = _write(tmp_path / "a.pcapng", section)
    worker = read(tmp_path, path)
    assert worker.records == [Record(0, 60, frame(n)) for n in range(300) if n % 3 != 1]
    assert worker.count("dropped_linktype") == 100
    assert worker.count("captured_packets") == 200


def test_a_file_without_ethernet_is_accounted_for_to_the_last_packet(tmp_path: Path) -> None:
    """Blocks without packets carry the count: a counter is committed with a block only."""
    section = Pcapng().section().interface(linktype=101)
    for n in range(70_000):
        section.enhanced(b"", interface=0, units=n)
    worker = read(tmp_path, _write(tmp_path / "a.pcapng", section))
    assert not worker.records
    assert worker.count("dropped_linktype") == 70_000
    assert worker.blocks == [0, 0]


@pytest.mark.parametrize("snaplen", [0, 40, 41, 60, 100])
def test_a_simple_packet_is_as_long_as_its_interfaces_snapshot_length(tmp_path: Path, snaplen: int) -> None:
    stored = min(60, snaplen or 60)
    path = _write(tmp_path / "a.pcapng", Pcapng().section().interface(snaplen=snaplen).simple(frame(1)[:stored], wirelen=60))
    expected = [Record(0, 60, frame(1)[:stored])]
    assert read(tmp_path, path).records == libpcap.read(path).records == expected


def test_many_interfaces(tmp_path: Path) -> None:
    section = Pcapng().section()
    for n in range(300):
        section.interface(linktype=1 + n % 2, tsoffset=n)
        section.enhanced(frame(n), interface=n)
    worker = read(tmp_path, _write(tmp_path / "a.pcapng", section))
    assert worker.records == [Record(n * SECOND, 60, frame(n)) for n in range(0, 300, 2)]


def _sizes() -> tuple[bytes, list[Record]]:
    """Packets of the greatest length, and blocks with and without packets that are longer than a block of the ring."""
    big = frame(1, MAX_FRAME_BYTES)
    section = Pcapng().section(options=option(1, bytes(60_000)) * 9).interface()
    section.enhanced(big, units=1).enhanced(frame(2), units=2).block(0x0BAD, bytes(3_000_000)).simple(big)
    comments = option(1, bytes(60_000)) * 7
    section.block(6, struct.pack("<IIIII", 0, 0, 3, 60, 60) + frame(3) + comments).obsolete(big, MAX_FRAME_BYTES, units=4)
    section.block(1, struct.pack("<HHI", 1, 0, 0) + comments).enhanced(frame(5), interface=1, units=5)
    expected = [(1, big), (2, frame(2)), (0, big), (3, frame(3)), (4, big), (5, frame(5))]
    return section.bytes(), [Record(1000 * n, len(data), data) for n, data in expected]


def test_the_longest_packets_and_blocks_longer_than_the_rings(tmp_path: Path) -> None:
    content, expected = _sizes()
    path = tmp_path / "a.pcapng"
    path.write_bytes(content)
    worker = read(tmp_path, path)
    assert worker.records == libpcap.read(path).records == expected
    assert not worker.report


def test_a_pipe_gives_blocks_longer_than_the_rings_too(tmp_path: Path) -> None:
    content, expected = _sizes()
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: Path(f"/dev/fd/{writer}").write_bytes(content))
    thread.start()
    worker = Worker(tmp_path, files(f"/dev/fd/{reader}")).start()
    until(lambda: worker.step() >= 0 and len(worker.records) == len(expected), "all packets")
    thread.join()
    os.close(writer)
    worker.run()
    os.close(reader)
    assert worker.records == expected
    assert not worker.report


def test_a_block_longer_than_the_rings_must_end_with_its_length_and_be_whole(tmp_path: Path) -> None:
    good = Pcapng().section().interface().enhanced(frame(1))
    for order, path in (("<", tmp_path / "little"), (">", tmp_path / "big")):
        long = Pcapng(order).section().block(0x0BAD, bytes(600_000), trailer=77).bytes()
        at = len(good.bytes()) + 28
        path.write_bytes(good.bytes() + long)
        assert read(tmp_path, path).report.splitlines()[-1] == f"{path}: byte {at}: a block whose two lengths differ; the second is 77"
        path.write_bytes(good.bytes() + long[:-5])
        reason = "ends in the middle of a record: 600007 of 600012 bytes are there"
        assert read(tmp_path, path).report.splitlines()[-1] == f"{path}: byte {at}: {reason}"


def _bad() -> list[tuple[str, Pcapng, str]]:
    """(what, the blocks after a good section with one packet, reason)."""
    ten = option(9, b"\x0a")
    return [
        ("length 8", Pcapng().block(6, b"", length=8), "a block length of 8, which is not a multiple of 4 from 12 to 16,777,216"),
        ("odd length", Pcapng().block(6, bytes(20), length=31), "a block length of 31, which is not a multiple of 4 from 12 to 16,777,216"),
        ("huge", Pcapng().block(9, b"", length=2**31), "a block length of 2147483648, which is not a multiple of 4 from 12 to 16,777,216"),
        ("trailer", Pcapng().block(9, bytes(8), trailer=24), "a block whose two lengths differ; the second is 24"),
        ("short enhanced", Pcapng().block(6, bytes(16)), "a block of 28 bytes, too short for its type"),
        ("short simple", Pcapng().block(3, b""), "a block of 12 bytes, too short for its type"),
        ("short interface", Pcapng().block(1, bytes(4)), "a block of 16 bytes, too short for its type"),
        ("interface", Pcapng().enhanced(frame(1), interface=1), "a packet of interface 1, which its section does not describe"),
        ("caplen", Pcapng().enhanced(frame(1), caplen=77), "a packet of 77 bytes, more than its block holds"),
        ("simple caplen", Pcapng().simple(frame(1), wirelen=61), "a packet of 61 bytes, more than its block holds"),
        ("giant", Pcapng().enhanced(bytes(262_145)), "a record of 262145 bytes, more than a packet can have (262,144)"),
        ("option", Pcapng().block(1, bytes([1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 9, 0])), "an option of 9 bytes, more than its block holds"),
        ("resolution", Pcapng().interface(tsresol=20), "a time resolution of 10^-20 s"),
        ("binary resolution", Pcapng().interface(tsresol=192), "a time resolution of 2^-64 s"),
        ("magic", Pcapng().block(0x0A0D0D0A, bytes(16)), "byte-order magic 00000000 is not known"),
        ("version", Pcapng().section((2, 0)), "pcapng version 2.0 is not known"),
        ("section length", Pcapng().block(0x0A0D0D0A, b"\x4d\x3c\x2b\x1a", length=16), "a section header of 16 bytes"),
        ("no interface", Pcapng().section().enhanced(ten), "a packet of interface 0, which its section does not describe"),
    ]


@pytest.mark.parametrize(("what", "tail", "reason"), _bad(), ids=[what for what, _, _ in _bad()])
def test_a_block_that_contradicts_itself_ends_the_file_with_its_offset(tmp_path: Path, what: str, tail: Pcapng, reason: str) -> None:
    """What came before is given. libpcap refuses every one of these too."""
    good = Pcapng().section().interface().enhanced(frame(7), units=5)
    path = _write(tmp_path / "a.pcapng", good, tail)
    theirs = libpcap.read(path)
    assert theirs.error
    worker = read(tmp_path, path)
    assert worker.records == theirs.records == [Record(5000, 60, frame(7))]
    start, _, said = worker.report.strip().removeprefix(f"{path}: byte ").partition(": ")
    assert said == reason
    assert len(good.bytes()) <= int(start) < len(good.bytes() + tail.bytes())


@pytest.mark.parametrize("cut", range(1, 100, 7))
def test_a_truncated_file_gives_what_is_whole_and_says_where_it_ends(tmp_path: Path, cut: int) -> None:
    good, last = Pcapng().section().interface().enhanced(frame(1)), Pcapng().enhanced(frame(2))
    path = tmp_path / "a.pcapng"
    path.write_bytes(good.bytes() + last.bytes()[:cut])
    assert libpcap.read(path).error
    worker = read(tmp_path, path)
    assert worker.records == [Record(0, 60, frame(1))]
    wanted = 12 if cut < 12 else len(last.bytes())
    assert worker.report == f"{path}: byte {len(good.bytes())}: ends in the middle of a record: {cut} of {wanted} bytes are there\n"


def test_an_option_of_another_length_than_its_own_is_left_alone(tmp_path: Path) -> None:
    """As by Wireshark; libpcap refuses the file."""
    section = Pcapng().section()
    section.block(1, bytes([1, 0, 0, 0, 0, 0, 0, 0]) + option(9, b"\x09\x00") + option(14, b"\x01") + option(0, b""))
    path = _write(tmp_path / "a.pcapng", section.enhanced(frame(1), units=NOW * 10**6))
    expected = [Record(NOW * SECOND, 60, frame(1))]
    assert tshark.read(path) == (expected, 0, True)
    assert read(tmp_path, path).records == expected
