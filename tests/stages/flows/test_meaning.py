"""What is a flow, when it ends, and what is said of it: small scenes, and what their records must say."""

from __future__ import annotations

import ipaddress
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from broker.core import flow_layout as layout
from broker.core.flow_model import Flows as Options
from broker.core.model import Sample
from stages.jit import PLAIN
from tests import packets as p
from tests.again import run_plain
from tests.stages.delivery import NOON_NS
from tests.stages.flows.metering import SECOND_NS, Meter, meter

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
A6, B6 = "2001:db8::1", "2001:db8::2"
Packet = bytes | tuple[bytes, float]


@pytest.mark.skipif(PLAIN, reason="the plain kernels are what is run")
def test_the_same_with_plain_kernels_and_every_access_checked() -> None:
    run_plain("tests/stages/flows/test_meaning.py")


def ends(row: np.void) -> tuple[str, int, str, int]:
    def text(address: np.ndarray) -> str:
        raw = address.tobytes()
        return str(ipaddress.ip_address(raw if row["version"] == 6 else raw[12:]))

    return text(row["source"]), int(row["source_port"]), text(row["destination"]), int(row["destination_port"])


def seg(source: str, sport: int, destination: str, dport: int, payload: bytes = b"", *, flags: int = p.ACK, seq: int = 0) -> bytes:
    return p.ip_frame(source, destination, p.TCP, p.tcp(sport, dport, payload, flags=flags, seq=seq))


def connection(start: float = 0.0, *, client_seq: int = 100, server_seq: int = 900) -> list[Packet]:
    """SYN, SYN+ACK after 30 ms, ACK after 20 ms more, a request, an answer, FIN from both sides."""
    c, s = (A, 4000, B, 80), (B, 80, A, 4000)
    return [
        (seg(*c, flags=p.SYN, seq=client_seq), start),
        (seg(*s, flags=p.SYN | p.ACK, seq=server_seq), start + 0.030),
        (seg(*c, seq=client_seq + 1), start + 0.050),
        (seg(*c, b"q" * 10, flags=p.ACK | p.PSH, seq=client_seq + 1), start + 0.060),
        (seg(*s, b"a" * 500, seq=server_seq + 1), start + 0.090),
        (seg(*c, flags=p.FIN | p.ACK, seq=client_seq + 11), start + 0.100),
        (seg(*s, flags=p.FIN | p.ACK, seq=server_seq + 501), start + 0.110),
        (seg(*c, seq=client_seq + 12), start + 0.120),
    ]


def test_both_directions_of_a_connection_are_one_flow(tmp_path: Path) -> None:
    (row,) = meter(tmp_path, connection())
    assert ends(row) == (A, 4000, B, 80)
    assert (row["packets"].tolist(), row["bytes"].tolist()) == ([5, 3], [5 * 40 + 10, 3 * 40 + 500])
    assert (int(row["first_ns"]), int(row["last_ns"])) == (NOON_NS, NOON_NS + 120_000_000)
    assert row["tcp_flags"].tolist() == [p.SYN | p.ACK | p.PSH | p.FIN, p.SYN | p.ACK | p.FIN]
    assert (row["min_bytes"].tolist(), row["max_bytes"].tolist()) == ([40, 40], [50, 540])
    assert row["rtt_us"].tolist() == [20_000, 30_000]
    assert row["retransmitted"].tolist() == [0, 0]
    assert (row["end"], row["flags"]) == (layout.END_SEEN, layout.FLOW_BEGAN)
    assert (row["protocol"], row["version"], row["ttl"], row["one_in"], row["number"]) == (6, 4, 64, 1, 0)


def test_who_began_is_the_source_even_if_the_answer_is_seen_first(tmp_path: Path) -> None:
    (row,) = meter(tmp_path, connection()[1:])
    assert (ends(row), row["packets"].tolist()) == ((A, 4000, B, 80), [4, 3])
    assert row["flags"] & layout.FLOW_BEGAN
    assert row["rtt_us"].tolist() == [0, 0]


def test_without_a_beginning_the_source_is_who_sent_first(tmp_path: Path) -> None:
    (row,) = meter(tmp_path, connection()[4:])
    assert ends(row) == (B, 80, A, 4000)
    assert not row["flags"] & layout.FLOW_BEGAN


@pytest.mark.parametrize(
    ("again", "rtt"), [(0, [20_000, 0]), (1, [0, 30_000]), (2, [20_000, 30_000])], ids=["SYN", "SYN with ACK", "ACK"]
)  # fmt: skip
def test_a_round_trip_that_may_belong_to_either_of_two_is_not_told(tmp_path: Path, again: int, rtt: list[int]) -> None:
    packets = connection()
    packets.insert(again + 1, (packets[again][0], packets[again][1] + 0.001))  # type: ignore[operator]
    (row,) = meter(tmp_path, packets)
    assert row["rtt_us"].tolist() == ([0, 0] if again == 0 else rtt)


