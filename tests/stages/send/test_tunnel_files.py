"""Every tunnel in a file: tshark reads the exact frame and the exact fields, and frames of Open vSwitch come out byte for byte."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import packets as by_hand
from tests.corpus import SHARED
from tests.stages.delivery import NOON_NS, Sender, Surroundings, allow_batch, encapsulate, fill, frames, gre_tool, new_batch, payload
from tests.stages.encapsulate.test_headers import opened
from tests.stages.send.tshark import CASES, FIELDS, fields

ENDS = {4: ("198.51.100.7", "192.0.2.9"), 6: ("2001:db8::7", "2001:db8:1::9")}
FRAMES = [by_hand.ethernet(payload(n, n), type=0x88B5) for n in (46, 47, 700, 1514)]


def joined(directory: Path, n: int) -> Path:
    parts = [(directory / f"{slot}.pcap").read_bytes() for slot in range(n)]
    path = directory / "all.pcap"
    path.write_bytes(parts[0] + b"".join(part[24:] for part in parts[1:]))
    return path


@pytest.mark.parametrize("version", [4, 6])
def test_tshark_reads_every_tunnel_from_a_file_to_the_exact_frame(version: int, tmp_path: Path) -> None:
    source, remote = ENDS[version]
    common: dict[str, Any] = {"source": source, "ttl": 9, "dscp": 46, "df": True}
    tools = [gre_tool(slot, case.kind, remote, str(tmp_path / f"{slot}.pcap"), **case.options, **common) for slot, case in enumerate(CASES)]
    batch = new_batch()
    fill(batch, FRAMES, (1 << len(tools)) - 1)
    encapsulate(batch, *tools)
    Sender(*tools).step(batch)
    outer = ["ip.src", "ip.dst", "ip.ttl", "ip.dsfield.dscp", "ip.flags.df", "ip.checksum.status"]
    outer6 = ["ipv6.src", "ipv6.dst", "ipv6.hlim", "ipv6.tclass.dscp", "ipv6.flow"]
    addresses = [source, remote, "9", "46", "1", "1"] if version == 4 else [source, remote, "9", "46", "0x000000"]
    want = [
        [*addresses, *case.expected(version, number, NOON_NS + number), "0x88b5", frame[14:].hex()]
        for case in CASES
        for number, frame in enumerate(FRAMES)
    ]
    assert fields(joined(tmp_path, len(tools)), outer if version == 4 else outer6) == want


@pytest.mark.parametrize("version", [4, 6])
def test_tshark_reads_a_packet_without_its_link_header(version: int, tmp_path: Path) -> None:
    """IPv4 and IPv6 inside, with and without VLAN tags."""
    source, remote = ENDS[version]
    options = [{}, {"key": 9, "sequence": True, "checksum": True}]
    tools = [gre_tool(slot, "gre-ip", remote, str(tmp_path / f"{slot}.pcap"), source=source, **o) for slot, o in enumerate(options)]
    packets = [
        by_hand.udp_frame(*ends, vlans=vlans)
        for ends in (("10.0.0.1", 1, "10.0.0.2", 40_000, b"\xfe\xdc"), ("2001:db8::a", 1, "2001:db8::b", 40_000, b"\xfe\xdc"))
        for vlans in ((), (7,), (7, 8))
    ]
    batch = new_batch()
    fill(batch, packets, 0b11)
    encapsulate(batch, *tools)
    Sender(*tools).step(batch)
    got = [row[FIELDS.index("gre.proto") : FIELDS.index("gre.proto") + 4] + row[-2:] for row in fields(joined(tmp_path, 2))]
    protocols = ["0x0800"] * 3 + ["0x86dd"] * 3
    plain = [[protocol, "", "", "", "", "fedc"] for protocol in protocols]
    full = [[protocol, "0x00000009", str(n), "1", "", "fedc"] for n, protocol in enumerate(protocols)]
    assert got == plain + full


def test_a_cut_frame_is_marked_as_truncated(tmp_path: Path) -> None:
    tools = [gre_tool(slot, kind, file=str(tmp_path / f"{slot}.pcap")) for slot, kind in enumerate(("erspan2", "erspan3"))]
    batch = new_batch()
    fill(batch, [FRAMES[0], FRAMES[0]], 0b11, wirelens=[len(FRAMES[0]), len(FRAMES[0]) + 1])
    encapsulate(batch, *tools)
    Sender(*tools).step(batch)
    assert [row[FIELDS.index("erspan.truncated")] for row in fields(joined(tmp_path, 2))] == ["0", "1"] * 2


def test_vlan_and_class_of_the_frame_are_told_by_erspan(tmp_path: Path) -> None:
    tools = [gre_tool(slot, kind, file=str(tmp_path / f"{slot}.pcap")) for slot, kind in enumerate(("erspan2", "erspan3"))]
    batch = new_batch()
    fill(batch, [by_hand.ethernet(payload(60), type=0x88B5, vlans=(3 << 13 | 1 << 12 | 1234, 55))], 0b11)
    encapsulate(batch, *tools)
    Sender(*tools).step(batch)
    at = [FIELDS.index(f"erspan.{name}") for name in ("vlan", "cos", "encap")]
    assert [[row[n] for n in at] for row in fields(joined(tmp_path, 2))] == [["1234", "3", "3"], ["1234", "3", ""]]


# ---- frames of Open vSwitch's own tests

VECTORS = SHARED / "suites/ovs-vectors/ovs_hex_frames.jsonl"


@dataclass(frozen=True)
class Vector:
    """`place`: file and line there. `kind`, `options`, `number`, `ts_ns`: what makes this frame of the one that begins at byte `inside`."""

    place: str
    kind: str
    inside: int
    options: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    ts_ns: int = 0


ERSPAN3 = {"hw_id": 7, "direction": "egress", "granularity": "100us"}
OVS = (
    Vector("tests/system-traffic.at:1433", "gre", 38),
    Vector("tests/system-traffic.at:1437", "gre", 38),
    Vector("tests/system-traffic.at:2317", "gre", 38),
    Vector("tests/system-traffic.at:1477", "erspan2", 50, {"session": 1, "index": 7}, 6),
    Vector("tests/tunnel-push-pop-ipv6.at:246", "erspan2", 70, {"session": 123, "index": 3}, 1),
    Vector("tests/tunnel-push-pop-ipv6.at:258", "erspan3", 74, {"session": 567, **ERSPAN3}, 1, 0x10ABCD01 * 100_000),
    Vector("tests/tunnel-push-pop.at:660", "gre-ip", 42, {"key": 456}),
    Vector("tests/tunnel-push-pop.at:600", "vxlan", 50, {"vni": 123, "source_port": 4789}),
)
"""Those of complete frames in tunnels that we have. Others are cut, have options that we do not write (Geneve's, VXLAN's policies), or
carry ERSPAN III under the type of ERSPAN II (system-traffic.at:1526)."""


def known() -> dict[str, bytes]:
    rows = [json.loads(line) for line in VECTORS.read_text().splitlines()]
    return {f"{row['file']}:{row['line_joined']}": bytes.fromhex(row["hex"]) for row in rows}


@pytest.mark.skipif(not VECTORS.exists(), reason=f"{VECTORS} is not here")
@pytest.mark.parametrize("vector", OVS, ids=lambda v: f"{v.place}-{v.kind}")
def test_frames_of_open_vswitch_come_out_byte_for_byte(vector: Vector) -> None:
    """All that follows the outer IP header; of that of IPv4 all but identification and checksum, which are a matter of the sender."""
    outer = bytearray(known()[vector.place][14:])
    v4 = outer[0] >> 4 == 4
    inside = bytes(outer[vector.inside - 14 :])
    remote = "192.0.2.9" if v4 else "2001:db8::9"
    tool = gre_tool(0, vector.kind, remote, df=bool(v4 and outer[6] & 0x40), **vector.options)
    batch, surroundings = new_batch(), Surroundings()
    surroundings.sequences[:] = vector.number
    packet = by_hand.ethernet(inside) if vector.kind == "gre-ip" else inside
    fill(batch, [packet], times=[vector.ts_ns])
    allow_batch(batch)
    opened([tool], surroundings).step(batch)
    ((_, _, header, window),) = frames(batch)
    if vector.kind == "erspan3":  # P, that a frame is inside, is not set by Open vSwitch
        outer[vector.inside - 14 - 2] |= 0x80
    ip_len = 20 if v4 else 40
    assert (header + window)[ip_len:] == outer[ip_len:]
    if v4:
        assert (header[:4], header[6:10]) == (outer[:4], outer[6:10])
