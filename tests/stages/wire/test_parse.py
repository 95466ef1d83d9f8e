"""KEY rows against headers made by hand."""

from __future__ import annotations

import ipaddress
import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.core import layout
from stages.wire.key import (
    DETAIL_CUT,
    DETAIL_HIDDEN,
    DETAIL_NONE,
    FRAGMENT6_AT,
    FRAGMENT_ATOMIC,
    FRAGMENT_FIRST,
    FRAGMENT_LATER,
    FRAGMENT_NONE,
    FRAGMENT_TINY,
    ICMP6_AT,
    ICMP_AT,
    IP6_AT,
    KEY,
    KIND_ARP,
    KIND_IP,
    KIND_IP6,
    KIND_OTHER,
    NOT_IP,
    PORT_CUT,
    PORT_HIDDEN,
    PORT_NONE,
    PORT_SEEN,
)
from stages.wire.parse import parse_packets
from tests import libpcap
from tests import packets as p
from tests.corpus import captures, needs_corpus, sample


def parse(*frames: bytes) -> NDArray[np.void]:
    data = np.frombuffer(b"".join(frames) + bytes(layout.SLACK), np.uint8)
    rows, found = np.zeros(len(frames), layout.PACKET), np.zeros(len(frames), KEY)
    at = 0
    for row, frame in zip(rows, frames, strict=True):
        row["data_at"], row["caplen"], row["wirelen"] = at, len(frame), len(frame)
        at += len(frame)
    parse_packets(rows.ctypes.data, 0, len(frames), data.ctypes.data, at, found.ctypes.data)
    return found


def halves(text: str) -> tuple[int, int]:
    if ":" not in text:
        return 0, int(ipaddress.IPv4Address(text))
    high, low = struct.unpack("!qq", ipaddress.IPv6Address(text).packed)
    return high, low


TAGS = [(), (5,), (5, 6), (1, 2, 3), (1, 2, 3, 4)]


@pytest.mark.parametrize("vlans", TAGS, ids=len)
@pytest.mark.parametrize("ends", [("10.0.0.1", "192.168.1.2"), ("2001:db8::1", "fe80::2")], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("make", [p.tcp_frame, p.udp_frame])
def test_a_row_says_what_the_headers_say(vlans: tuple[int, ...], ends: tuple[str, str], make: object) -> None:
    frame = make(ends[0], 4000, ends[1], 443, vlans=vlans)  # type: ignore[operator]
    (row,) = parse(frame)
    six = ":" in ends[0]
    assert (row["source_high"], row["source_low"]) == halves(ends[0])
    assert (row["destination_high"], row["destination_low"]) == halves(ends[1])
    assert (row["source_port"], row["destination_port"]) == (4000, 443)
    assert row["source_state"] == row["destination_state"] == PORT_SEEN
    assert row["protocol"] == (IP6_AT if six else 0) + (p.TCP if make is p.tcp_frame else p.UDP)
    assert (row["kind"], row["ethertype"]) == ((KIND_IP6, p.ETH_IP6) if six else (KIND_IP, p.ETH_IP))
    assert (row["n_tags"], row["caplen"], row["odd"]) == (len(vlans), len(frame), 0)


def test_more_tags_than_four_leave_the_fifth_as_the_ethertype() -> None:
    (row,) = parse(p.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2, vlans=(1, 2, 3, 4, 5)))
    assert (row["n_tags"], row["ethertype"], row["kind"], row["protocol"]) == (4, p.ETH_VLAN, KIND_OTHER, NOT_IP)


def test_ports_stand_behind_the_options_of_ipv4() -> None:
    (row,) = parse(p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.TCP, p.tcp(7, 8), options=bytes(12))))
    assert (row["source_port"], row["destination_port"]) == (7, 8)


def test_later_fragments_hide_ports_and_first_ones_show_them() -> None:
    first, later = p.fragments("10.0.0.1", "10.0.0.2", p.UDP, p.udp(7, 8, bytes(32)), size=24)[:2]
    rows = parse(p.ethernet(first), p.ethernet(later))
    assert rows["source_state"].tolist() == [PORT_SEEN, PORT_HIDDEN]
    parts = (
        p.fragment_header(p.UDP, p.udp(7, 8), more=True),
        p.fragment_header(p.UDP, p.udp(9, 9), offset=8),
        p.fragment_header(p.UDP, p.udp(7, 8)),
    )
    rows = parse(*(p.ethernet(p.ipv6("fe80::1", "fe80::2", p.FRAGMENT, part), type=p.ETH_IP6) for part in parts))
    assert rows["protocol"].tolist() == [FRAGMENT6_AT + p.UDP] * 3
    assert rows["source_state"].tolist() == rows["destination_state"].tolist() == [PORT_SEEN, PORT_HIDDEN, PORT_SEEN]
    assert rows["source_port"].tolist() == [7, 0, 7]
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_ATOMIC]