def test_segments_that_came_before_are_counted_and_keep_alives_are_not(tmp_path: Path) -> None:
    c, s = (A, 4000, B, 80), (B, 80, A, 4000)
    packets: list[Packet] = [
        seg(*c, b"x" * 100, seq=2**32 - 50),
        seg(*c, b"x" * 100, seq=50),
        seg(*c, b"x" * 100, seq=50),  # again
        seg(*c, b"x" * 50, seq=2**32 - 50),  # of before the wrap
        seg(*c, b"x", seq=149),  # keep-alive
        seg(*c, b"", seq=149),  # keep-alive
        seg(*c, b"x" * 200, seq=50),  # half of it is new
        seg(*s, b"y" * 10, seq=7),
        seg(*s, b"y" * 10, seq=7),
    ]
    (row,) = meter(tmp_path, packets)
    assert row["retransmitted"].tolist() == [2, 1]


@pytest.mark.parametrize(("gap_s", "n"), [(15.0, 1), (15.001, 2)])
def test_after_too_long_a_silence_it_is_another_flow(tmp_path: Path, gap_s: float, n: int) -> None:
    packet = p.udp_frame(A, 1, B, 2)
    rows = meter(tmp_path, [(packet, 0.0), (packet, gap_s)])
    assert [(int(r["end"]), int(r["packets"][0])) for r in rows] == [(layout.END_IDLE, 1)] * (n - 1) + [(layout.END_FORCED, 3 - n)]
    assert not rows["flags"].any()


@pytest.mark.parametrize(("live", "n"), [(True, 1), (False, 0)])
def test_of_live_inputs_flows_end_also_when_the_clock_has_gone_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool, n: int
) -> None:
    """By an hour: till it is that late again they would be in the way of others. The next file may be an older one."""
    metering = Meter(tmp_path)
    metering.stage._live = live
    metering.packets([p.udp_frame(A, 1, B, 2)])
    monkeypatch.setattr(time, "time_ns", lambda: NOON_NS - 3600 * SECOND_NS)
    metering.packets([(p.udp_frame(A, 3, B, 4), -3600.0)])
    rows = metering.take()
    assert [(row["source_port"], row["end"]) for row in rows] == [(1, layout.END_IDLE)] * n
    assert metering.count("live_flows") == 2 - n


def test_a_file_of_few_packets_and_much_time_does_not_cost_a_look_at_all_flows_for_each_block(tmp_path: Path) -> None:
    metering = Meter(tmp_path, sizes=(4000, 0, 64))
    for n in range(4):
        metering.block([(p.udp_frame(A, 1, B, 2), 10.0 * n)])
    assert int(metering.stage.table.state["hand"]) == 4 * (64 + 8)
    for n in range(40):
        metering.block([(p.udp_frame(A, 3, B, 4), 60.0 + n)] * 16)
    rows = metering.take()
    assert [(row["source_port"], row["end"]) for row in rows] == [(1, layout.END_IDLE)]


def test_a_long_flow_is_told_in_parts_that_add_up(tmp_path: Path) -> None:
    there, back = p.udp_frame(A, 1, B, 2, b"x" * 10), p.udp_frame(B, 2, A, 1)
    packets = [(back if i % 3 == 2 else there, i * 10.0) for i in range(20)]
    rows = meter(tmp_path, packets, active_s=60)
    assert rows["first_ns"].tolist() == [NOON_NS + s * SECOND_NS for s in (0, 60, 120, 180)]
    assert rows["end"].tolist() == [layout.END_ACTIVE] * 3 + [layout.END_FORCED]
    assert [bool(f & layout.FLOW_CONTINUED) for f in rows["flags"]] == [False, True, True, True]
    assert rows["packets"].sum(axis=0).tolist() == [14, 6]
    assert {ends(row) for row in rows} == {(A, 1, B, 2)}, "the direction is kept, whoever goes on"


def test_a_closed_connection_takes_what_is_late_and_gives_way_to_a_new_one(tmp_path: Path) -> None:
    late = (seg(B, 80, A, 4000, seq=1402), 1.0)
    rows = meter(tmp_path, [*connection(), late, *connection(1.5, client_seq=7000), (seg(A, 4000, B, 80, b"z", seq=5), 4.0)])
    assert rows["packets"].sum(axis=1).tolist() == [9, 8, 1]
    assert rows["end"].tolist() == [layout.END_SEEN, layout.END_SEEN, layout.END_FORCED]


