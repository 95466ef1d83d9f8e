"""What is written as fields is what an independent reader shows of the bytes, with nothing wrong in any header."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from broker.config.packet import build, json_schema, parse_fields
from broker.config.packet.fields import FIELDS, SHORT
from tests.config.packet.shown import SHOWN

CHECKS = {
    "ip.check_checksum": "TRUE",
    "tcp.check_checksum": "TRUE",
    "udp.check_checksum": "TRUE",
    "sctp.checksum": "CRC 32c",
    "tcp.relative_sequence_numbers": "FALSE",
    "ip.defragment": "FALSE",
    "ipv6.defragment": "FALSE",
}
STATUS = ("ip", "tcp", "udp", "sctp", "icmp", "icmpv6", "gre")
NAMES = sorted({name for _, shown in SHOWN for name in shown})
needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")


def pcap(packets: list[tuple[bytes, int]]) -> bytes:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)
    return head + b"".join(struct.pack("<IIII", n, 0, len(frame), wirelen) + frame for n, (frame, wirelen) in enumerate(packets))


def tshark(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """A row for each packet; values that occur several times have commas."""
    options = [word for name, value in CHECKS.items() for word in ("-o", f"{name}:{value}")]
    wanted = [word for name in columns for word in ("-e", name)]
    command = ["tshark", "-n", "-r", str(path), *options, "-d", "udp.port==4754,gre", "-T", "fields", "-E", "occurrence=a", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    path = tmp_path_factory.mktemp("packets") / "all.pcap"
    packets = [build(parse_fields(text)) for text, _ in SHOWN]
    path.write_bytes(pcap([(p.frame, p.wirelen) for p in packets]))
    return tshark(path, [*NAMES, "_ws.malformed", *(f"{layer}.checksum.status" for layer in STATUS)])


@needs_tshark
@pytest.mark.parametrize("n", range(len(SHOWN)), ids=[text for text, _ in SHOWN])
def test_tshark_shows_the_fields_as_they_were_written(rows: list[dict[str, str]], n: int) -> None:
    text, shown = SHOWN[n]
    assert {name: rows[n][name] for name in shown} == shown, text


@needs_tshark
def test_tshark_finds_every_checksum_right_and_no_header_broken(rows: list[dict[str, str]]) -> None:
    good, unverified, absent = "1", "2", "3"
    for (text, _), row in zip(SHOWN, rows, strict=True):
        assert row["_ws.malformed"] == "", text
        for layer in STATUS:
            assert set(row[f"{layer}.checksum.status"].split(",")) <= {good, unverified, absent, ""}, (text, layer)
    for layer in STATUS:
        assert any(good in row[f"{layer}.checksum.status"] for row in rows), layer


def test_every_field_is_among_them() -> None:
    written: set[str] = set()

    def collect(fields: dict[str, object]) -> None:
        for name, value in fields.items():
            written.add(SHORT.get(name, name))
            if isinstance(value, dict):
                collect(value)

    for text, _ in SHOWN:
        collect(parse_fields(text))
    assert written == {*FIELDS, "inner"}


def test_every_field_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[3] / "broker" / "config" / "README.md").read_text()
    assert [name for name in (*FIELDS, *SHORT, "inner") if f"`{name}`" not in readme] == []


def test_the_input_is_told_and_no_part_of_the_frame() -> None:
    said = build(parse_fields("tcp.dst=80 input=span0"))
    assert said.input == "span0"
    assert said.frame == build(parse_fields("tcp.dst=80")).frame
    assert build(parse_fields("tcp.dst=80")).input == ""


def test_what_is_cut_off_was_there() -> None:
    whole = build(parse_fields("tcp.dst=80 payload=abc"))
    cut = build(parse_fields("tcp.dst=80 payload=abc cut=20"))
    assert (cut.frame, cut.wirelen) == (whole.frame[:20], 57)
    assert build(parse_fields("tcp.dst=80 cut=0")).frame == b""


def test_an_editor_knows_every_field() -> None:
    assert json_schema()["properties"].keys() == {*FIELDS, *SHORT, "inner"}
