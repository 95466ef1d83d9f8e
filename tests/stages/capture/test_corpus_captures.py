"""Every capture of the shared corpus, against libpcap; where libpcap refuses what Wireshark reads, against tshark."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from stages.capture.errors import SourceError
from stages.capture.walk import MAX_NS
from tests import libpcap
from tests.corpus import Capture, captures, needs_corpus
from tests.libpcap import Record
from tests.stages.capture import tshark
from tests.stages.capture.support import Worker, files

pytestmark = needs_corpus


def _ours(directory: Path, path: Path) -> Worker:
    worker = Worker(directory, files(path))
    with contextlib.suppress(SourceError):  # the report has it
        worker.start().run()
    return worker


def _clamped(records: list[Record]) -> list[Record]:
    """int64 nanoseconds end in 2262."""
    return [Record(min(r.ts_ns, MAX_NS), r.wirelen, r.data) for r in records]


def _has_ethernet(capture: Capture) -> bool:
    return "EN10MB" in capture.linktypes


def test_every_ethernet_capture_is_read_as_libpcap_reads_it(tmp_path: Path) -> None:
    """Frames, lengths, times, and where it stops; where libpcap stops early we go on, never the other way round."""
    wrong, compared = [], 0
    for n, capture in enumerate(c for c in captures() if _has_ethernet(c)):
        theirs = libpcap.read(capture.path)
        directory = tmp_path / str(n)
        directory.mkdir()
        worker = _ours(directory, capture.path)
        if theirs.error:
            agrees = _clamped(theirs.records) == worker.records[: len(theirs.records)]
        else:
            agrees = _clamped(theirs.records) == worker.records and not worker.report
        if not worker.report:
            agrees &= len(worker.records) + worker.count("dropped_linktype") == capture.packets
        compared += len(theirs.records)
        if not agrees:
            wrong.append((capture.name, len(theirs.records), len(worker.records), theirs.error, worker.report))
    assert not wrong
    assert compared > 100_000


def test_what_libpcap_refuses_is_read_as_wireshark_reads_it(tmp_path: Path) -> None:
    """Where both refuse, so do we; where one of them reads it, we do."""
    wrong, both_refuse = [], 0
    refused = (c for c in captures() if _has_ethernet(c) and c.packets < 5000 and libpcap.read(c.path).error)
    for n, capture in enumerate(refused):
        theirs, others, complete = tshark.read(capture.path)
        directory = tmp_path / str(n)
        directory.mkdir()
        worker = _ours(directory, capture.path)
        if complete:  # of a damaged file Wireshark guesses variants of pcap; the test above compares those with libpcap
            agrees = worker.records == theirs and worker.count("dropped_linktype") == others and not worker.report
        else:
            both_refuse += 1
            agrees = bool(worker.report)
        if not agrees:
            wrong.append((capture.name, len(theirs), len(worker.records), others, worker.report))
    assert not wrong
    assert both_refuse >= 6


def test_captures_of_other_link_types_are_refused_or_counted(tmp_path: Path) -> None:
    """No capture file makes the reader fail in a way of its own, and every packet that is not Ethernet is accounted for."""
    for n, capture in enumerate(c for c in captures() if not _has_ethernet(c)):
        directory = tmp_path / str(n)
        directory.mkdir()
        worker = _ours(directory, capture.path)
        assert not worker.records, capture.name
        if capture.format == "pcap":
            assert "link type" in worker.report, capture.name
        elif not worker.report:
            assert worker.count("dropped_linktype") == capture.packets, capture.name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("libpcap/pcap-invalid-version-1.pcap", "byte 4: pcap version 1.4 is not known"),
        ("libpcap/pcapng-invalid-vers-1.pcapng", "byte 12: pcapng version 0.1 is not known"),
        ("libpcap/shb-option-too-long.pcapng", "byte 0: a block whose two lengths differ; the second is"),
        (
            "suricata-verify/bug-1450-04/tls_DER-incomplete-header.pcap",
            "byte 5035: a record of 4325376 bytes, more than a packet can have (262,144)",
        ),
        ("suricata-verify/bug-6875-01/fuzz.pcap", "byte 228: a record of 1409179648 bytes, more than a packet can have (262,144)"),
        ("gopacket/pcapgo/tests/be/test901.pcapng", "byte 492: pcapng version 2.0 is not known"),
        ("tcpdump/ipoib.pcap", "byte 20: link type 242; only Ethernet (1) is read"),
    ],
)
def test_a_bad_capture_is_reported_with_its_offset(tmp_path: Path, name: str, message: str) -> None:
    path = next(c.path for c in captures() if c.name == name)
    assert _ours(tmp_path, path).report.startswith(f"{path}: {message}")
