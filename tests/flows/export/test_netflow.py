"""NetFlow 9 and 5, as tshark reads them: each direction that has packets is a record, and what 5 cannot say is counted."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core import flow_layout as layout
from broker.core.values import Sample
from broker.flows.export.messages import Encoder
from broker.flows.export.netflow5 import NetFlow5
from broker.flows.export.netflow9 import NetFlow9
from tests.flows.export import dissect
from tests.flows.export.rows import NOW_NS, RUN_NS, context, some_rows

pytestmark = dissect.needs_tshark
_ANSWERED = {0, 8, 13, 14, 128, 129, 135, 136}


def ways(row: Any) -> list[dict[str, Any]]:
    """What goes there and what comes back, by hand."""
    made = []
    four = row["version"] == 4
    address = ipaddress.IPv4Address if four else ipaddress.IPv6Address
    is_icmp = row["protocol"] in (1, 58)
    for way in (0, 1):
        if row["packets"][way] == 0:
            continue
        names = ("source", "destination") if way == 0 else ("destination", "source")
        icmp = int(row["icmp"])
        if way == 1 and icmp >> 8 in _ANSWERED:
            icmp = int(row["destination_port"]) << 8
        made.append({
            "addresses": [address(row[name].tobytes()[12 if four else 0 :]) for name in names],
            "ports": [0, icmp] if is_icmp else [int(row[f"{name}_port"]) for name in names],
            "icmp": icmp if is_icmp else 0,
            "times": [int(row[name]) // 1_000_000 for name in ("first_ns", "last_ns")],
            "packets": int(row["packets"][way]), "octets": int(row["bytes"][way]),
            "length_min": int(row["min_bytes"][way]), "length_max": int(row["max_bytes"][way]), "tos": int(row["tos"][way]),
            "tcpflags": int(row["tcp_flags"][way]), "protocol": int(row["protocol"]), "inputint": int(row["input"]) + 1,
            "vlanid": int(row["vlan"]),
        })  # fmt: skip
    return made


def read(path: Path, *names: str, version: int = 4) -> list[dict[str, Any]]:
    """All records. tshark says times as it says them in the header: as what the device's clock was, made absolute."""
    addresses = ("srcaddr", "dstaddr") if version == 4 else ("srcaddrv6", "dstaddrv6")
    made = []
    for record in dissect.records(path, *addresses, "srcport", "dstport", "timestart", "timeend", *names):
        one: dict[str, Any] = {name: int(record[name][0], 0) for name in names if name != "icmp_type_code_ipv4"}
        one["addresses"] = [ipaddress.ip_address(record[name][0]) for name in addresses]
        one["ports"] = [int(record[name][0]) for name in ("srcport", "dstport")]
        one["up_ms"] = [round(float(record[name][0]) * 1000) for name in ("timestart", "timeend")]
        if "icmp_type_code_ipv4" in names:
            one["icmp"] = int(record["icmp_type_code_ipv4"][0], 0)
        made.append(one)
    return made


def boot_ms(data: memoryview) -> int:
    """When the device was started, by the header of a message."""
    uptime_ms, seconds = struct.unpack_from(">II", data, 4)
    return int(seconds) * 1000 - int(uptime_ms)


def with_times(found: list[dict[str, Any]], boot: int) -> list[dict[str, Any]]:
    return [{**{key: value for key, value in one.items() if key != "up_ms"}, "times": [boot + up for up in one["up_ms"]]} for one in found]


V9 = ("packets", "octets", "length_min", "length_max", "tos", "tcpflags", "protocol", "inputint", "vlanid", "icmp_type_code_ipv4")
V5 = ("packets", "octets", "tos", "tcpflags", "protocol", "inputint")


