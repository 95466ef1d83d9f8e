"""Expressions on records: DuckDB's answer is that of a slow evaluator written apart, and of libpcap for packets that are a flow each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import duckdb
import pytest

from broker.config.policy import PolicyError, read_sets
from broker.config.records.expression import where
from tests.flows.answers.records import Record, S, some, write
from tests.libpcap import Filter, needs_libpcap
from tests.packets import ip_frame, tcp_frame, udp_frame

SETS = {
    "web": ("10.1.0.0/24", "10.2.0.3", "2001:db8:1::/64"),
    "holes": ("10.1.0.2", "10.3.0.0/30"),
    "p": ("80", "443-445"),
    "floors": ("10", "15-20"),
}


def in_net(address: str, *nets: str) -> bool:
    return any(ip_address(address) in ip_network(net) for net in nets if ip_network(net).version == ip_address(address).version)


def ports(r: Record) -> bool:
    return r.protocol in (6, 17, 132)


def union(r: Record) -> int:
    return r.tcp_flags | r.tcp_flags_back


Meaning = Callable[[Record], bool]
CASES: dict[str, Meaning] = {
    "": lambda r: True,
    "host 10.1.0.1": lambda r: "10.1.0.1" in (r.source, r.destination),
    "src host 10.1.0.1": lambda r: r.source == "10.1.0.1",
    "src and dst host 10.1.0.1": lambda r: r.source == r.destination == "10.1.0.1",
    "dst net 10.2.0.0/16": lambda r: in_net(r.destination, "10.2.0.0/16"),
    "net 10.1": lambda r: in_net(r.source, "10.1.0.0/16") or in_net(r.destination, "10.1.0.0/16"),
    "net 10.0.0.1 mask 255.0.255.255": lambda r: any(in_net(a, "10.0.0.0/8") and a.endswith(".0.1") for a in (r.source, r.destination)),
    "host 2001:db8:1:0:8000::5": lambda r: "2001:db8:1:0:8000::5" in (r.source, r.destination),
    "src net 2001:db8:1::/65": lambda r: in_net(r.source, "2001:db8:1::/65"),
    "dst net 2001:db8::/46": lambda r: in_net(r.destination, "2001:db8::/46"),
    "src net 2001:db8:1::8000/113": lambda r: in_net(r.source, "2001:db8:1::8000/113"),
    "src net $web and not dst net $web": lambda r: (
        in_net(r.source, "10.1.0.0/24", "10.2.0.3/32", "2001:db8:1::/64")
        and not in_net(r.destination, "10.1.0.0/24", "10.2.0.3/32", "2001:db8:1::/64")
    ),
    "net $holes": lambda r: any(in_net(a, "10.1.0.2/32", "10.3.0.0/30") for a in (r.source, r.destination)),
    "src net {10.1.0.1, 10.1.0.2, 2001:db8:1::1}": lambda r: r.source in ("10.1.0.1", "10.1.0.2", "2001:db8:1::1"),
    "ip": lambda r: ":" not in r.source,
    "ip6": lambda r: ":" in r.source,
    "tcp": lambda r: r.protocol == 6,
    "udp or sctp": lambda r: r.protocol in (17, 132),
    "icmp": lambda r: r.protocol == 1,
    "icmp6": lambda r: r.protocol == 58,
    "proto 47": lambda r: r.protocol == 47,
    "ip6 proto 47": lambda r: r.protocol == 47 and ":" in r.source,
    "port 53": lambda r: ports(r) and 53 in (r.source_port, r.destination_port),
    "tcp dst port 443": lambda r: r.protocol == 6 and r.destination_port == 443,
    "udp src port domain": lambda r: r.protocol == 17 and r.source_port == 53,
    "dst port $p": lambda r: ports(r) and (r.destination_port == 80 or 443 <= r.destination_port <= 445),
    "portrange 50-80": lambda r: ports(r) and (50 <= r.source_port <= 80 or 50 <= r.destination_port <= 80),
    "tcp port 80 or 443 or 8080": lambda r: r.protocol == 6 and bool({80, 443, 8080} & {r.source_port, r.destination_port}),
    "tcp or udp and dst port 53": lambda r: r.protocol in (6, 17) and r.destination_port == 53,  # equal weight, from the left
    "tcp or (udp and dst port 53)": lambda r: r.protocol == 6 or (r.protocol == 17 and r.destination_port == 53),
    "not (tcp or host 10.1.0.1)": lambda r: r.protocol != 6 and "10.1.0.1" not in (r.source, r.destination),
    "not port 53": lambda r: not (ports(r) and 53 in (r.source_port, r.destination_port)),
    "vlan": lambda r: r.vlan > 0,
    "vlan 10": lambda r: r.vlan == 10,
    "vlan $floors and tcp": lambda r: r.vlan in (10, *range(15, 21)) and r.protocol == 6,
    "vlan 10 or vlan 20": lambda r: r.vlan in (10, 20),  # no second tag, as libpcap has it
    "input span0": lambda r: r.input == "span0",
    'input "it\'s"': lambda r: r.input == "it's",
    "input {span0, span1} and node n2": lambda r: r.input in ("span0", "span1") and r.node == "n2",
    "tunnel": lambda r: r.tunnel != "",
    "tunnel gre": lambda r: r.tunnel == "gre",
    "tunnel gre key 7": lambda r: r.tunnel == "gre" and r.tunnel_id == 7,
    "tunnel vxlan 5000-5001 and tcp": lambda r: r.tunnel == "vxlan" and r.tunnel_id == 5001 and r.protocol == 6,
    "name example.com": lambda r: r.name == "example.com",
    'name "*.Example.com"': lambda r: r.name == "www.example.com",
    'name "a_b*"': lambda r: r.name == "a_b.example.org",
    'name "axb*"': lambda r: False,
    'name "xn--50%*"': lambda r: r.name == "xn--50%.test",
    'name "it?s.test"': lambda r: r.name == "it's.test",
    'name "*\' OR 1=1 --"': lambda r: False,
    "bytes > 10k": lambda r: r.bytes + r.bytes_back > 10_000,
    "src bytes >= 10M": lambda r: r.bytes >= 10_000_000,
    "dst packets = 0 and unanswered": lambda r: r.packets_back == 0,
    "packets != 100": lambda r: r.packets + r.packets_back != 100,
    "duration >= 61s": lambda r: r.last_ns - r.first_ns >= 61 * S,
    "duration < 1m": lambda r: r.last_ns - r.first_ns < 60 * S,
    "rtt > 20ms": lambda r: r.rtt_source_us + r.rtt_destination_us > 20_000,
    "dst rtt < 1ms": lambda r: 0 < r.rtt_destination_us < 1000,
    "flags syn/syn,ack": lambda r: r.protocol == 6 and union(r) & 2 == 2 and not union(r) & 16,
    "tcp flags fin,ack": lambda r: r.protocol == 6 and union(r) & 17 == 17,
    "dst flags rst": lambda r: r.protocol == 6 and r.tcp_flags_back & 4 == 4,
    "dscp ef": lambda r: r.tos >> 2 == 46,
    "ecn ect1": lambda r: r.tos & 3 == 1,
    "ttl 1-64": lambda r: 1 <= r.ttl <= 64,
    "retransmitted > 0": lambda r: r.retransmitted > 0,
    "host 10.1.0.1 or input span1 and tcp": lambda r: ("10.1.0.1" in (r.source, r.destination) or r.input == "span1") and r.protocol == 6,
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], str]:
    directory = tmp_path_factory.mktemp("store")
    records = some(1500, seed=5)
    for i, record in enumerate(records):
        record.number = i
    write(directory, records)
    return records, f"read_parquet('{directory}/flows/*/*/*.parquet')"


def test_an_expression_means_what_a_slow_evaluator_says(stored: tuple[list[Record], str]) -> None:
    records, table = stored
    sets = read_sets(SETS)
    some_true = 0
    for text, means in CASES.items():
        found = {n for (n,) in duckdb.sql(f"SELECT number FROM {table} WHERE {where(text, sets)}").fetchall()}
        expected = {r.number for r in records if means(r)}
        assert found == expected, text
        some_true += 0 < len(expected) < len(records)
    assert some_true >= len(CASES) - 5  # the rows can tell these apart


REFUSED = {
    "tcp and ip[8] = 1": (8, "bytes of packets"),
    "len > 60": (0, "bytes of packets"),
    "less 60": (0, "bytes < N"),
    "arp": (0, "IPv4 and IPv6 packets only"),
    "host 10.1.0.1 and ether host 02:00:00:00:00:01": (18, "no Ethernet addresses"),
    "inner (tcp)": (0, "one layer"),
    "tcp and mpls 3": (8, "tunnel"),
    'payload begins "GET"': (0, "bytes of packets"),
    "fragment": (0, "do not say"),
    "ip protochain 6": (0, "extension headers"),
    "bytes > 5x": (8, "unknown unit 'x'"),
    "bytes 5": (6, "expected =, !="),
    "vlan 5000": (5, "above 4095"),
    "vlan 10 pcp 3": (8, "unexpected"),
    "tcp and flows > 3": (8, "of one flow"),
    "host $nowhere": (5, "unknown set '$nowhere'"),
    "host example.com": (5, "not looked up"),
    "tcp flags syn/ack": (10, "not among"),
    "name *": (5, "in quotes"),
    "inpt span0": (0, "inpt"),
    "tcp and": (7, "expected a test"),
}


def test_what_records_cannot_say_is_refused_with_its_place_and_reason() -> None:
    for text, (at, reason) in REFUSED.items():
        with pytest.raises(PolicyError) as refused:
            where(text, read_sets(SETS))
        assert (refused.value.offset, reason in refused.value.message) == (at, True), (text, refused.value.offset, refused.value.message)


def test_nothing_that_an_operator_writes_gets_into_the_question_as_sql(stored: tuple[list[Record], str]) -> None:
    _, table = stored
    for text in ("x' OR true --", "x'; DROP TABLE t; --", "\\' OR true --", "x'||'", "''", "a\u2019"):
        for word in ("name", "input", "node"):
            condition = where(f'{word} "{text}"', {})
            assert duckdb.sql(f"SELECT count(*) FROM {table} WHERE {condition}").fetchall() == [(0,)], (word, text)


def test_a_range_of_addresses_lets_duckdb_leave_row_groups_out(tmp_path: Path) -> None:
    """What is not there by its least and largest address is not read: an operator would wait for it."""
    path = tmp_path / "sorted.parquet"
    duckdb.execute(
        f"COPY (SELECT 4::UTINYINT AS version, (i + 167772160)::UBIGINT AS source_low, "
        f"(i + 167772160)::UBIGINT AS destination_low, i AS packets "
        f"FROM range(200000) t(i)) TO '{path}' (ROW_GROUP_SIZE 20480)"
    )
    condition = where("src net 10.1.0.0/24", {})
    connection = duckdb.connect()
    plan = connection.execute(f"EXPLAIN ANALYZE SELECT sum(packets) FROM read_parquet('{path}') WHERE {condition}").fetchall()[0][1]
    scanned, of = (int(word) for word in plan.split("Row Groups Scanned:")[1].split()[0:3:2])
    assert scanned <= 2 < of


def packets() -> list[tuple[Record, bytes]]:
    """Packets, and the record that each of them alone would be."""
    made = []
    for source, destination in (("10.1.0.1", "10.2.0.9"), ("10.2.0.9", "10.1.0.1"), ("2001:db8:1::1", "2001:db8:2::5")):
        for source_port, destination_port in ((40_000, 443), (443, 40_000), (53, 53), (5000, 8080)):
            ends = (source, source_port, destination, destination_port)
            record = Record(source, destination, 6, source_port, destination_port)
            made.append((record, tcp_frame(*ends)))
            made.append((replace(record, protocol=17), udp_frame(*ends)))
        made += [(Record(source, destination, p, 0, 0), ip_frame(source, destination, p, bytes(20))) for p in (47, 50, 132)]
    return made


AS_LIBPCAP = (
    "tcp", "udp", "ip", "ip6", "ip proto 47", "ip6 proto 47", "proto 50", "sctp", "port 53", "tcp port 443", "src port 443",
    "udp dst port 8080",
    "portrange 400-6000", "host 10.1.0.1", "src host 10.1.0.1", "dst net 10.2", "net 10.0.0.0/15", "ip6 host 2001:db8:1::1",
    "src net 2001:db8::/32", "src or dst port 5000", "src and dst port 53", "tcp or udp and port 53", "not port 443 and not host 10.2.0.9",
    "not (udp or proto 47)", "port domain or https", "tcp dst port 443 or 8080", "host 10.1.0.1 or 10.2.0.9 and not tcp",
    "ip multicast",
)  # fmt: skip


@needs_libpcap
def test_of_packets_that_are_a_flow_each_an_expression_says_what_libpcap_says(tmp_path: Path) -> None:
    records = packets()
    for i, (record, _) in enumerate(records):
        record.number = i
    write(tmp_path, [record for record, _ in records])
    compared = 0
    for text in AS_LIBPCAP:
        expected = {r.number for r, frame in records if Filter(text)(frame, len(frame))}
        condition = where(text, {})
        found = {n for (n,) in duckdb.sql(f"SELECT number FROM '{tmp_path}/flows/*/*/*.parquet' WHERE {condition}").fetchall()}
        assert found == expected, text
        compared += 0 < len(expected) < len(records)
    assert compared >= len(AS_LIBPCAP) - 2
