"""Rotated files of a running broker, its send worker killed now and again: every record once, in order."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.cli.tapmesh import Broker, numbered, running
from tests.libpcap import needs_libpcap, read
from tests.packets import pcap
from tests.waiting import DEADLINE_S, until

pytestmark = needs_libpcap


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def kill_at(broker: Broker, directory: Path, n_files: int) -> None:
    """kill -9 as soon as there are so many files: most likely in the block that began the last one, or in the next."""
    until(lambda: len(files(directory)) >= n_files, f"{n_files} files")
    broker.wait_again("send", broker.kill("send"))


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_files_hold_every_packet_once_although_the_worker_is_killed_while_it_rotates(tmp_path: Path, kind: str) -> None:
    source, rec = tmp_path / "in.pcap", tmp_path / "rec"
    rec.mkdir()
    frames = numbered(50_000)
    source.write_bytes(pcap(frames))
    config = tmp_path / "c.yaml"
    config.write_text(
        f"""node: test
inputs: {{span: {{kind: pcap, file: {source}, pace: 15_000}}}}
tools: {{recorder: {{kind: {kind}, directory: {rec}, rotate_bytes: 1_048_576}}}}
collector: recorder
"""
    )
    with running(config, tmp_path) as broker:
        broker.wait_up()
        for n_files in (2, 3, 5):
            kill_at(broker, rec, n_files)
        assert broker.process.wait(DEADLINE_S) == 0, broker.stderr
        assert broker.ledger()["balanced"] is True
    assert len(files(rec)) >= 7
    assert all(path.name.endswith(f"Z-lane0.{kind}") and path.stat().st_size <= 1_048_576 for path in files(rec))
    readings = [read(path) for path in files(rec)]
    assert not any(reading.error for reading in readings)
    assert [record.data for reading in readings for record in reading.records] == frames


def test_a_broker_compresses_what_it_has_closed_and_keeps_as_many_as_it_was_told(tmp_path: Path) -> None:
    source, rec = tmp_path / "in.pcap", tmp_path / "rec"
    rec.mkdir()
    frames = numbered(50_000)
    source.write_bytes(pcap(frames))
    config = tmp_path / "c.yaml"
    config.write_text(
        f"""node: test
inputs: {{span: {{kind: pcap, file: {source}}}}}
tools: {{recorder: {{kind: pcap, directory: {rec}, rotate_bytes: 1_048_576, keep_files: 3, compress: gzip}}}}
collector: recorder
"""
    )
    with running(config, tmp_path) as broker:
        assert broker.process.wait(DEADLINE_S) == 0, broker.stderr
    until(lambda: [path.suffix for path in files(rec)] == [".gz"] * 3, "three compressed files")
    kept = []
    for path in files(rec):
        plain = tmp_path / path.stem
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        kept += [record.data for record in read(plain).records]
    assert kept == frames[-len(kept) :]
    assert len(kept) > 2 * 6000
