"""IPFIX, as tshark reads it: every value of every row, and what is said about them."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core import flow_layout as layout
from broker.core.values import Sample
from broker.flows.export.ipfix import Ipfix
from broker.flows.export.messages import Lost
from tests.flows.export import dissect
from tests.flows.export.rows import NOW_NS, RUN_NS, context, some_rows

pytestmark = dissect.needs_tshark
DOMAIN = 0xFFFF_FFF0
ICMP = {4: ("icmp_type_code_ipv4",), 6: ("icmp_ipv6_type", "icmp_ipv6_code")}
PAIRS = ("packets", "octets", "length_min", "length_max", "tos", "tcpflags")


def export_row(**values: int) -> Any:
    row = np.zeros((), layout.EXPORT)
    for name, value in values.items():
        row[name] = value
    return row


def expected(row: Any) -> dict[str, Any]:
    four = row["version"] == 4
    is_icmp = row["protocol"] in (1, 58)
    address = ipaddress.IPv4Address if four else ipaddress.IPv6Address
    ends = [address(row[name].tobytes()[12 if four else 0 :]) for name in ("source", "destination")]
    is_vxlan = row["tunnel"] == layout.TUNNEL_VXLAN
    return {
        "addresses": ends,
        "ports": [0, 0] if is_icmp else [row["source_port"], row["destination_port"]],
        "icmp": row["icmp"],
        "times": [row[name] // 1_000_000 * 1_000_000 for name in ("first_ns", "last_ns")],
        "packets": list(row["packets"]), "octets": list(row["bytes"]), "length_min": list(row["min_bytes"]),
        "length_max": list(row["max_bytes"]), "tos": list(row["tos"]), "tcpflags": list(row["tcp_flags"]),
        "protocol": row["protocol"], "vlanid": row["vlan"], "inputint": row["input"] + 1, "ip_ttl": row["ttl"],
        "flow_end_reason": row["end"], "biflow_direction": int(row["protocol"] != 6 or row["flags"] & layout.FLOW_BEGAN > 0),
        "layer2_segment_id": 1 << 56 | int(row["tunnel_id"]) if is_vxlan else 0,
    }  # fmt: skip


def number(text: str) -> int:
    return int(text, 0)


def read(found: dict[str, list[str]], version: int) -> dict[str, Any]:
    """What tshark says of one record. The reverse one of a pair stands first."""
    names = ("srcaddr", "dstaddr") if version == 4 else ("srcaddrv6", "dstaddrv6")
    made: dict[str, Any] = {name: [number(text) for text in reversed(found[name])] for name in PAIRS}
    made["addresses"] = [ipaddress.ip_address(found[name][0]) for name in names]
    made["ports"] = [number(found[name][0]) for name in ("srcport", "dstport")]
    icmp = [number(found[name][0]) for name in ICMP[version]]
    made["icmp"] = icmp[0] if len(icmp) == 1 else icmp[0] << 8 | icmp[1]
    made["times"] = [dissect.time_ns(found[name][0]) for name in ("abstimestart", "abstimeend")]
    for name in ("protocol", "vlanid", "inputint", "ip_ttl", "flow_end_reason", "biflow_direction", "layer2_segment_id"):
        made[name] = number(found[name][0])
    return made


@pytest.mark.parametrize("version", [4, 6])
def test_every_value_of_every_row_is_read_by_tshark(tmp_path: Path, version: int) -> None:
    rows = some_rows(400, seed=version, version=version)
    encoder = Ipfix(context(), DOMAIN)
    messages = encoder.greeting(1400, NOW_NS)
    for some, most_bytes in ((rows[:100], 512), (rows[100:], 65_535 - 28)):
        made, unsaid = encoder.encode(some, most_bytes, NOW_NS)
        assert not len(unsaid)
        assert max(len(message.data) for message in made) <= most_bytes
        assert sum(message.records for message in made) == len(some)
        assert sum(message.packets for message in made) == some["packets"].sum()
        assert sum(message.bytes for message in made) == some["bytes"].sum()
        messages += made
    path = dissect.write_pcap(tmp_path / "x.pcap", dissect.stamped(encoder, messages))
    addresses = ("srcaddr", "dstaddr") if version == 4 else ("srcaddrv6", "dstaddrv6")
    names = (*addresses, "srcport", "dstport", *ICMP[version], "abstimestart", "abstimeend", *PAIRS, "protocol", "vlanid", "inputint",
             "ip_ttl", "flow_end_reason", "biflow_direction", "layer2_segment_id")  # fmt: skip
    found = [read(record, version) for record in dissect.records(path, *names)]
    assert found == [expected(row) for row in rows]


def test_the_sequence_number_counts_data_records_of_options_too(tmp_path: Path) -> None:
    encoder = Ipfix(context(), DOMAIN)
    messages = [
        *encoder.greeting(1400, NOW_NS),
        *encoder.encode(some_rows(100), 1400, NOW_NS)[0],
        *encoder.report(export_row(), 1400, NOW_NS),
    ]
    path = dissect.write_pcap(tmp_path / "x.pcap", dissect.stamped(encoder, messages, 2**32 - 20))
    told = dissect.fields(path, "sequence", "exporttime", "od_id")
    said = dissect.lines(path)
    dissect.assert_clean(said)
    counted = "\n".join(said).split("Cisco NetFlow/IPFIX")[1:]
    at = 2**32 - 20
    for message, text in zip(told, counted, strict=True):
        assert message["sequence"] == [str(at % 2**32)]
        assert message["exporttime"] == [str(NOW_NS // 1_000_000_000)]
        assert message["od_id"][0] == str(DOMAIN)
        at += sum(int(n) for n in re.findall(r"\((\d+) flows\)", text))
    assert at == 2**32 - 20 + sum(message.step for message in messages)


def test_a_collector_learns_what_was_missed(tmp_path: Path) -> None:
    lost = Lost(ignored_packets=11, records=5, packets=50, bytes=5000)
    encoder = Ipfix(context(lost=lambda: lost), DOMAIN)
    row = export_row(records=1000, messages=70, bytes=98_000, dropped_records=2, dropped_packets=20, dropped_bytes=2000)
    messages = [*encoder.greeting(1400, NOW_NS), *encoder.report(row, 1400, NOW_NS)]
    said = dissect.lines(dissect.write_pcap(tmp_path / "x.pcap", dissect.stamped(encoder, messages)))
    for line in ("FlowsExp: 1000", "PacketsExp: 70", "OctetsExp: 98000", "Ignored Packets: 11"):
        assert line in said
    for line in ("Not Sent Flows: 7", "Not Sent Packets: 70", "Not Sent Octets: 7000"):
        assert line in said
    times = [line for line in said if line.startswith("Observation Time Milliseconds")]
    assert len(times) == 4
    assert dissect.time_ns(times[0].partition(": ")[2]) == RUN_NS // 1_000_000 * 1_000_000


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("packet", ("Sampling Packet Interval: 1", "Sampling Packet Space: 9", "Sampling interval: 10")),
        ("flow", ("Sampling_Flow_Interval: 1", "Sampling_Flow_Spacing: 9")),
    ],
)
def test_inputs_have_names_and_sampling_its_rate(tmp_path: Path, by: Any, words: tuple[str, ...]) -> None:
    encoder = Ipfix(context(sample=Sample(10, by)), DOMAIN)
    messages = [*encoder.greeting(1400, NOW_NS), *encoder.report(export_row(), 1400, NOW_NS)]
    said = dissect.lines(dissect.write_pcap(tmp_path / "x.pcap", dissect.stamped(encoder, messages)))
    for line in ("InputInt: 1", "IfName: span0", "InputInt: 2", "IfName: remote", *words):
        assert line in said


def test_the_options_fit_the_path(tmp_path: Path) -> None:
    encoder = Ipfix(context(inputs={slot: f"input{slot}" * 3 for slot in range(60)}), DOMAIN)
    messages = [*encoder.greeting(512, NOW_NS), *encoder.report(export_row(), 512, NOW_NS)]
    assert len(messages) > 2
    assert max(len(message.data) for message in messages) <= 512
    dissect.assert_clean(dissect.lines(dissect.write_pcap(tmp_path / "x.pcap", dissect.stamped(encoder, messages))))
