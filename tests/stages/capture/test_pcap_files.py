"""pcap files of every kind, written by hand; what libpcap makes of them is the measure."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from broker.core.layout import MAX_FRAME_BYTES, Geometry
from broker.core.metrics import index
from stages.capture.errors import SourceError
from tests import libpcap
from tests.libpcap import Record
from tests.stages.capture.support import SLOT, Worker, files, read
from tests.stages.capture.writers import frame, numbered, pcap_header, pcap_record
from tests.waiting import until

MICRO, NANO, MODIFIED = 0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34


def _write(path: Path, records: list[Record], order: str = "<", magic: int = MICRO, **header: object) -> Path:
    extra = bytes(8) if magic == MODIFIED else b""
    body = b"".join(pcap_record(r, order, 1 if magic == NANO else 1000, extra=extra) for r in records)
    path.write_bytes(pcap_header(order, magic, **header) + body)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [MICRO, NANO, MODIFIED])
def test_every_byte_order_and_resolution(tmp_path: Path, order: str, magic: int) -> None:
    records = numbered(3000, step_ns=1_000_001 if magic == NANO else 1_000_000)
    path = _write(tmp_path / "a.pcap", records, order, magic)
    assert libpcap.read(path).records == records
    worker = read(tmp_path, path)
    assert worker.records == records
    assert worker.count("captured_packets") == 3000
    assert worker.count("captured_bytes") == sum(r.wirelen for r in records)
    assert set(worker.inputs) == {SLOT}
    assert not worker.report


@pytest.mark.parametrize(
    ("version", "swapped"),
    [((2, 4), False), ((2, 3), False), ((2, 3), True), ((2, 2), True), ((2, 0), True), ((543, 0), True), ((2, 5), False)],
)
def test_lengths_in_the_order_of_the_version(tmp_path: Path, version: tuple[int, int], swapped: bool) -> None:
    """Before 2.3 and in 543.0 wirelen comes first; in 2.3 the smaller is caplen. 2.5 is unknown to libpcap, Wireshark reads it as 2.4."""
    records = [Record(r.ts_ns, r.wirelen + 100, r.data) for r in numbered(5)]
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap_header(version=version) + b"".join(pcap_record(r, swapped=swapped) for r in records))
    theirs = libpcap.read(path)
    assert theirs.refused == (version == (2, 5))
    assert read(tmp_path, path).records == records
    if not theirs.refused:
        assert theirs.records == records


def test_a_record_longer_than_the_files_snapshot_length_is_cut_as_by_libpcap_and_counted(tmp_path: Path) -> None:
    records = numbered(30, length=100)
    path = _write(tmp_path / "a.pcap", records, snaplen=101)
    worker = read(tmp_path, path)
    assert worker.records == libpcap.read(path).records
    assert worker.count("cut_packets") == sum(len(r.data) > 101 for r in records) > 0


@pytest.mark.parametrize("network", [1, 1 | 0x2400_0000, 1 | 0xFC00_0000])
def test_bits_above_the_link_type_are_not_the_link_type(tmp_path: Path, network: int) -> None:
    """They say how long the frame check sequence is."""
    path = _write(tmp_path / "a.pcap", numbered(3), network=network)
    assert read(tmp_path, path).records == libpcap.read(path).records == numbered(3)


def test_empty_and_odd_lengths(tmp_path: Path) -> None:
    """Nothing stored, more stored than there was, nothing at all on the wire."""
    records = [Record(0, 60, b""), Record(10**9, 10, frame(1)), Record(2 * 10**9, 0, b""), Record((2**32 - 1) * 10**9, 2**32 - 1, frame(2))]
    path = _write(tmp_path / "a.pcap", records)
    assert read(tmp_path, path).records == libpcap.read(path).records == records


def test_the_longest_frame_fits_a_block_alone(tmp_path: Path) -> None:
    records = [Record(n * 1000, MAX_FRAME_BYTES, os.urandom(MAX_FRAME_BYTES)) for n in range(3)]
    path = _write(tmp_path / "a.pcap", records)
    worker = read(tmp_path, path)
    assert worker.records == records
    assert worker.blocks == [1, 1, 1]


def test_every_byte_of_a_file_is_read_once_or_nearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the rows of a block are used up long before its bytes, and when the packets' sizes change."""
    records = [*numbered(20_000), *numbered(2_000, length=1500), *numbered(20_000)]
    path, read_bytes, real = _write(tmp_path / "a.pcap", records), 0, os.preadv

    def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal read_bytes
        got = real(fd, buffers, offset)
        read_bytes += got
        return got

    monkeypatch.setattr(os, "preadv", counted)
    assert read(tmp_path, path).records == records
    assert read_bytes < 1.2 * path.stat().st_size


