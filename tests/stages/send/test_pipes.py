"""Pipes as files: whole records, whatever the reader does."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.stages.delivery import Sender, Surroundings, file_tool, payload
from tests.stages.send.test_files import block, records


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end to read of a pipe that holds 64 KiB."""
    monkeypatch.setattr("stages.send.files.PIPE_BYTES", 65_536)
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    yield end
    os.close(end)


def read_pipe(fd: int) -> bytes:
    found = io.BytesIO()
    while True:
        try:
            piece = os.read(fd, 1 << 20)
        except BlockingIOError:
            return found.getvalue()
        if not piece:
            return found.getvalue()
        found.write(piece)


def test_a_pipe_gets_whole_records_even_when_it_was_full_in_the_middle_of_one(tmp_path: Path, reading: int) -> None:
    tool = file_tool(0, tmp_path / "pipe")
    sender = Sender(tool)
    read = b""
    for seq in range(4):
        sender.step(block([tool], [payload(1000, i) for i in range(100)], seq=seq))
        read += read_pipe(reading)
    sender.step(block([tool], [payload(60)], seq=4))
    read += read_pipe(reading)
    (tmp_path / "copy.pcap").write_bytes(read)
    found = records(tmp_path / "copy.pcap")[1]
    assert len(found) == sender.delivered() < 401
    assert sender.drops() == {"full": 401 - len(found)}
    assert found[-1][2] == payload(60)


def test_a_pipe_that_nobody_reads_is_a_tool_that_is_down(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    tool = file_tool(0, tmp_path / "pipe")
    sender = Sender(tool)
    sender.step(block([tool], [payload(60)] * 2))
    assert sender.drops() == {"tool_down": 2}


def test_after_a_crash_frames_that_a_pipe_may_have_got_twice_are_counted(tmp_path: Path, reading: int) -> None:
    tool = file_tool(0, tmp_path / "pipe")
    died = Sender(tool)
    died.step(block([tool], [payload(60)] * 3, seq=7))
    again = Sender(tool, surroundings=Surroundings(epoch=2, progress=died.surroundings.progress))
    again.step(block([tool], [payload(60)] * 3, seq=7))
    assert again.count("repeated_frames") == 3


def test_a_record_that_was_begun_is_finished_at_the_end_too(tmp_path: Path, reading: int) -> None:
    tool = file_tool(0, tmp_path / "pipe")
    sender = Sender(tool)
    sender.step(block([tool], [payload(1000)] * 100))
    read = os.read(reading, 10_000)
    sender.stage.close()
    read += read_pipe(reading)
    (tmp_path / "copy.pcap").write_bytes(read)
    assert len(records(tmp_path / "copy.pcap")[1]) == sender.delivered()


def test_after_a_crash_the_reader_of_a_pipe_meets_no_second_beginning(tmp_path: Path, reading: int) -> None:
    tool = file_tool(0, tmp_path / "pipe")
    died = Sender(tool)
    died.step(block([tool], [payload(60)] * 3, seq=0))
    again = Sender(tool, surroundings=Surroundings(epoch=2, counters=died.surroundings.counters.copy()))
    again.step(block([tool], [payload(61)] * 2, seq=1))
    read = read_pipe(reading)
    (tmp_path / "copy.pcap").write_bytes(read)
    assert [len(data) for _, _, data in records(tmp_path / "copy.pcap")[1]] == [60, 60, 60, 61, 61]


def test_a_tool_that_waits_is_asked_again_until_its_reader_has_taken_all_and_others_get_theirs_once(tmp_path: Path, reading: int) -> None:
    waits, other = replace(file_tool(0, tmp_path / "pipe"), waits=True), file_tool(1, tmp_path / "other.pcap")
    sender = Sender(waits, other)
    packets = [payload(1000, i) for i in range(250)]
    batch = block([waits, other], packets, 3)
    read = b""
    steps = 0
    sender.step(batch, check=False)
    while sender.accounted(0) < 250:
        read += os.read(reading, 30_000)
        sender.step(batch, check=False)
        steps += 1
    read += read_pipe(reading)
    assert steps > 2
    (tmp_path / "copy.pcap").write_bytes(read)
    assert [data for _, _, data in records(tmp_path / "copy.pcap")[1]] == packets
    assert [data for _, _, data in records(tmp_path / "other.pcap")[1]] == packets
    assert (sender.delivered(0), sender.drops(0), sender.delivered(1)) == (250, {}, 250)