@pytest.mark.parametrize("version", [4, 6])
def test_netflow_9_says_each_direction(tmp_path: Path, version: int) -> None:
    rows = some_rows(300, seed=9, version=version)
    encoder = NetFlow9(context(sample=Sample(10, "packet")), 7)
    messages, unsaid = encoder.encode(rows, 1400, NOW_NS)
    assert not len(unsaid)
    assert max(len(message.data) for message in messages) <= 1400
    path = dissect.write_pcap(tmp_path / "x.pcap", dissect.stamped(encoder, [*encoder.greeting(1400, NOW_NS), *messages]))
    names = V9 if version == 4 else tuple(name for name in V9 if name != "icmp_type_code_ipv4")
    found = with_times(read(path, *names, version=version), RUN_NS // 1_000_000)
    expected = [way for row in rows for way in ways(row)]
    if version == 6:
        for way in expected:
            del way["icmp"]
    assert found == expected
    counts = [sum(of) for of in zip(*((m.records, m.packets, m.bytes) for m in messages), strict=True)]
    assert counts == [len(rows), rows["packets"].sum(), rows["bytes"].sum()]


def test_netflow_5_says_what_it_can_and_counts_the_rest(tmp_path: Path) -> None:
    rows = some_rows(300, seed=5, most_bytes=2**32 - 1)
    encoder = NetFlow5(context(sample=Sample(100, "packet")), 7)
    messages, unsaid = encoder.encode(rows, 1400, NOW_NS)
    assert (unsaid["version"] == 6).all()
    assert len(unsaid) == (rows["version"] == 6).sum()
    path = dissect.write_pcap(tmp_path / "x.pcap", dissect.stamped(encoder, messages))
    dissect.assert_clean(dissect.lines(path))
    expected = [{key: way[key] for key in (*V5, "addresses", "ports", "times")} for row in rows[rows["version"] == 4] for way in ways(row)]
    assert with_times(read(path, *V5), boot_ms(messages[0].data)) == expected
    told = dissect.fields(path, "count", "sequence", "samplerate")
    counts = [int(message["count"][0]) for message in told]
    assert max(counts) <= (1400 - 24) // 48
    assert [int(message["sequence"][0]) for message in told] == [sum(counts[:n]) for n in range(len(counts))]
    assert {message["samplerate"][0] for message in told} == {"100"}


def test_netflow_5_splits_what_32_bits_cannot_hold(tmp_path: Path) -> None:
    rows = some_rows(5, version=4)
    rows["packets"], rows["bytes"] = [10, 0], [1, 0]
    rows["bytes"][:, 0] = [2**32 - 1, 2**32, 3 * (2**32 - 1) - 1, 3 * (2**32 - 1), 1_000_000_000_000]
    messages, _ = NetFlow5(context(), 7).encode(rows, 1400, NOW_NS)
    path = dissect.write_pcap(tmp_path / "x.pcap", [bytes(message.data) for message in messages])
    found = read(path, "octets", "packets")
    assert len(found) == 1 + 2 + 3 + 3 + 233
    assert sum(one["octets"] for one in found) == rows["bytes"].sum() == sum(message.bytes for message in messages)
    assert sum(one["packets"] for one in found) == rows["packets"].sum() == sum(message.packets for message in messages)
    assert sum(message.records for message in messages) == len(rows)


@pytest.mark.parametrize("make", [NetFlow5, NetFlow9])
@pytest.mark.parametrize("ago_s", [40 * 86_400, 17 * 365 * 86_400])
def test_times_are_exact_also_of_packets_of_long_ago(tmp_path: Path, make: Any, ago_s: int) -> None:
    rows = some_rows(20, version=4)
    rows["packets"][:, 1] = 0
    rows["packets"][:, 0] = rows["bytes"][:, 0] = 1
    for name in ("first_ns", "last_ns"):
        rows[name] -= ago_s * 1_000_000_000
    encoder: Encoder = make(context(), 7)
    messages, _ = encoder.encode(rows, 1400, NOW_NS)
    whole = [bytes(message.data) for message in [*encoder.greeting(1400, NOW_NS), *messages]]
    path = dissect.write_pcap(tmp_path / "x.pcap", whole)
    found = [one["times"] for one in with_times(read(path, "octets"), boot_ms(messages[0].data))]
    assert found == [[int(row[name]) // 1_000_000 for name in ("first_ns", "last_ns")] for row in rows]


def test_netflow_9_names_inputs_and_says_the_rate(tmp_path: Path) -> None:
    encoder = NetFlow9(context(sample=Sample(10, "packet")), 7)
    row = np.zeros((), layout.EXPORT)
    row["records"], row["messages"], row["bytes"] = 1000, 70, 98_000
    data, _ = encoder.encode(some_rows(60), 1400, NOW_NS)
    messages = [*encoder.greeting(1400, NOW_NS), *data, *encoder.report(row, 1400, NOW_NS)]
    path = dissect.write_pcap(tmp_path / "x.pcap", dissect.stamped(encoder, messages))
    said = dissect.lines(path)
    dissect.assert_clean(said)
    for line in ("IfName: span0", "IfName: remote", "Sampling interval: 10", "FlowsExp: 1000", "PacketsExp: 70", "OctetsExp: 98000"):
        assert line in said, line
    assert [line for line in said if line.startswith("FlowSequence: ")] == [f"FlowSequence: {n}" for n in range(len(messages))]