def test_a_record_longer_than_the_block_that_the_file_does_not_hold_whole_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.pcap", [*numbered(1), Record(0, 5000, bytes(5000))])
    os.truncate(path, 24 + 76 + 16 + 4990)
    worker = read(tmp_path, path, geometry=Geometry(data_bytes=4096))
    assert worker.records == numbered(1)
    assert worker.count("dropped_oversize") == 0
    assert worker.report == f"{path}: byte 100: ends in the middle of a record: 5006 of 5016 bytes are there\n"


def test_a_frame_longer_than_the_configured_block_is_counted(tmp_path: Path) -> None:
    records = [*numbered(10), Record(0, 5000, bytes(5000)), *numbered(10)]
    worker = read(tmp_path, _write(tmp_path / "a.pcap", records), geometry=Geometry(data_bytes=4096))
    assert worker.records == numbered(10) * 2
    assert worker.count("dropped_oversize") == 1


def test_frames_never_straddle_blocks_and_blocks_are_filled(tmp_path: Path) -> None:
    """By rows or by bytes, whatever comes first."""
    path = _write(tmp_path / "a.pcap", numbered(2500))
    by_rows = read(tmp_path, path, geometry=Geometry(max_packets=1000))
    assert by_rows.blocks == [1000, 1000, 500]
    by_bytes = read(tmp_path, path, geometry=Geometry(data_bytes=sum(16 + len(r.data) for r in numbered(99))))
    assert by_bytes.blocks == [99] * 25 + [25]
    assert by_rows.records == by_bytes.records == numbered(2500)


def test_files_are_played_in_order_across_inputs(tmp_path: Path) -> None:
    """Also when one block holds the end of one file and the beginning of the next."""
    paths = [_write(tmp_path / f"{n}.pcap", numbered(n + 1, start_ns=n * 10**9)) for n in range(4)]
    worker = Worker(tmp_path, files(*paths[:2], slot=3), files(*paths[2:], slot=9)).start().run()
    assert worker.records == [r for n in range(4) for r in numbered(n + 1, start_ns=n * 10**9)]
    assert worker.inputs == [3] * 3 + [9] * 7
    assert (worker.count("captured_packets", 3), worker.count("captured_packets", 9)) == (3, 7)
    assert worker.blocks == [10]


def _truncations() -> list[tuple[int, int, str]]:
    record = len(pcap_record(numbered(1)[0]))
    begin = 24 + record
    return [
        (begin + 7, begin, "ends in the middle of a record: 7 of 16 bytes are there"),
        (begin + 16, begin, "ends in the middle of a record: 16 of 77 bytes are there"),
        (begin + 76, begin, "ends in the middle of a record: 76 of 77 bytes are there"),
    ]


