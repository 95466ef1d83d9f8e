"""JSON lines: what Python's own reader finds in them, and Community IDs as tshark makes them of packets."""

from __future__ import annotations

import datetime
import ipaddress
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from broker.core import flow_layout as layout
from broker.core.flow_model import ATTRIBUTES
from broker.flows.export.community_id import community_ids
from broker.flows.export.json_lines import JsonLines
from broker.flows.export.minimise import minimise
from tests.flows.export import dissect
from tests.flows.export.rows import INPUTS, NOW_NS, context, some_rows

NAMES = {1: "ICMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "IPv6-ICMP", 132: "SCTP"}


def lines_of(rows: Any, most_bytes: int = 65_535, **changed: Any) -> list[dict[str, Any]]:
    messages, unsaid = JsonLines(context(**changed)).encode(rows, most_bytes, NOW_NS)
    assert not len(unsaid)
    text = [bytes(message.data).decode() for message in messages]
    assert all(part.endswith("\n") for part in text)
    assert [part.count("\n") for part in text] == [message.records for message in messages]
    assert sum(message.packets for message in messages) == rows["packets"].sum()
    assert sum(message.bytes for message in messages) == rows["bytes"].sum()
    return [json.loads(line) for line in "".join(text).splitlines()]


def instant(ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(int(ns) // 1_000_000_000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{int(ns) % 1_000_000_000:09d}Z"


def expected(row: Any) -> dict[str, Any]:
    """Of one row, key by key."""
    four, protocol = row["version"] == 4, int(row["protocol"])
    made: dict[str, Any] = {"timestamp": instant(row["last_ns"]), "event_type": "flow", "node": "esx07", "input": INPUTS[int(row["input"])]}
    for short, name in (("src", "source"), ("dest", "destination")):
        made[f"{short}_ip"] = str(ipaddress.ip_address(row[name].tobytes()[12:] if four else row[name].tobytes()))
        if protocol in (6, 17, 132):
            made[f"{short}_port"] = int(row[f"{name}_port"])
    if protocol in (1, 58):
        made["icmp_type"], made["icmp_code"] = int(row["icmp"]) >> 8, int(row["icmp"]) & 255
    made["proto"], made["ip_v"] = NAMES[protocol], int(row["version"])
    made["flow"] = {
        "start": instant(row["first_ns"]), "end": instant(row["last_ns"]), "age": round(int(row["last_ns"] - row["first_ns"]) / 1e9, 6),
        "reason": layout.END_NAMES[int(row["end"])], "ttl": int(row["ttl"]), "lane": int(row["lane"]), "number": int(row["number"]),
    }  # fmt: skip
    for way, end in enumerate(("toserver", "toclient")):
        for key, name in (("pkts", "packets"), ("bytes", "bytes"), ("min_bytes", "min_bytes"), ("max_bytes", "max_bytes"), ("tos", "tos")):
            made["flow"][f"{key}_{end}"] = int(row[name][way])
    if row["vlan"]:
        made["vlan"] = [int(row["vlan"])]
    if row["tunnel"]:
        made["tunnel"] = {"kind": layout.TUNNEL_NAMES[row["tunnel"]], "id": int(row["tunnel_id"])}
    if protocol == 6:
        flags, rtt, again = (row[name].tolist() for name in ("tcp_flags", "rtt_us", "retransmitted"))
        made["tcp"] = {"tcp_flags": f"{flags[0] | flags[1]:02x}", "tcp_flags_ts": f"{flags[0]:02x}", "tcp_flags_tc": f"{flags[1]:02x}",
                       "retransmitted_toserver": again[0], "retransmitted_toclient": again[1]}  # fmt: skip
        made["tcp"] |= {key: us for key, us in zip(("rtt_client_us", "rtt_server_us"), rtt, strict=True) if us}
    if row["named"] == layout.NAMED_DNS:
        made["dns"] = {"rrname": row["name"].decode(), "rrtype": 1, "rcode": int(row["dns_code"])}
    if row["named"] == layout.NAMED_TLS:
        made["tls"] = {"sni": row["name"].decode()}
    return made


def test_a_line_says_all_of_a_row() -> None:
    rows = some_rows(400, seed=2)
    found = lines_of(rows, 2000)
    assert [{key: value for key, value in line.items() if key != "community_id"} for line in found] == [expected(row) for row in rows]


def test_a_sampled_row_and_a_cut_name_are_marked() -> None:
    rows = some_rows(2)
    rows["one_in"], rows["flags"] = 100, layout.FLOW_NAME_CUT | layout.FLOW_SAMPLED
    assert [line["one_in"] for line in lines_of(rows)] == [100, 100]
    assert [line[kind]["cut"] for line, kind in zip(lines_of(rows), ("dns", "tls"), strict=True)] == [True, True]


def test_what_is_to_be_dropped_is_in_no_line() -> None:
    rows = some_rows(200, seed=4)
    minimise(rows, ATTRIBUTES)
    found = lines_of(rows, drop=ATTRIBUTES)
    for line, row in zip(found, rows, strict=True):
        assert not line.keys() & {"vlan", "tunnel", "dns", "tls", "community_id", "tcp"}
        assert {line.get(key, 0) for key in ("src_port", "dest_port", "icmp_type", "icmp_code")} == {0}
        assert {line["flow"][f"{key}_{end}"] for key in ("min_bytes", "max_bytes", "tos") for end in ("toserver", "toclient")} == {0}
        assert line["flow"]["ttl"] == 0
        assert line["flow"]["pkts_toserver"] == row["packets"][0]
    kept = {
        "first_ns",
        "last_ns",
        "bytes",
        "packets",
        "source",
        "destination",
        "number",
        "one_in",
        "input",
        "lane",
        "version",
        "protocol",
        "end",
    }
    for name in set(layout.FLOW.names or ()) - kept - {"flags", "dns_code"}:
        assert not rows[name].astype(bool).any(), name


def packet_of(row: Any) -> bytes:
    """The first packet of a flow: an Ethernet frame with what stands in the row."""
    four = row["version"] == 4
    protocol = int(row["protocol"])
    ports = struct.pack(">HH", int(row["source_port"]), int(row["destination_port"]))
    kinds = {
        6: ports + bytes(8) + b"\x50\x02" + bytes(6),
        17: ports + b"\0\x08\0\0",
        132: ports + bytes(8),
        47: b"\0\0\x88\xb5",
        50: bytes(16),
    }
    inner = kinds.get(protocol, struct.pack(">H", int(row["icmp"])) + bytes(26))
    source, destination = (row[name].tobytes() for name in ("source", "destination"))
    if four:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(inner), 0, 0, 64, protocol, 0) + source[12:] + destination[12:]
    else:
        header = struct.pack(">IHBB", 6 << 28, len(inner), protocol, 64) + source + destination
    return bytes(12) + (b"\x08\0" if four else b"\x86\xdd") + header + inner


@dissect.needs_tshark
def test_community_ids_are_those_of_tshark(tmp_path: Path) -> None:
    rows = some_rows(300, seed=6)
    rows["protocol"][(rows["version"] == 6) & (rows["protocol"] == 50)] = 17  # of IPv6 without ports it makes none
    rows["source"][:50], rows["destination"][:50] = rows["destination"][50:100], rows["destination"][50:100]  # equal ends: ports decide
    rows["version"][:50], rows["protocol"][:50] = rows["version"][50:100], 17
    rows["source_port"][:50] = np.arange(50) * 1000
    path = tmp_path / "x.pcap"
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1))
        for row in rows:
            data = packet_of(row)
            file.write(struct.pack("<IIII", 0, 0, len(data), len(data)) + data)
    command = ["tshark", "-r", str(path), "--enable-protocol", "communityid", "-T", "fields", "-e", "communityid"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert community_ids(rows) == text.splitlines()
    assert [line["community_id"] for line in lines_of(rows)] == text.splitlines()