def test_a_protocol_without_ports_has_none() -> None:
    rows = parse(p.ip_frame("10.0.0.1", "10.0.0.2", p.ICMP, p.icmp()), p.ip_frame("fe80::1", "fe80::2", p.ESP, bytes(40)))
    assert rows["source_state"].tolist() == rows["destination_state"].tolist() == [PORT_NONE, PORT_NONE]


def test_cut_ports_are_cut_one_by_one() -> None:
    frame = p.tcp_frame("10.0.0.1", 7, "10.0.0.2", 8)
    rows = parse(frame[:34], frame[:35], frame[:36], frame[:38])
    assert rows["source_state"].tolist() == [PORT_CUT, PORT_CUT, PORT_SEEN, PORT_SEEN]
    assert rows["destination_state"].tolist() == [PORT_CUT, PORT_CUT, PORT_CUT, PORT_SEEN]


def test_arp_gives_both_addresses() -> None:
    (row,) = parse(p.ethernet(p.arp(1, (p.MAC_A, "10.0.0.1"), (p.MAC_B, "10.0.0.2")), type=p.ETH_ARP))
    assert (row["kind"], row["source_low"], row["destination_low"], row["protocol"]) == (KIND_ARP, 0x0A000001, 0x0A000002, NOT_IP)


@pytest.mark.parametrize("vlans", TAGS, ids=len)
def test_a_header_that_is_not_wholly_there_makes_the_row_odd(vlans: tuple[int, ...]) -> None:
    base = 14 + 4 * len(vlans)
    arp = p.ethernet(p.arp(1, (p.MAC_A, "10.0.0.1"), (p.MAC_B, "10.0.0.2")), type=p.ETH_ARP, vlans=vlans)
    whole = (
        (p.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2, vlans=vlans), base + 20),
        (p.tcp_frame("fe80::1", 1, "fe80::2", 2, vlans=vlans), base + 40),
        (p.ethernet(p.ipv6("fe80::1", "fe80::2", p.FRAGMENT, p.fragment_header(p.TCP, b"")), type=p.ETH_IP6, vlans=vlans), base + 41),
        (arp, base + 28),
        (p.ethernet(b"LLDP", type=0x88CC, vlans=vlans), base),
    )
    for frame, enough in whole:
        rows = parse(*(frame[:size] for size in range(len(frame) + 1)))
        assert rows["odd"].tolist() == [1] * enough + [0] * (len(frame) + 1 - enough)


# ---- detail: TCP flags, ICMP types


@pytest.mark.parametrize("vlans", TAGS, ids=len)
def test_the_flags_of_tcp_and_the_types_of_icmp_are_shown(vlans: tuple[int, ...]) -> None:
    ends = "fe80::1", "fe80::2"
    for flags in (0, p.SYN, p.SYN | p.ACK, 255):
        rows = parse(*(p.tcp_frame(*a, flags=flags, vlans=vlans) for a in (("10.0.0.1", 1, "10.0.0.2", 2), (ends[0], 1, ends[1], 2))))
        assert rows["detail"].tolist() == [flags, flags]
    rows = parse(
        p.ip_frame("10.0.0.1", "10.0.0.2", p.ICMP, p.icmp(11), vlans=vlans),
        p.ip_frame(*ends, p.ICMP6, p.icmp6(ends, 135), vlans=vlans),
        p.ip_frame("10.0.0.1", "10.0.0.2", p.ICMP6, p.icmp(11), vlans=vlans),
        p.ip_frame(*ends, p.ICMP, p.icmp(11), vlans=vlans),
        p.udp_frame("10.0.0.1", 1, "10.0.0.2", 2, vlans=vlans),
        p.udp_frame(ends[0], 1, ends[1], 2, vlans=vlans),
        p.ethernet(b"LLDP", type=0x88CC, vlans=vlans),
    )
    assert rows["detail"].tolist() == [ICMP_AT + 11, ICMP6_AT + 135, *[DETAIL_NONE] * 5]


