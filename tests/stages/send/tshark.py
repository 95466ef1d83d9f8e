"""What tshark should say of each tunnel: its fields, in words that none of our code has made."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = (
    "udp.dstport", "udp.checksum.status", "gre.proto", "gre.key", "gre.sequence_number", "gre.checksum.status",
    "erspan.version", "erspan.spanid", "erspan.vlan", "erspan.cos", "erspan.encap", "erspan.truncated", "erspan.index",
    "erspan.timestamp", "erspan.hw", "erspan.direction", "erspan.gra", "erspan.p", "erspan.platid",
    "erspan.pid3.port_index", "erspan.pid3.timestamp", "erspan.pid5.port_index", "erspan.pid5.timestamp",
    "vxlan.flags", "vxlan.vni", "geneve.vni", "geneve.proto_type", "geneve.option.class", "geneve.option.type",
    "geneve.option.unknown.data",
)  # fmt: skip
"""Of the tunnel. Where a packet does not have one, tshark gives nothing."""

GOOD, ABSENT = "1", "3"  # of checksums


@dataclass(frozen=True)
class Case:
    kind: str
    options: dict[str, Any]
    says: Callable[[int, int, int], dict[str, str]]
    """(IP version, sequence number, time in ns) -> the fields that are there."""

    def expected(self, version: int, number: int, ts_ns: int) -> list[str]:
        said = self.says(version, number, ts_ns)
        assert set(said) <= set(FIELDS)
        return [said.get(name, "") for name in FIELDS]


def _gre(protocol: str = "0x6558", **more: str) -> dict[str, str]:
    return {"gre.proto": protocol, **{key.replace("__", "."): value for key, value in more.items()}}


def _udp(version: int, port: int) -> dict[str, str]:
    return {"udp.dstport": str(port), "udp.checksum.status": GOOD if version == 6 else ABSENT}


def _erspan(number: int, version: int, **more: str) -> dict[str, str]:
    said = {
        "gre.proto": "0x88be" if version == 1 else "0x22eb", "gre.sequence_number": str(number), "erspan.version": str(version),
        "erspan.spanid": "0", "erspan.vlan": "0", "erspan.cos": "0", "erspan.truncated": "0",
    }  # fmt: skip
    return said | {f"erspan.{key.replace('__', '.')}": value for key, value in more.items()}


def _time(ts_ns: int, tick_ns: int) -> str:
    return str(ts_ns // tick_ns & 0xFFFF_FFFF)


CASES: tuple[Case, ...] = (
    Case("gre", {}, lambda v, n, t: _gre()),
    Case("gre", {"key": 0xFFFF_FFFF}, lambda v, n, t: _gre(gre__key="0xffffffff")),
    Case("gre", {"sequence": True}, lambda v, n, t: _gre(gre__sequence_number=str(n))),
    Case("gre", {"checksum": True}, lambda v, n, t: _gre(gre__checksum__status=GOOD)),
    Case("nvgre", {"vsid": 0xABCDEF, "flow_id": 0x12}, lambda v, n, t: _gre(gre__key="0xabcdef12")),
    Case("erspan1", {}, lambda v, n, t: _gre("0x88be")),
    Case("erspan2", {}, lambda v, n, t: _erspan(n, 1, encap="0", index="0")),
    Case(
        "erspan2",
        {"session": 1023, "vlan": 4095, "cos": 7, "encapsulation": 3, "index": 0xFFFFF},
        lambda v, n, t: _erspan(n, 1, spanid="1023", vlan="4095", cos="7", encap="3", index="1048575"),
    ),
    Case(
        "erspan3",
        {},
        lambda v, n, t: _erspan(n, 2, timestamp=_time(t, 100), hw="0", direction="0", gra="1", p="1"),
    ),
    Case(
        "erspan3",
        {"session": 5, "granularity": "100us", "hw_id": 63, "direction": "egress", "vlan": 9, "cos": 1},
        lambda v, n, t: _erspan(
            n, 2, spanid="5", vlan="9", cos="1", timestamp=_time(t, 100_000), hw="63", direction="1", gra="0", p="1"
        ),
    ),
    Case(
        "erspan3",
        {"subheader": True, "index": 77},
        lambda v, n, t: _erspan(
            n, 2, timestamp=_time(t, 100), hw="0", direction="0", gra="1", p="1",
            platid="3", pid3__port_index="77", pid3__timestamp=str(t // 100 >> 32),
        ),
    ),
    Case(
        "erspan3",
        {"subheader": True, "index": 0xFFFF, "granularity": "ieee1588"},
        lambda v, n, t: _erspan(
            n, 2, timestamp=str(t % 10**9), hw="0", direction="0", gra="2", p="1",
            platid="5", pid5__port_index="65535", pid5__timestamp=str(t // 10**9),
        ),
    ),
    Case("vxlan", {"vni": 0xFFFFFF}, lambda v, n, t: {**_udp(v, 4789), "vxlan.flags": "0x0800", "vxlan.vni": "16777215"}),
    Case("geneve", {"vni": 0xABCDEF}, lambda v, n, t: {**_udp(v, 6081), "geneve.vni": "0xabcdef", "geneve.proto_type": "0x6558"}),
    Case(
        "geneve",
        {"generation": True},
        lambda v, n, t: {
            **_udp(v, 6081), "geneve.vni": "0x000000", "geneve.proto_type": "0x6558",
            "geneve.option.class": "0xff54", "geneve.option.type": "0x01", "geneve.option.unknown.data": "00000001",
        },
    ),
    Case("gre-udp", {"key": 7, "sequence": True}, lambda v, n, t: _udp(v, 4754) | _gre(gre__key="0x00000007", gre__sequence_number=str(n))),
)  # fmt: skip
"""Every tunnel with Ethernet inside, each option on and off."""


def fields(path: Path, outer: Iterable[str] = ()) -> list[list[str]]:
    """Of each packet of a capture: `outer`, FIELDS, and the EtherType and payload of the innermost frame."""
    names = [*outer, *FIELDS, "eth.type", "data.data"]
    checks = ("ip.check_checksum", "udp.check_checksum")
    command = ["tshark", "-n", "-r", str(path), *(part for name in checks for part in ("-o", f"{name}:TRUE")), "-T", "fields"]
    # of several in one packet the last: the EtherType of the inner frame
    command += ["-E", "occurrence=l", *(part for name in names for part in ("-e", name))]
    return [line.split("\t") for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()]


def whole(path: Path) -> bytes:
    """A capture that is still being written, up to its last whole record."""
    data = path.read_bytes() if path.exists() else b""
    at = 24
    while at + 16 <= len(data) and (end := at + 16 + int.from_bytes(data[at + 8 : at + 12], "little")) <= len(data):
        at = end
    return data[:at]