def test_a_reset_closes(tmp_path: Path) -> None:
    rows = meter(
        tmp_path, [(seg(A, 1, B, 2, flags=p.SYN), 0), (seg(B, 2, A, 1, flags=p.RST | p.ACK), 0.1), (seg(A, 1, B, 2, flags=p.SYN), 0.2)]
    )
    assert rows["end"].tolist() == [layout.END_SEEN, layout.END_FORCED]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (p.udp_frame(A, 1, B, 2), p.udp_frame(A, 1, B, 3)),
        (p.udp_frame(A, 1, B, 2), p.udp_frame(A, 1, C, 2)),
        (p.udp_frame(A, 1, B, 2), p.udp_frame(A, 2, B, 1)),
        (p.udp_frame(A, 1, B, 2), p.tcp_frame(A, 1, B, 2)),
        (p.udp_frame(A, 1, B, 2), p.udp_frame(A, 1, B, 2, vlans=(7,))),
        (p.udp_frame(A, 1, B, 2, vlans=(8,)), p.udp_frame(A, 1, B, 2, vlans=(7,))),
        (p.udp_frame("::a00:1", 1, "::a00:2", 2), p.udp_frame(A, 1, B, 2)),
    ],
)
def test_flows_that_differ_in_one_thing(tmp_path: Path, one: bytes, other: bytes) -> None:
    assert len(meter(tmp_path, [one, other, one, other])) == 2


def test_the_outer_tag_counts_and_the_inner_one_does_not(tmp_path: Path) -> None:
    rows = meter(tmp_path, [p.udp_frame(A, 1, B, 2, vlans=(7, 1)), p.udp_frame(B, 2, A, 1, vlans=(7, 2))])
    assert rows["vlan"].tolist() == [7]


def test_question_and_answer_of_icmp_are_one_flow(tmp_path: Path) -> None:
    def echo(source: str, destination: str, type_: int) -> bytes:
        if ":" in source:
            return p.ip_frame(source, destination, p.ICMP6, p.icmp6((source, destination), type_))
        return p.ip_frame(source, destination, p.ICMP, p.icmp(type_))

    unreachable = p.ip_frame(B, A, p.ICMP, p.icmp(3, 13))
    rows = meter(tmp_path, [echo(A, B, 8), echo(B, A, 0), echo(A6, B6, 128), echo(B6, A6, 129), unreachable])
    assert [(*ends(r), int(r["icmp"]), r["packets"].tolist()) for r in rows] == [
        (A, 8, B, 0, 0x0800, [1, 1]), (A6, 128, B6, 129, 0x8000, [1, 1]), (B, 3, A, 13, 0x030D, [1, 0]),
    ]  # fmt: skip


def test_later_fragments_belong_to_the_flow_of_their_first(tmp_path: Path) -> None:
    first, *later = (p.ethernet(f) for f in p.fragments(A, B, p.UDP, p.udp(1, 2, b"x" * 3000), size=1480))
    rows = meter(tmp_path, [first, *later, p.udp_frame(B, 2, A, 1)])
    assert [ends(r) for r in rows] == [(A, 1, B, 2)]
    assert rows[0]["packets"].tolist() == [3, 1]
    assert rows[0]["flags"] & layout.FLOW_FRAGMENTS
    orphans = meter(tmp_path / "orphans", later) if (tmp_path / "orphans").mkdir() is None else None
    assert orphans is not None
    assert [ends(r) for r in orphans] == [(A, 0, B, 0)]


def test_ports_are_found_behind_extension_headers(tmp_path: Path) -> None:
    plain = p.udp_frame(A6, 1, B6, 2)
    behind = p.ethernet(
        p.ipv6(A6, B6, p.HOPOPTS, p.hop_by_hop(p.DSTOPTS, p.destination_options(p.UDP, p.udp(1, 2)))), type=p.ETH_IP6
    )  # fmt: skip
    rows = meter(tmp_path, [plain, behind])
    assert [(*ends(r), int(r["protocol"]), r["packets"].tolist()) for r in rows] == [(A6, 1, B6, 2, p.UDP, [2, 0])]


def test_bytes_are_the_ip_packets_own_but_no_more_than_there_were(tmp_path: Path) -> None:
    padded = p.padded(p.udp_frame(A, 1, B, 2, b"x"))
    lying = p.ethernet(p.ipv4(A, B, p.UDP, p.udp(1, 3, b"x" * 20), total_len=9000))
    unsaid = p.ethernet(p.ipv4(A, B, p.UDP, p.udp(1, 4, b"x" * 20), total_len=0))
    metering = Meter(tmp_path)
    metering.block([padded, lying, unsaid, padded[:30]], wirelens=[60, len(lying), 40_000, 60])
    assert sorted(metering.end()["bytes"][:, 0].tolist()) == [29, 48, 40_000 - 14]
    assert metering.count("unmetered_cut") == 1