@pytest.mark.parametrize("ends", [("10.0.0.1", "10.0.0.2"), ("fe80::1", "fe80::2")], ids=["IPv4", "IPv6"])
def test_cut_flags_are_cut(ends: tuple[str, str]) -> None:
    frame = p.tcp_frame(ends[0], 7, ends[1], 8, flags=p.SYN)
    enough = 14 + (20 if ends[0][0] == "1" else 40) + 14
    rows = parse(*(frame[:n] for n in range(enough - 14, len(frame) + 1)))
    assert rows["detail"].tolist() == [DETAIL_CUT] * 14 + [p.SYN] * (len(rows) - 14)


@needs_corpus
@libpcap.needs_libpcap
def test_flags_types_and_fragments_of_real_packets_are_those_that_libpcap_finds() -> None:
    chosen = sample(8) + [c for c in captures() if c.is_ethernet and "frag4" in c.features]
    records = [record for capture in chosen for record in libpcap.read_ethernet(capture.path, 60)]
    rows = parse(*(record.data for record in records))
    flags = {n: libpcap.Filter(f"tcp[13] == {n}") for n in range(256)}
    types = {n: libpcap.Filter(f"icmp[0] == {n}") for n in range(256)}
    either = libpcap.Filter("tcp[13] >= 0 or icmp[0] >= 0", optimize=False)
    later, whole = libpcap.Filter("ip[6:2] & 0x1fff != 0"), libpcap.Filter("ip[6:2] & 0x3fff == 0")
    n_flags = n_types = n_later = 0
    for (data, wirelen), row in zip(((r.data, r.wirelen) for r in records), rows, strict=True):
        detail, fragment = int(row["detail"]), int(row["fragment"])
        if row["kind"] != KIND_IP or row["n_tags"] or row["odd"] or fragment == FRAGMENT_TINY:
            continue
        assert (fragment == FRAGMENT_LATER) == later(data, wirelen)
        assert (fragment == FRAGMENT_NONE) == whole(data, wirelen)
        n_later += fragment == FRAGMENT_LATER
        if detail < ICMP_AT:
            assert flags[detail](data, wirelen)
            n_flags += 1
        elif detail < ICMP6_AT:
            assert types[detail - ICMP_AT](data, wirelen)
            n_types += 1
        else:
            assert not either(data, wirelen)
    assert min(n_flags, n_types, n_later) > 50


# ---- cut within a fixed header


def test_of_a_cut_ipv4_header_all_is_shown_that_is_there() -> None:
    frame = p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.TCP, p.tcp(7, 8), offset=8))
    rows = parse(*(frame[: 14 + n] for n in range(20)))
    assert set(rows["kind"].tolist()) == {KIND_IP}
    assert rows["fragment"].tolist() == [FRAGMENT_NONE] * 8 + [FRAGMENT_LATER] * 2 + [FRAGMENT_TINY] * 10
    assert rows["protocol"].tolist() == [NOT_IP] * 10 + [p.TCP] * 10
    assert rows["source_state"].tolist() == rows["destination_state"].tolist() == [PORT_CUT] * 10 + [PORT_HIDDEN] * 10
    assert rows["detail"].tolist() == [DETAIL_CUT] * 10 + [DETAIL_HIDDEN] * 10
    assert rows["source_low"].tolist() == [0] * 16 + [0x0A000001] * 4
    assert set(rows["destination_low"].tolist()) == {0}


def test_of_a_cut_ipv6_header_all_is_shown_that_is_there() -> None:
    ends = "2001:db8::1", "fe80:1::2"
    for protocol, state, detail in (
        (p.UDP, PORT_CUT, DETAIL_NONE), (p.TCP, PORT_CUT, DETAIL_CUT), (p.ICMP6, PORT_NONE, DETAIL_CUT),
        (p.FRAGMENT, PORT_CUT, DETAIL_CUT), (p.HOPOPTS, PORT_NONE, DETAIL_NONE),
    ):  # fmt: skip
        frame = p.ethernet(p.ipv6(*ends, protocol, bytes(8)), type=p.ETH_IP6)
        rows = parse(*(frame[: 14 + n] for n in range(40)))
        assert set(rows["kind"].tolist()) == {KIND_IP6}
        assert rows["protocol"].tolist() == [NOT_IP] * 7 + [IP6_AT + protocol] * 33
        assert rows["source_state"].tolist() == [PORT_CUT] * 7 + [state] * 33
        assert rows["detail"].tolist() == [DETAIL_CUT] * 7 + [detail] * 33
        (high, low), (there, _) = halves(ends[0]), halves(ends[1])
        assert rows["source_high"].tolist() == [0] * 16 + [high] * 24
        assert rows["source_low"].tolist() == [0] * 24 + [low] * 16
        assert rows["destination_high"].tolist() == [0] * 32 + [there] * 8


