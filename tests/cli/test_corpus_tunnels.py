"""Captures of the shared corpus through every tunnel, each option on and off: tshark takes off what was put on, and finds the very frames.

libpcap says what is in the captures. In CI a sample by hash of the name; all of it with `-m corpus`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.tapmesh import tapmesh
from tests.cli.test_corpus import readable
from tests.corpus import Capture, captures, needs_corpus, sample
from tests.libpcap import Record, needs_libpcap, read
from tests.packets import ETH_IP, ETH_IP6
from tests.stages.send.tshark import ABSENT, CASES, FIELDS, GOOD, Case

pytestmark = [needs_corpus, needs_libpcap]

PACKETS_A_RUN = 1500  # of which tshark sees as many as there are tools
LONGEST = 65_000  # with every header in one IP packet
LATEST_NS = 2**32 * 10**9  # of a pcap file
ENDS = {4: ("198.51.100.7", "192.0.2.9"), 6: ("2001:db8::7", "2001:db8:1::9")}
OF_THE_FRAME = ("erspan.vlan", "erspan.cos", "erspan.encap", "erspan.truncated")
"""What depends on the frame's own tag and length (tests/stages/encapsulate/test_tunnels.py)."""


def _udp(port: int, **more: str) -> dict[str, str]:
    return {"udp.dstport": str(port), "udp.checksum.status": GOOD, **more}


MORE = (
    Case(
        "gre",
        {"key": 5, "sequence": True, "checksum": True},
        lambda v, n, t: {"gre.proto": "0x6558", "gre.key": "0x00000005", "gre.sequence_number": str(n), "gre.checksum.status": GOOD},
    ),
    Case("vxlan", {"vni": 1, "udp_checksum": True}, lambda v, n, t: _udp(4789, **{"vxlan.flags": "0x0800", "vxlan.vni": "1"})),
    Case(
        "geneve",
        {"udp_checksum": True, "source_port": 1234},
        lambda v, n, t: _udp(6081, **{"geneve.vni": "0x000000", "geneve.proto_type": "0x6558"}),
    ),
    Case(
        "gre-udp",
        {"checksum": True, "df": True, "ttl": 1, "dscp": 63},
        lambda v, n, t: {
            **_udp(4754), "udp.checksum.status": GOOD if v == 6 else ABSENT, "gre.proto": "0x6558", "gre.checksum.status": GOOD,
        },
    ),
)  # fmt: skip
TUNNELS = [(case, version) for case in (*CASES, *MORE) for version in (4, 6)]
LAYER_3: list[dict[str, Any]] = [{}, {"key": 9, "sequence": True, "checksum": True}]
SEEN = [at for at, name in enumerate(FIELDS) if name not in OF_THE_FRAME]


def _tool(name: str, kind: str, version: int, options: dict[str, Any]) -> str:
    source, remote = ENDS[version]
    words = [f"{key}: {str(value).lower()}" for key, value in options.items()]
    return f'  {name}: {{tunnel: {{kind: {kind}, remote: "{remote}", source: "{source}", {", ".join(words)}}}}}'


def _config() -> str:
    tools = [_tool(f"t{i}", case.kind, version, case.options) for i, (case, version) in enumerate(TUNNELS)]
    tools += [_tool(f"ip{i}", "gre-ip", 4, options) for i, options in enumerate(LAYER_3)]
    names = [line.split(":")[0].strip() for line in tools]
    lines = ["inputs: {span: {kind: pcap, file: /dev/null}}", "tools:", *tools]
    return "\n".join([*lines, f"maps: [{{name: everything, rules: [{{pass: ''}}], to: [{', '.join(names)}]}}]"])


def runs(chosen: Sequence[Capture]) -> Iterator[tuple[list[Path], list[Record]]]:
    """Captures whose frames all fit, and that have times which a pcap file can hold."""
    paths: list[Path] = []
    records: list[Record] = []
    small = [c for c in chosen if c.packets <= PACKETS_A_RUN and c.max_len <= LONGEST]
    for capture, more in readable(small):
        if any(len(record.data) > LONGEST or not 0 <= record.ts_ns < LATEST_NS for record in more):
            continue
        if paths and len(records) + len(more) > PACKETS_A_RUN:
            yield paths, records
            paths, records = [], []
        paths.append(capture.path)
        records.extend(more)
    if paths:
        yield paths, records


def taken_off_by_tshark(path: Path) -> list[list[str]]:
    """FIELDS of each tunnel, and what is inside: Ethernet is disabled, so a frame comes as data."""
    names = ("ip.checksum.status", *FIELDS, "data.data")
    command = [
        "tshark",
        "-n",
        "-r",
        str(path),
        "--disable-protocol",
        "eth",
        "-o",
        "ip.check_checksum:TRUE",
        "-o",
        "udp.check_checksum:TRUE",
    ]
    command += ["-T", "fields", *(word for name in names for word in ("-e", name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def ip_packet(frame: bytes) -> tuple[int, bytes] | None:
    """Ethertype and bytes of the IP packet in a frame, behind at most four tags; None if there is none."""
    at = 12
    for _ in range(5):
        ethertype = int.from_bytes(frame[at : at + 2], "big")
        if ethertype not in (0x8100, 0x88A8, 0x9100):
            packet = frame[at + 2 :]
            version = {ETH_IP: 4, ETH_IP6: 6}.get(ethertype)
            return (ethertype, packet) if packet and packet[0] >> 4 == version else None
        at += 4
    return None


def check(paths: list[Path], records: list[Record], directory: Path) -> None:
    config, out, joined = directory / "config.yaml", directory / "out", directory / "joined.pcap"
    config.write_text(_config())
    result = tapmesh("replay", *paths, "--config", config, "--out", out, timeout_s=300)
    assert result.returncode == 0, (result.stderr, paths)
    parts = [(out / f"t{i}.pcap").read_bytes() for i in range(len(TUNNELS))]
    joined.write_bytes(parts[0] + b"".join(part[24:] for part in parts[1:]))
    rows = iter(taken_off_by_tshark(joined))
    for case, version in TUNNELS:
        for number, record in enumerate(records):
            summed, *said, inside = next(rows)
            place = (case.kind, case.options, version, number)
            assert summed == (GOOD if version == 4 else ""), place
            expected = case.expected(version, number, record.ts_ns)
            assert [said[at] for at in SEEN] == [expected[at] for at in SEEN], place
            assert bytes.fromhex(inside) == record.data, place
    assert next(rows, None) is None
    packets = [packet for record in records if (packet := ip_packet(record.data))]
    for i, options in enumerate(LAYER_3):
        header = 4 + (12 if options else 0)
        got = [(int.from_bytes(r.data[22:24], "big"), r.data[20 + header :]) for r in read(out / f"ip{i}.pcap").records]
        assert got == packets


def test_a_sample_comes_out_of_every_tunnel_byte_for_byte(tmp_path: Path) -> None:
    paths, records = next(runs(sample(2)))
    assert len(paths) > 10
    assert len(records) > 200
    check(paths, records, tmp_path)


@pytest.mark.corpus
def test_all_of_it_comes_out_of_every_tunnel_byte_for_byte(tmp_path: Path) -> None:
    n_files = 0
    for i, (paths, records) in enumerate(runs([c for c in captures() if c.is_ethernet])):
        directory = tmp_path / str(i)
        directory.mkdir()
        check(paths, records, directory)
        n_files += len(paths)
    assert n_files > 2000
