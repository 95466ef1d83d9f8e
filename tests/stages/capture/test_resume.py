"""A worker that is killed resumes where the ring ends: nothing lost, nothing repeated."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from broker.core.layout import Geometry
from stages.capture.errors import SourceError
from tests.libpcap import Record
from tests.stages.capture.support import Worker, files
from tests.stages.capture.writers import Pcapng, frame, numbered, pcap_header, pcap_record
from tests.waiting import until


def _pcap(path: Path, records: list[Record]) -> Path:
    path.write_bytes(pcap_header() + b"".join(pcap_record(r) for r in records))
    return path


def _pcapng(path: Path) -> tuple[Path, list[Record]]:
    """Sections of both byte orders; interfaces between the packets, one of them not Ethernet; large blocks without packets."""
    content, expected = b"", []
    for n, order in enumerate("<>><"):
        section = Pcapng(order).section().interface(tsresol=9)
        for i in range(400):
            if i == 150:
                section.interface(tsresol=6, tsoffset=n).interface(linktype=113)
            interface = i % 3 if i >= 150 else 0
            units = 1000 * n + i
            section.enhanced(frame(1000 * n + i), interface=interface, units=units)
            if interface == 0:
                expected.append(Record(units, 60, frame(1000 * n + i)))
            elif interface == 1:
                expected.append(Record(units * 1000 + n * 10**9, 60, frame(1000 * n + i)))
        section.block(0x0BAD, bytes(400_000))
        content += section.bytes()
    path.write_bytes(content)
    return path, expected


@pytest.mark.parametrize("seed", range(6))
def test_a_worker_killed_at_any_block_repeats_and_loses_nothing(tmp_path: Path, seed: int) -> None:
    """It dies after publishing, or with a filled block that nobody will see; over several files and formats."""
    chance = random.Random(seed)
    ng, from_ng = _pcapng(tmp_path / "b.pcapng")
    first, last = numbered(700), numbered(300, length=90)
    inputs = files(_pcap(tmp_path / "a.pcap", first), ng, _pcap(tmp_path / "c.pcap", last))
    worker = Worker(tmp_path, inputs, geometry=Geometry(max_packets=chance.choice((1, 7, 64, 300)), data_bytes=20_000)).start()
    deaths = 0
    while not worker.capture.finished:
        if chance.random() < 0.3:
            if chance.random() < 0.5:
                worker.step(publish=False)
            worker.die()
            worker.start()
            deaths += 1
        else:
            worker.step()
    worker.die()
    assert worker.records == [*first, *from_ng, *last]
    assert worker.count("captured_packets") == len(worker.records)
    assert worker.count("dropped_linktype") == 4 * 83
    assert deaths
    assert not worker.report


def test_a_bad_file_is_reported_once_however_often_the_worker_dies(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pcap"
    bad.write_bytes(pcap_header() + b"".join(pcap_record(r) for r in numbered(100)) + b"rest")
    worker = Worker(tmp_path, files(bad, _pcap(tmp_path / "good.pcap", numbered(10))), geometry=Geometry(max_packets=60)).start()
    worker.step()
    for _ in range(3):
        worker.step(publish=False)
        worker.die()
        worker.start()
    worker.run()
    assert worker.records == [*numbered(100), *numbered(10)]
    assert len(worker.report.splitlines()) == 1


def test_a_finished_source_stays_finished(tmp_path: Path) -> None:
    worker = Worker(tmp_path, files(_pcap(tmp_path / "a.pcap", numbered(10)))).start().run()
    # The last block was committed with the position at the end of the file, whose end nobody had looked at in that step or had.
    again = worker.start()
    again.run()
    assert worker.records == numbered(10)


def test_a_file_that_shrank_is_not_resumed(tmp_path: Path) -> None:
    path = _pcap(tmp_path / "a.pcap", numbered(2000))
    worker = Worker(tmp_path, files(path)).start()
    worker.step()
    worker.die()
    os.truncate(path, 100)
    with pytest.raises(SourceError, match="cannot be resumed: the file has only 100 bytes now"):
        worker.start()


def test_a_pipe_is_not_resumed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    worker = Worker(tmp_path, files(fifo)).start()
    worker.step()
    writer = os.open(fifo, os.O_WRONLY)
    os.write(writer, pcap_header() + b"".join(pcap_record(r) for r in numbered(10)))
    until(worker.step, "packets from the pipe")
    worker.die()
    with pytest.raises(SourceError, match="cannot be resumed: what a pipe has given once is gone"):
        worker.start()
    os.close(writer)