def test_a_cut_fragment_header_leaves_ports_cut() -> None:
    frame = p.ethernet(p.ipv6("fe80::1", "fe80::2", p.FRAGMENT, p.fragment_header(p.TCP, p.tcp(7, 8), more=True)), type=p.ETH_IP6)
    rows = parse(*(frame[: 14 + n] for n in range(40, 54)))
    assert rows["fragment"].tolist() == [FRAGMENT_LATER] * 8 + [FRAGMENT_FIRST] * 6
    assert rows["source_state"].tolist() == [PORT_CUT] * 10 + [PORT_SEEN] * 4
    assert set(rows["detail"].tolist()) == {DETAIL_CUT}


# ---- flow


def flow(frame: bytes) -> int:
    return int(parse(frame)[0]["flow"])


@pytest.mark.parametrize("ends", [("10.0.0.1", "192.168.1.2"), ("2001:db8::1", "fe80::2")], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("vlans", [(), (5,), (5, 6)], ids=len)
def test_both_directions_are_one_flow_and_another_port_is_another(ends: tuple[str, str], vlans: tuple[int, ...]) -> None:
    a, b = ends
    there = flow(p.tcp_frame(a, 4000, b, 443, vlans=vlans))
    assert there == flow(p.tcp_frame(b, 443, a, 4000, vlans=vlans))
    assert there == flow(p.tcp_frame(a, 4000, b, 443, b"more", flags=p.FIN)), "a tag does not change the flow"
    others = {
        flow(p.tcp_frame(a, 4001, b, 443)), flow(p.tcp_frame(a, 4000, b, 444)), flow(p.udp_frame(a, 4000, b, 443)),
        flow(p.tcp_frame(a, 443, b, 4000)),
    }  # fmt: skip
    assert len(others | {there}) == 5


def test_fragments_of_a_flow_stay_together() -> None:
    parts = p.fragments("10.0.0.1", "10.0.0.2", p.UDP, p.udp(7, 8, bytes(100)), size=24)
    other = p.fragments("10.0.0.1", "10.0.0.2", p.UDP, p.udp(9, 8, bytes(100)), size=24)
    back = p.fragments("10.0.0.2", "10.0.0.1", p.UDP, p.udp(8, 7, bytes(100)), size=24)
    assert len({flow(p.ethernet(part)) for part in (*parts, *other, *back)}) == 1
    six = [p.fragment_header(p.UDP, p.udp(7, 8), more=True), p.fragment_header(p.UDP, b"x" * 16, offset=8)]
    assert len({flow(p.ethernet(p.ipv6("fe80::1", "fe80::2", p.FRAGMENT, part), type=p.ETH_IP6)) for part in six}) == 1


def test_extension_headers_do_not_change_the_flow() -> None:
    segment = p.tcp(7, 8)
    plain = flow(p.ip_frame("fe80::1", "fe80::2", p.TCP, segment))
    chains = (
        (p.HOPOPTS, p.hop_by_hop(p.TCP, segment)),
        (p.ROUTING, p.routing(p.TCP, segment)),
        (p.HOPOPTS, p.hop_by_hop(p.DSTOPTS, p.destination_options(p.TCP, segment))),
        (p.AH, p.authentication(p.TCP, segment)),
    )
    for first, payload in chains:
        assert flow(p.ip_frame("fe80::1", "fe80::2", first, payload)) == plain


def test_what_is_not_ip_flows_by_mac_addresses_and_ethertype() -> None:
    there = flow(p.ethernet(b"x" * 40, type=0x88CC, source=p.MAC_A, destination=p.MAC_B))
    assert there == flow(p.ethernet(b"y" * 50, type=0x88CC, source=p.MAC_B, destination=p.MAC_A))
    assert there != flow(p.ethernet(b"x" * 40, type=0x88CD, source=p.MAC_A, destination=p.MAC_B))


def test_flows_spread_evenly_over_four_workers() -> None:
    rows = parse(*(p.tcp_frame(f"10.0.{i >> 8}.{i & 255}", 1024 + i, "10.9.9.9", 80) for i in range(4000)))
    counts = np.bincount(rows["flow"] % 4, minlength=4)
    assert counts.min() > 850
    assert len(set(rows["flow"].tolist())) > 3990