@pytest.mark.parametrize(("length", "offset", "reason"), _truncations())
def test_a_truncated_file_gives_what_is_whole_and_says_where_it_ends(tmp_path: Path, length: int, offset: int, reason: str) -> None:
    whole = _write(tmp_path / "whole.pcap", numbered(5))
    cut, good = tmp_path / "cut.pcap", _write(tmp_path / "good.pcap", numbered(2))
    cut.write_bytes(whole.read_bytes()[:length])
    assert "truncated" in libpcap.read(cut).error
    worker = read(tmp_path, cut, good)
    assert worker.records == [*numbered(1), *numbered(2)]
    assert worker.report == f"{cut}: byte {offset}: {reason}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "byte 0: is empty"),
        (b"\xd4\xc3\xb2\xa1" + bytes(8), "byte 12: ends in the middle of its header"),
        (b"hello world, this is text", "byte 0: is neither pcap nor pcapng: it begins with 68656c6c"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "byte 0: is compressed; give its content: gunzip -c FILE | tapmesh replay - ..."),
        (pcap_header(version=(1, 4)), "byte 4: pcap version 1.4 is not known"),
        (pcap_header(network=113), "byte 20: link type 113; only Ethernet (1) is read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words_before_anything_is_played(tmp_path: Path, content: bytes, message: str) -> None:
    good, bad = _write(tmp_path / "good.pcap", numbered(3)), tmp_path / "bad.pcap"
    bad.write_bytes(content)
    worker = Worker(tmp_path, files(good, bad))
    with pytest.raises(SourceError) as caught:
        worker.start()
    assert str(caught.value) == f"{bad}: {message}"
    assert worker.report == f"{caught.value}\n"


def test_all_files_that_cannot_be_opened_are_reported(tmp_path: Path) -> None:
    worker = Worker(tmp_path, files(tmp_path / "missing.pcap", tmp_path))
    with pytest.raises(SourceError, match="cannot be opened: No such file or directory"):
        worker.start()
    assert worker.report == f"{tmp_path}/missing.pcap: cannot be opened: No such file or directory\n{tmp_path}: is a directory\n"


def test_a_record_that_is_too_long_ends_the_file_and_the_next_one_is_played(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.pcap", _write(tmp_path / "good.pcap", numbered(2))
    bad.write_bytes(pcap_header() + pcap_record(numbered(1)[0]) + pcap_record(Record(0, 1, bytes(MAX_FRAME_BYTES + 1))))
    assert libpcap.read(bad).error
    worker = read(tmp_path, bad, good)
    assert worker.records == [*numbered(1), *numbered(2)]
    assert worker.report == f"{bad}: byte {24 + 16 + 60}: a record of 262145 bytes, more than a packet can have (262,144)\n"


def test_a_pipe_is_read_as_it_fills_and_never_blocks(tmp_path: Path) -> None:
    """Cut at every odd place: between the halves there is nothing to do, and the descriptor to wait for is the pipe's."""
    content = _write(tmp_path / "a.pcap", numbered(2)).read_bytes()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for cut in (0, 2, 10, 24, 30, 40, 60, len(content) - 1):
        worker = Worker(tmp_path, files(fifo)).start()
        assert worker.step() == 0
        writer = os.open(fifo, os.O_WRONLY)
        os.write(writer, content[:cut])
        worker.step()
        assert worker.step() == 0
        assert not worker.capture.finished
        assert worker.capture.wait_fd >= 0
        os.write(writer, content[cut:])
        os.close(writer)
        until(lambda worker=worker: worker.step() or worker.capture.finished, "the rest of the pipe")
        worker.run()
        assert worker.records == numbered(2)
    assert not worker.report


def test_a_pipe_whose_packets_are_not_due_is_not_waited_for(tmp_path: Path) -> None:
    """It has ended or has more to give: waiting for it would return at once, again and again, until the next packet is due."""
    reader, writer = os.pipe()
    os.write(writer, _write(tmp_path / "a.pcap", numbered(2)).read_bytes())
    os.close(writer)
    worker = Worker(tmp_path, files(f"/dev/fd/{reader}", pace="0.01")).start()
    assert worker.step() == 1
    assert worker.step() == 0
    assert worker.capture.due_ns > 0
    assert worker.capture.wait_fd == -1
    worker.die()
    os.close(reader)


def test_a_pipe_whose_writer_came_first_is_read_to_its_end(tmp_path: Path) -> None:
    """Nobody may open it to have a look and close it again: the writer would be told that nobody reads."""
    content, fifo = _write(tmp_path / "a.pcap", numbered(5000)).read_bytes(), tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=fifo.write_bytes, args=(content,))
    thread.start()
    worker = Worker(tmp_path, files(fifo)).start()
    until(lambda: worker.step() == 0 and worker.capture.finished, "the end of the pipe")
    thread.join()
    worker.die()
    assert worker.records == numbered(5000)


def test_standard_input_is_a_file_named_dash(tmp_path: Path) -> None:
    content = _write(tmp_path / "a.pcap", numbered(5000)).read_bytes()
    reader, writer = os.pipe()
    keep = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)

    def feed() -> None:
        with open(writer, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=feed)
    try:
        worker = Worker(tmp_path, files("-")).start()
        thread.start()
        until(lambda: worker.step() == 0 and worker.capture.finished, "the end of standard input")
        worker.die()
    finally:
        os.dup2(keep, 0)
        os.close(keep)
        thread.join()
    assert worker.records == numbered(5000)


def test_stop_ends_a_file_at_once(tmp_path: Path) -> None:
    worker = Worker(tmp_path, files(_write(tmp_path / "a.pcap", numbered(5000)))).start()
    assert worker.step() == 1024
    worker.capture.stop()
    assert worker.capture.finished
    assert worker.step() == 0
    worker.die()


def test_a_lane_without_files_is_finished(tmp_path: Path) -> None:
    assert Worker(tmp_path, files()).start().capture.finished


def test_the_position_says_how_far_a_file_was_read(tmp_path: Path) -> None:
    worker = Worker(tmp_path, files(_write(tmp_path / "a.pcap", numbered(1)), _write(tmp_path / "b.pcap", numbered(2000)))).start()
    worker.step()
    at = 24 + sum(16 + len(r.data) for r in numbered(1023))
    assert int(worker.committed[index("capture", "source_file")]) == 1
    assert int(worker.committed[index("capture", "source_at")]) == at
    worker.die()