def test_inside_of_tunnels(tmp_path: Path) -> None:
    inner = p.tcp_frame("192.168.0.1", 5, "192.168.0.2", 6, b"x" * 30)
    bare = inner[14:]
    packets: list[Packet] = [
        p.ip_frame(A, B, p.UDP, p.udp(50_000, 4789, p.vxlan(inner, vni=77))),
        p.ip_frame(A, B, p.GRE, p.gre(inner, key=9)),
        p.ip_frame(A, B, p.GRE, p.erspan2(inner, sequence=1, session=3)),
        p.ip_frame(A, B, p.UDP, p.udp(50_000, 6081, p.geneve(inner, vni=78))),
        p.ip_frame(A, B, p.IPIP, bare),
        p.ip_frame(A, B, p.GRE, p.gre(p.ip_frame(B, A, p.IPIP, bare), key=4)),
        p.udp_frame(A, 1, B, 2),
    ]
    rows = meter(tmp_path, packets, layer="inner")
    told = {(layout.TUNNEL_NAMES[r["tunnel"]], int(r["tunnel_id"])): (ends(r), int(r["bytes"][0])) for r in rows}
    ends_inside = ("192.168.0.1", 5, "192.168.0.2", 6)
    assert told == {
        ("vxlan", 77): (ends_inside, 70), ("gre", 9): (ends_inside, 70), ("erspan", 3): (ends_inside, 70),
        ("geneve", 78): (ends_inside, 70), ("ipip", 0): (ends_inside, 140), ("", 0): ((A, 1, B, 2), 28),
    }  # fmt: skip
    (tmp_path / "outer").mkdir()
    assert {layout.TUNNEL_NAMES[r["tunnel"]] for r in meter(tmp_path / "outer", packets)} == {""}


def dns(name: str, *, response: int | None = None, type_: int = 28) -> bytes:
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0" + struct.pack("!HH", type_, 1)
    flags = 0x0100 if response is None else 0x8180 | response
    return struct.pack("!HHHHHH", 1, flags, 1, 0, 0, 0) + question


def hello(name: str, *, before: int = 2) -> bytes:
    """A ClientHello with the server's name behind other extensions."""
    server = struct.pack("!HBH", len(name) + 3, 0, len(name)) + name.encode()
    extensions = b"".join(struct.pack("!HH", 10 + n, 4) + bytes(4) for n in range(before)) + struct.pack("!HH", 0, len(server)) + server
    body = (
        b"\3\3"
        + bytes(32)
        + b"\x20"
        + bytes(32)
        + struct.pack("!H", 4)
        + bytes(4)
        + b"\1\0"
        + struct.pack("!H", len(extensions))
        + extensions
    )
    message = b"\1" + struct.pack("!I", len(body))[1:] + body
    return b"\x16\3\1" + struct.pack("!H", len(message)) + message


def test_names_are_those_that_were_asked_for(tmp_path: Path) -> None:
    long = ".".join("a" * 60 + str(n) for n in range(4))
    packets: list[Packet] = [
        p.udp_frame(A, 1, B, 53, dns("WWW.Example.com")),
        p.udp_frame(B, 53, A, 1, dns("www.example.com", response=3)),
        p.tcp_frame(A, 2, B, 443, hello("Shop.Example.org")),
        p.udp_frame(A, 3, B, 53, dns(long)),
        p.udp_frame(A, 4, B, 53, dns("", type_=2)),
        p.udp_frame(A, 5, B, 53, dns("cut.example")[:20]),
        p.udp_frame(A, 6, B, 9953, dns("elsewhere.example")),
        p.tcp_frame(A, 7, B, 443, hello("cut.example")[:-4]),
    ]
    rows = {int(r["source_port"]): r for r in meter(tmp_path, packets)}
    said = {port: (layout.NAMED_NAMES[r["named"]], r["name"].decode(), int(r["dns_type"]), int(r["dns_code"])) for port, r in rows.items()}
    nothing = ("", "", 0, 255)
    assert said == {
        1: ("dns", "www.example.com", 28, 3), 2: ("tls", "shop.example.org", 0, 255), 3: ("dns", long[-layout.NAME_BYTES :], 28, 255),
        4: ("dns", ".", 2, 255), 5: nothing, 6: nothing, 7: nothing,
    }  # fmt: skip
    assert all(len(r["name"]) == r["name_len"] for r in rows.values())
    assert [bool(r["flags"] & layout.FLOW_NAME_CUT) for r in rows.values()] == [False, False, True, False, False, False, False]


