"""Damaged files and rings: no byte outside is touched, and what is read is what libpcap reads."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

from tests import libpcap
from tests.stages.capture import hostile

ROOT = Path(__file__).parents[3]


def _run(**environment: str) -> list[str]:
    command = [sys.executable, "-m", "tests.stages.capture.hostile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if line.startswith(("pcap", "ring"))]  # the others are the log


def test_kernels_touch_only_what_they_are_given_and_compiled_ones_say_the_same() -> None:
    plain, compiled = _run(NUMBA_DISABLE_JIT="1"), _run()
    assert plain == compiled
    assert len(plain) == 1200
    assert len({line.split()[3] for line in plain}) > 400  # the damage makes a difference


def test_damaged_pcap_files_are_read_as_libpcap_reads_them(tmp_path: Path) -> None:
    """The same packets, and an error where it has one."""
    compared = errors = 0
    for worker in hostile.read_all(tmp_path, hostile.pcap_files(600)):
        content, theirs = (worker.directory / "file").read_bytes(), libpcap.read(worker.directory / "file")
        if theirs.refused or theirs.datalink != libpcap.ETHERNET:
            continue
        head = 24 if 0xA1B2CD34 in struct.unpack("<I", content[:4]) + struct.unpack(">I", content[:4]) else 16
        oversize = [r for r in theirs.records if head + len(r.data) > hostile.SMALL.data_bytes]
        assert worker.records == [r for r in theirs.records if r not in oversize]
        assert worker.count("dropped_oversize") == len(oversize)
        assert bool(worker.report) == bool(theirs.error)
        compared += 1
        errors += bool(theirs.error)
    assert compared > 500
    assert errors > 100


def test_damaged_pcapng_files_are_read_at_least_as_far_as_libpcap_reads_them(tmp_path: Path) -> None:
    """It refuses more: interfaces that differ, a packet longer than the snapshot length."""
    compared = 0
    for worker in hostile.read_all(tmp_path, hostile.pcapng_files(600)):
        theirs = libpcap.read(worker.directory / "file")
        if theirs.refused or theirs.datalink != libpcap.ETHERNET:
            continue
        data = [r.data for r in theirs.records]
        assert [r.data for r in worker.records[: len(data)]] == data
        if not theirs.error:
            assert len(worker.records) == len(data)
            assert not worker.report
        compared += 1
    assert compared > 400
