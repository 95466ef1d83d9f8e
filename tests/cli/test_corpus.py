"""Every Ethernet capture of the shared corpus through the real processes: the frames come back byte for byte, and out of GRE as well.

libpcap says what is in the captures, and tshark takes the GRE off again. In CI a sample by hash of the name; all of it with `-m corpus`.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.tapmesh import tapmesh
from tests.corpus import Capture, captures, needs_corpus, sample
from tests.libpcap import ETHERNET, Filter, Record, needs_libpcap, read
from tests.stages.filter.expressions import EXPRESSIONS

FILES_A_RUN = 60
PACKETS_A_RUN = 20_000  # what tshark can be asked to dissect in a minute
CONFIG = """
inputs: {span: {kind: pcap, file: /dev/null}}
tools:
  all: {kind: pcap, file: all.pcap}
  over4: {tunnel: {kind: gre, remote: 192.0.2.1, source: 192.0.2.2, key: 7, sequence: true, checksum: true}}
  over6: {tunnel: {kind: gre, remote: "2001:db8::1", source: "2001:db8::2"}}
maps:
  - {name: everything, rules: [{pass: ""}], to: [all, over4, over6]}
"""
OUTER_BYTES = {"over4": 20 + 16, "over6": 40 + 4}
LONGEST_IP = 65_535
PCAP_TIME_ENDS_NS = 2**32 * 10**9  # pcapng goes further than the 32 bits of seconds that a pcap file has
INT64_MAX = 2**63 - 1  # the latest time that we know, in 2262

pytestmark = needs_corpus


def readable(chosen: Sequence[Capture]) -> Iterator[tuple[Capture, list[Record]]]:
    """Those that libpcap reads to their end, with what it reads."""
    for capture in chosen:
        if capture.packets > PACKETS_A_RUN:
            continue
        reading = read(capture.path)
        if not reading.error and reading.datalink == ETHERNET and len(reading.records) == capture.packets:
            yield capture, reading.records


def runs(chosen: Sequence[Capture]) -> Iterator[tuple[list[Path], list[Record]]]:
    paths: list[Path] = []
    records: list[Record] = []
    for capture, more in readable(chosen):
        if paths and (len(paths) == FILES_A_RUN or len(records) + len(more) > PACKETS_A_RUN):
            yield paths, records
            paths, records = [], []
        paths.append(capture.path)
        records.extend(more)
    if paths:
        yield paths, records


def taken_off_by_tshark(path: Path) -> list[bytes]:
    """What tshark finds in each GRE packet, having checked that it finds nothing wrong with any header.

    What is inside is not dissected (Ethernet is disabled), so it comes as data.
    """
    fields = ("gre.proto", "ip.checksum.status", "gre.checksum.status", "gre.sequence_number", "data.data")
    columns = [word for field in fields for word in ("-e", field)]
    command = ["tshark", "-n", "-r", str(path), "--disable-protocol", "eth", "-o", "ip.check_checksum:TRUE", "-T", "fields", *columns]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    good = "1"
    assert {(proto, ip, gre) for proto, ip, gre, *_ in rows} <= {("0x6558", good, good), ("0x6558", "", "")}
    numbers = [row[3] for row in rows]
    assert numbers == (list(map(str, range(len(rows)))) if path.stem == "over4" else [""] * len(rows))
    return [bytes.fromhex(row[4]) for row in rows]


def check(paths: list[Path], records: list[Record], directory: Path) -> None:
    config, out = directory / "config.yaml", directory / "out"
    config.write_text(CONFIG)
    result = tapmesh("replay", *paths, "--config", config, "--out", out, timeout_s=300)
    assert result.returncode == 0, (result.stderr, paths)
    bare = read(out / "all.pcap")
    assert not bare.error
    assert bare.records == [replace(record, ts_ns=min(record.ts_ns, INT64_MAX) % PCAP_TIME_ENDS_NS) for record in records]
    for tool, outer in OUTER_BYTES.items():
        whole = [record.data for record in records if len(record.data) + outer <= LONGEST_IP + (40 if tool == "over6" else 0)]
        assert taken_off_by_tshark(out / f"{tool}.pcap") == whole
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["balanced"] is True


def test_a_sample_comes_back_byte_for_byte_bare_and_out_of_gre(tmp_path: Path) -> None:
    paths, records = next(runs(sample(3)))
    assert len(paths) > 20
    check(paths, records, tmp_path)


@pytest.mark.corpus
def test_all_of_it_comes_back_byte_for_byte_bare_and_out_of_gre(tmp_path: Path) -> None:
    n_files = 0
    for i, (paths, records) in enumerate(runs([c for c in captures() if c.is_ethernet])):
        directory = tmp_path / str(i)
        directory.mkdir()
        check(paths, records, directory)
        n_files += len(paths)
    assert n_files > 2000


@needs_libpcap
def test_sixty_expressions_select_what_libpcap_selects(tmp_path: Path) -> None:
    """One run with a map and a file for each expression, over a sample of the corpus."""
    paths, records = next(runs(sample(4)))
    expressions = EXPRESSIONS[::2][:60]
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    lines = ["inputs: {span: {kind: pcap, file: /dev/null}}", "tools:"]
    lines += [f"  t{i}: {{kind: pcap, file: t{i}.pcap}}" for i in range(len(expressions))]
    lines.append("maps:")
    for i, text in enumerate(expressions):
        lines += [f"  - name: m{i}", "    undetermined: libpcap", f"    to: [t{i}]", f"    rules: [pass: '{text}']"]
    config.write_text("\n".join(lines))
    result = tapmesh("replay", *paths, "--config", config, "--out", out)
    assert result.returncode == 0, result.stderr
    n_selected = 0
    for i, text in enumerate(expressions):
        matches = Filter(text)
        expected = [record.data for record in records if matches(record.data, record.wirelen)]
        assert [record.data for record in read(out / f"t{i}.pcap").records] == expected, text
        n_selected += bool(expected)
    assert n_selected > 40


OTHER_LINKS = [c for c in sample(3, ethernet=False) if c.linktypes and "EN10MB" not in c.linktypes]


@pytest.mark.parametrize("capture", [pytest.param(c, id=c.name) for c in OTHER_LINKS])
def test_what_is_not_ethernet_is_refused_or_counted(capture: Capture, tmp_path: Path) -> None:
    """A pcap file has one link type and is refused as a whole; pcapng may hold several, so its packets are counted one by one."""
    result = tapmesh("replay", capture.path, "-w", tmp_path / "out.pcap")
    if capture.format == "pcap":
        assert result.returncode != 0
        assert str(capture.path) in result.stderr
        assert "Ethernet" in result.stderr
    else:
        assert result.returncode == 0
        assert not read(tmp_path / "out.pcap").records
        assert capture.packets == 0 or re.search(rf"dropped: linktype +{capture.packets:,}\b", result.stdout)