def test_names_without_room_are_counted_and_room_comes_back(tmp_path: Path) -> None:
    metering = Meter(tmp_path, sizes=(64, 2, 64))
    metering.packets([(p.udp_frame(A, port, B, 53, dns(f"n{port}.example")), 0.0) for port in (1, 2, 3)])
    assert (metering.count("names_seen"), metering.count("dropped_names"), metering.count("live_names")) == (3, 1, 2)
    metering.packets([(p.udp_frame(A, 9, B, 10), 20.0)])  # the others have been silent for too long
    metering.packets([(p.udp_frame(A, 4, B, 53, dns("n4.example")), 20.5)])
    rows = metering.end()
    assert {r["name"].decode() for r in rows} == {"n1.example", "n2.example", "n4.example", ""}
    assert metering.count("dropped_names") == 1


def test_too_many_flows_at_once(tmp_path: Path) -> None:
    metering = Meter(tmp_path, sizes=(16, 0, 64))
    metering.packets([(p.udp_frame(A, port, B, 2), port * 0.001) for port in range(1, 41)])
    assert metering.count("live_flows") == 16
    rows = metering.end()
    assert sorted(rows["source_port"].tolist()) == list(range(1, 41)), "each is told once, whenever it had to go"
    assert np.count_nonzero(rows["end"] == layout.END_RESOURCES) == metering.count("records_resources") == 24


def test_what_the_exporter_does_not_take_is_counted_with_its_packets(tmp_path: Path) -> None:
    metering = Meter(tmp_path, sizes=(64, 0, 8))
    metering.packets([p.udp_frame(A, port, B, 2, b"x" * port) for port in range(1, 21)])
    metering.stage._flushing_ns = 1  # as if it had waited for long
    while metering.stage.flush():
        metering.stage._flushing_ns = 1
    rows = metering.take()
    lost = {name: metering.count(f"dropped_record{name}") for name in ("s", "_packets", "_bytes")}
    assert (len(rows), lost["s"], lost["_packets"]) == (8, 12, 12)
    assert rows["bytes"].sum() + lost["_bytes"] == metering.count("metered_bytes")
    assert rows["number"].tolist() == list(range(8))
    metering.packets([p.udp_frame(A, 99, B, 2)])
    assert metering.end()["number"].tolist() == [20], "who reads sees that twelve are not there"


@pytest.mark.parametrize("by", ["flow", "packet"])
def test_samples_say_of_how_many_they_are_and_count_the_others(tmp_path: Path, by: str) -> None:
    metering = Meter(tmp_path, Options(sample=Sample(4, by)))  # type: ignore[arg-type]
    metering.packets([p.udp_frame(A, port, B, 2) for port in range(1, 201) for _ in range(2)])
    rows = metering.end()
    assert (rows["one_in"] == 4).all()
    assert (rows["flags"] & layout.FLOW_SAMPLED).all()
    left_out = metering.count("unmetered_sampled")
    assert int(rows["packets"].sum()) + left_out == 400
    assert left_out == 300 if by == "packet" else 200 < left_out < 380
    if by == "flow":
        assert (rows["packets"].sum(axis=1) == 2).all()


def test_only_what_a_tool_gets_where_that_is_asked_for(tmp_path: Path) -> None:
    metering = Meter(tmp_path, Options(of="forwarded"))
    packets = [p.udp_frame(A, port, B, 2) for port in range(1, 5)]
    from tests.stages.delivery import fill

    fill(metering.batch, packets, [0, 1, 0, 1 << 63])
    assert metering.stage.step(metering.batch) == 4
    metering.seq = 1
    assert sorted(metering.end()["source_port"].tolist()) == [2, 4]
    assert metering.count("unmetered_unwanted") == 2


def test_what_is_not_ip(tmp_path: Path) -> None:
    metering = Meter(tmp_path)
    wrong = p.ethernet(b"\x65" + p.ipv4(A, B, p.UDP, p.udp(1, 2))[1:])
    metering.packets([p.ethernet(p.arp(1, (p.MAC_A, A), (p.MAC_B, B)), type=p.ETH_ARP), wrong, b"", b"\0" * 13, p.udp_frame(A, 1, B, 2)])
    assert len(metering.end()) == 1
    assert (metering.count("unmetered_not_ip"), metering.count("metered_packets"), metering.count("metered_bytes")) == (4, 1, 28)
