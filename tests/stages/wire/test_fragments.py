"""Later fragments follow their first; what evades is named, and hides its ports."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet as Layers
from scapy.packet import Raw

from stages.wire.key import (
    DETAIL_HIDDEN,
    DETAIL_NONE,
    FRAGMENT6_AT,
    FRAGMENT_ATOMIC,
    FRAGMENT_CONFLICT,
    FRAGMENT_FIRST,
    FRAGMENT_FOLLOWED,
    FRAGMENT_LATER,
    FRAGMENT_NONE,
    FRAGMENT_TINY,
    ICMP6_AT,
    ICMP_AT,
    PORT_HIDDEN,
    PORT_NONE,
    PORT_SEEN,
)
from tests import packets as p
from tests.stages.wire.reading import SECOND_NS, START_NS, Packet, Reader

A4, B4, A6, B6 = "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"


def by_scapy(packet: Layers, size: int, *, vlan: int | None = None) -> list[bytes]:
    """Its fragments, in order, as frames."""
    pieces = fragment6(packet, size) if IPv6 in packet else fragment(packet, size)
    link = Ether(src=p.MAC_A, dst=p.MAC_B)
    return [bytes(link / Dot1Q(vlan=vlan) / piece if vlan else link / piece) for piece in pieces]


def udp4(n: int = 100, **ip: object) -> Layers:
    return IP(src=A4, dst=B4, id=7, **ip) / UDP(sport=1000, dport=53) / Raw(bytes(n))


def tcp6(n: int = 2000) -> Layers:
    return IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=9) / TCP(sport=1000, dport=443, flags="S") / Raw(bytes(n))


def piece4(payload: bytes, start: int, *, more: bool = True, protocol: int = p.UDP, name: int = 7) -> bytes:
    return p.ethernet(p.ipv4(A4, B4, protocol, payload, identification=name, offset=start, more_fragments=more))


def piece6(payload: bytes, start: int, *, more: bool = True, protocol: int = p.UDP) -> bytes:
    header = p.fragment_header(protocol, payload, offset=start, more=more, identification=7)
    return p.ethernet(p.ipv6(A6, B6, p.FRAGMENT, header), type=p.ETH_IP6)


PIECES = [piece4, piece6]


def ports(rows: NDArray[np.void]) -> list[tuple[int, int]]:
    return list(zip(rows["source_port"].tolist(), rows["destination_port"].tolist(), strict=True))


def assert_hidden(rows: NDArray[np.void]) -> None:
    assert set(rows["source_state"].tolist()) == set(rows["destination_state"].tolist()) == {PORT_HIDDEN}
    assert set(ports(rows)) == {(0, 0)}


# ---- following


@pytest.mark.parametrize("vlan", [None, 30])
def test_later_fragments_get_the_ports_of_their_first(vlan: int | None) -> None:
    for frames, there in ((by_scapy(udp4(), 24, vlan=vlan), (1000, 53)), (by_scapy(tcp6(), 600, vlan=vlan), (1000, 443))):
        reader = Reader()
        rows = reader.read(*frames)
        assert len(frames) >= 4
        assert ports(rows) == [there] * len(frames)
        assert rows["fragment"].tolist() == [FRAGMENT_FIRST] + [FRAGMENT_FOLLOWED] * (len(frames) - 1)
        assert set(rows["source_state"].tolist()) == set(rows["destination_state"].tolist()) == {PORT_SEEN}
        assert len(set(rows["flow"].tolist())) == 1
        assert reader.counts() == {"fragments_packets": len(frames), "fragments_followed_packets": len(frames) - 1}


def test_later_fragments_get_the_flags_or_type_of_their_first() -> None:
    syn = IP(src=A4, dst=B4) / TCP(sport=1, dport=2, flags="SA") / Raw(bytes(40))
    echo = IP(src=A4, dst=B4) / ICMP(type=8) / Raw(bytes(40))
    for packet, detail, state in ((syn, 0x12, PORT_SEEN), (echo, ICMP_AT + 8, PORT_NONE), (udp4(), DETAIL_NONE, PORT_SEEN)):
        rows = Reader().read(*by_scapy(packet, 24))
        assert set(rows["detail"].tolist()) == {detail}
        assert set(rows["source_state"].tolist()) == {state}
    rows = Reader().read(piece6(b"\x80" + bytes(15), 0, protocol=p.ICMP6), piece6(bytes(8), 16, more=False, protocol=p.ICMP6))
    assert rows["detail"].tolist() == [ICMP6_AT + 128] * 2
    assert set(rows["protocol"].tolist()) == {FRAGMENT6_AT + p.ICMP6}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from((8, 24, 64)), st.integers(1, 64))
def test_whatever_the_order_all_behind_the_first_follow_it(seed: int, size: int, chunk: int) -> None:
    chosen = random.Random(seed)
    frames = by_scapy(udp4(chosen.randrange(size, 9 * size)), size)
    first = frames[0]
    chosen.shuffle(frames)
    rows = Reader(chunk=chunk).read(*frames)
    at = frames.index(first)
    assert rows["fragment"].tolist() == [FRAGMENT_LATER] * at + [FRAGMENT_FIRST] + [FRAGMENT_FOLLOWED] * (len(frames) - at - 1)
    assert_hidden(rows[:at]) if at else None
    assert ports(rows[at:]) == [(1000, 53)] * (len(frames) - at)


def test_repetitions_are_harmless() -> None:
    frames = by_scapy(udp4(), 24) + by_scapy(udp4(), 24)[::-1]
    rows = Reader().read(*frames, *frames)
    assert ports(rows) == [(1000, 53)] * len(rows)
    assert FRAGMENT_CONFLICT not in rows["fragment"]


OTHERS = {
    "source": {"source": "10.0.0.9"},
    "destination": {"destination": "10.0.0.9"},
    "identification": {"identification": 8},
    "protocol": {"protocol": p.SCTP},
    "VLAN": {"vlans": (5,)},
    "second VLAN": {"vlans": (1, 5)},
    "input": {"input": 3},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_a_fragment_of_another_datagram_does_not_follow(other: dict[str, object]) -> None:
    def piece(payload: bytes, start: int, **its: object) -> Packet:
        where = {"source": A4, "destination": B4, "protocol": p.UDP, "identification": 7, "vlans": (1, 4), "input": 0} | its
        ends = str(where["source"]), str(where["destination"])
        packet = p.ipv4(*ends, where["protocol"], payload, identification=where["identification"], offset=start, more_fragments=True)  # type: ignore[arg-type]
        return Packet(p.ethernet(packet, vlans=where["vlans"]), input=where["input"])  # type: ignore[arg-type]

    rows = Reader().read(piece(p.udp(7, 8, bytes(8)), 0), piece(bytes(8), 16, **other), piece(bytes(8), 16))
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_FOLLOWED]


def test_the_priority_of_a_tag_does_not_tell_datagrams_apart() -> None:
    frames = [
        p.ethernet(part, vlans=(tci,))
        for part, tci in zip(p.fragments(A4, B4, p.UDP, p.udp(7, 8, bytes(8)), size=8), (5, 0xA005), strict=True)
    ]
    assert Reader().read(*frames)["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_FOLLOWED]


# ---- evasion


@pytest.mark.parametrize("piece", PIECES)
def test_a_first_fragment_without_its_flags_or_ports_is_tiny(piece: object) -> None:
    """RFC 1858 section 3.1: the flags would come with the second fragment."""
    for protocol, enough in ((p.TCP, 14), (p.UDP, 4), (p.SCTP, 4), (p.ICMP6 if piece is piece6 else p.ICMP, 1)):
        reader = Reader()
        frames = [p.padded(piece(p.tcp(7, 8)[:n], 0, protocol=protocol), 80) for n in range(17)]  # type: ignore[operator]
        found = [Reader().read(frame)[0] for frame in frames]
        assert [int(row["fragment"]) for row in found] == [FRAGMENT_TINY] * enough + [FRAGMENT_FIRST] * (17 - enough)
        assert {int(row["source_state"]) for row in found[:enough]} <= {PORT_HIDDEN, PORT_NONE}
        assert {int(row["detail"]) for row in found[:enough]} <= {DETAIL_HIDDEN, DETAIL_NONE}
        reader.read(frames[enough - 1])
        assert reader.counts() == {"fragments_packets": 1, "fragments_tiny_packets": 1}


@pytest.mark.parametrize("piece", PIECES)
def test_tcp_at_offset_8_is_tiny_and_a_tiny_first_one_is_not_followed(piece: object) -> None:
    """RFC 3128: the fragment that overwrites the flags."""
    segment, reader = p.tcp(7, 8, bytes(12)), Reader()
    rows = reader.read(*(piece(segment[at : at + 8], at, protocol=p.TCP, more=at < 24) for at in (0, 8, 16, 24)))  # type: ignore[operator]
    assert rows["fragment"].tolist() == [FRAGMENT_TINY, FRAGMENT_TINY, FRAGMENT_LATER, FRAGMENT_LATER]
    assert_hidden(rows)
    assert set(rows["detail"].tolist()) == {DETAIL_HIDDEN}
    assert reader.counts() == {"fragments_packets": 4, "fragments_tiny_packets": 2, "fragments_unknown_packets": 2}
    assert Reader().read(piece(bytes(8), 8))["fragment"].tolist() == [FRAGMENT_LATER], "UDP at offset 8 is any later fragment"  # type: ignore[operator]


OVERLAPS = {
    "teardrop: within the first": (8, 24, True),
    "over its end": (24, 24, True),
    "the same start, longer": (32, 24, True),
    "the same start, shorter": (32, 8, False),
    "over the start of a later one": (24, 16, True),
    "over all": (0, 64, True),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS.keys())
def test_overlapping_fragments_make_the_datagram_a_conflict_from_then_on(piece: object, overlap: tuple[int, int, bool]) -> None:
    start, n, more = overlap
    first, later = piece(p.udp(7, 8, bytes(24)), 0), piece(bytes(16), 32)  # type: ignore[operator]
    bad = piece(p.udp(7, 8, bytes(n - 8)), start, more=more)  # type: ignore[operator]
    reader = Reader()
    rows = reader.read(first, later, bad, first, later, piece(bytes(8), 48, more=False))  # type: ignore[operator]
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_FOLLOWED] + [FRAGMENT_CONFLICT] * 4
    assert_hidden(rows[2:])
    assert reader.counts() == {"fragments_packets": 6, "fragments_followed_packets": 1, "fragments_overlapping_packets": 4}


SECOND_FIRSTS = {
    "ports": (p.TCP, p.tcp(7, 22, bytes(12))),
    "flags": (p.TCP, p.tcp(7, 8, bytes(12), flags=p.SYN)),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("second", SECOND_FIRSTS.values(), ids=SECOND_FIRSTS.keys())
def test_a_second_first_fragment_that_says_otherwise_is_a_conflict(piece: object, second: tuple[int, bytes]) -> None:
    protocol, payload = second
    frames = [piece(part, 0, protocol=protocol) for part in (p.tcp(7, 8, bytes(12)), payload)]  # type: ignore[operator]
    rows = Reader().read(*frames, piece(bytes(8), 32, protocol=protocol))  # type: ignore[operator]
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_CONFLICT, FRAGMENT_CONFLICT]
    assert_hidden(rows[1:])


ENDS = {
    "behind the last": ((16, 8, False), (24, 8, True)),
    "another last": ((24, 8, False), (16, 8, False)),
    "a last before what has come": ((32, 8, True), (16, 8, False)),
    "ping of death": ((16, 8, True), (65_528, 16, False)),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("parts", ENDS.values(), ids=ENDS.keys())
def test_fragments_that_do_not_agree_on_the_end_are_a_conflict(piece: object, parts: tuple[tuple[int, int, bool], ...]) -> None:
    frames = [piece(bytes(n), start, more=more) for start, n, more in parts]  # type: ignore[operator]
    rows = Reader().read(piece(p.udp(7, 8, bytes(8)), 0), *frames)  # type: ignore[operator]
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_FOLLOWED, FRAGMENT_CONFLICT]


def test_an_ipv6_fragment_that_names_another_protocol_is_a_conflict() -> None:
    rows = Reader().read(piece6(p.udp(7, 8, bytes(8)), 0), piece6(bytes(8), 16, protocol=p.TCP))
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_CONFLICT]
    assert_hidden(rows[1:])


def test_atomic_fragments_are_whole_and_have_nothing_to_do_with_others() -> None:
    """RFC 6946 section 4."""
    reader = Reader()
    atomic = piece6(p.udp(9, 10), 0, more=False)
    rows = reader.read(piece6(p.udp(7, 8, bytes(8)), 0), atomic, piece6(bytes(8), 16, more=False))
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_ATOMIC, FRAGMENT_FOLLOWED]
    assert ports(rows) == [(7, 8), (9, 10), (7, 8)]
    assert reader.counts() == {"fragments_packets": 3, "fragments_followed_packets": 1, "fragments_atomic_packets": 1}


def test_too_many_pieces_are_a_conflict_and_pieces_side_by_side_are_one() -> None:
    apart = [piece4(bytes(8), 16 * i) for i in range(1, 8)]
    assert Reader().read(*apart)["fragment"].tolist() == [FRAGMENT_LATER] * 6 + [FRAGMENT_CONFLICT]
    cut_again = [piece4(bytes(n), start) for i in range(1, 40) for start, n in ((48 * i, 32), (48 * i + 32, 16))]  # twice, by a tunnel
    rows = Reader().read(piece4(p.udp(7, 8, bytes(40)), 0), *cut_again)
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST] + [FRAGMENT_FOLLOWED] * 78
    for order, start, n in ((cut_again, 192, 16), (cut_again[::-1], 80, 32)):  # as long as some, but not one of them
        assert Reader().read(*order)["fragment"].tolist() == [FRAGMENT_LATER] * 78
        assert Reader().read(*order, piece4(bytes(n), start))["fragment"][-1] == FRAGMENT_CONFLICT


# ---- chains of IPv6 extension headers


def six(protocol: int, payload: bytes) -> bytes:
    return p.ethernet(p.ipv6(A6, B6, protocol, payload), type=p.ETH_IP6)


def chain(n: int, protocol: int, payload: bytes) -> tuple[int, bytes]:
    """n destination options, of 8 bytes each."""
    for _ in range(n):
        protocol, payload = p.DSTOPTS, p.destination_options(protocol, payload)
    return protocol, payload


def test_a_chain_of_more_than_eight_headers_or_256_bytes_is_too_long() -> None:
    for n, is_long in ((8, 0), (9, 1), (30, 1)):
        reader = Reader()
        (row,) = reader.read(six(*chain(n, p.UDP, p.udp(7, 8))))
        assert (row["fragment"], reader.count("ip6_chain_long_packets")) == (FRAGMENT_NONE, is_long)
        assert row["source_state"] == row["destination_state"] == (PORT_HIDDEN if is_long else PORT_NONE)
        assert row["detail"] == (DETAIL_HIDDEN if is_long else DETAIL_NONE)
    for n_bytes, is_long in ((256, 0), (264, 1)):
        reader = Reader()
        reader.read(six(p.DSTOPTS, p.destination_options(p.UDP, p.udp(7, 8), bytes(n_bytes - 2))))
        assert reader.count("ip6_chain_long_packets") == is_long


def test_a_first_fragment_that_does_not_hold_the_whole_chain_is_tiny() -> None:
    """RFC 7112; the rest of the chain, and the ports, would come with the next fragment."""
    kind, payload = chain(2, p.UDP, p.udp(7, 8, bytes(8)))
    for n, is_long in ((8, 1), (12, 1), (15, 1), (16, 0), (19, 0), (20, 0)):
        reader = Reader()
        frame = p.padded(piece6(payload[:n], 0, protocol=kind), 120)
        (row,) = reader.read(frame)
        assert row["fragment"] == (FRAGMENT_TINY if n < 20 else FRAGMENT_FIRST), n
        assert reader.count("ip6_chain_long_packets") == is_long, n


def test_a_second_fragment_header_ends_the_search() -> None:
    reader = Reader()
    (row,) = reader.read(piece6(p.fragment_header(p.UDP, p.udp(7, 8)), 0, protocol=p.FRAGMENT, more=False))
    assert (row["fragment"], row["source_state"], reader.count("ip6_chain_long_packets")) == (FRAGMENT_ATOMIC, PORT_HIDDEN, 1)


def test_fragment_headers_are_found_behind_other_headers_and_hide_nothing_that_was_shown() -> None:
    """A test of ports never looks behind hop-by-hop options, so there are none, neither here nor there."""
    reader = Reader()
    frames = [
        six(p.HOPOPTS, p.hop_by_hop(p.FRAGMENT, p.fragment_header(p.UDP, piece, offset=at, more=at == 0)))
        for at, piece in ((0, p.udp(7, 8, bytes(8))), (16, bytes(8)))
    ]
    rows = reader.read(*frames)
    assert rows["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_FOLLOWED]
    assert set(rows["source_state"].tolist()) == {PORT_NONE}
    assert reader.counts() == {"fragments_packets": 2, "fragments_followed_packets": 1}


# ---- memory


def test_a_datagram_is_forgotten_after_a_minute_and_a_complete_one_after_a_second() -> None:
    first, last = piece4(p.udp(7, 8, bytes(8)), 0), piece4(bytes(8), 16, more=False)
    other = piece4(p.udp(7, 22, bytes(8)), 0)

    def fragments(*packets: tuple[bytes, float]) -> list[int]:
        return [int(k) for k in Reader().read(*(Packet(f, START_NS + int(at * SECOND_NS)) for f, at in packets))["fragment"]]

    assert fragments((first, 0), (last, 59.9)) == [FRAGMENT_FIRST, FRAGMENT_FOLLOWED]
    assert fragments((first, 0), (last, 60.1)) == [FRAGMENT_FIRST, FRAGMENT_LATER]
    assert fragments((first, 0), (last, 0.1), (other, 0.9)) == [FRAGMENT_FIRST, FRAGMENT_FOLLOWED, FRAGMENT_CONFLICT]
    assert fragments((first, 0), (last, 0.1), (other, 1.1), (last, 1.2)) == [
        FRAGMENT_FIRST, FRAGMENT_FOLLOWED, FRAGMENT_FIRST, FRAGMENT_FOLLOWED,
    ]  # fmt: skip
    assert fragments((first, 0), (other, 1.1)) == [FRAGMENT_FIRST, FRAGMENT_CONFLICT], "an incomplete one is not"
    assert fragments((first, 100), (last, 99)) == [FRAGMENT_FIRST, FRAGMENT_FOLLOWED], "a little out of order"
    assert fragments((first, 100), (last, 0)) == [FRAGMENT_FIRST, FRAGMENT_LATER], "the capture is played again"
    for ts_ns in (0, (1 << 63) - 1, -(1 << 63)):
        assert Reader().read(Packet(first, ts_ns), Packet(last, ts_ns))["fragment"].tolist() == [FRAGMENT_FIRST, FRAGMENT_FOLLOWED]


def test_the_oldest_of_a_full_bucket_goes_and_is_counted() -> None:
    def first(name: int, ms: int) -> Packet:
        return Packet(piece4(p.udp(7, 8, bytes(8)), 0, name=name), START_NS + ms * SECOND_NS // 500)

    def last(name: int, ms: int) -> Packet:
        return Packet(piece4(bytes(8), 16, more=False, name=name), START_NS + ms * SECOND_NS // 500)

    reader = Reader(buckets=1)
    reader.read(*(first(name, name) for name in range(5)))
    assert reader.count("fragments_evicted") == 1
    assert reader.read(last(1, 6))["fragment"].tolist() == [FRAGMENT_FOLLOWED]
    assert reader.count("fragments_evicted") == 1
    rows = reader.read(last(0, 7), *(last(name, 8) for name in (2, 3, 4)))
    assert rows["fragment"].tolist() == [FRAGMENT_LATER] + [FRAGMENT_FOLLOWED] * 3, "a complete one makes room first"
    assert reader.count("fragments_evicted") == 1


def flood(n: int) -> list[Packet]:
    pieces = (p.udp(7, 8, bytes(8)), bytes(8))
    return [
        Packet(piece4(piece, at, more=at == 0, name=name), START_NS + name * 1000)
        for block in range(0, n, 64)
        for at, piece in zip((0, 16), pieces, strict=True)
        for name in range(block, block + 64)
    ]


def test_the_same_seed_gives_the_same_answers_and_another_one_evicts_others() -> None:
    packets = flood(1024)
    one, same, other = (Reader(seed, buckets=8) for seed in (1, 1, 2))
    rows = [reader.read(*packets)["fragment"].tolist() for reader in (one, same, other)]
    assert rows[0] == rows[1] != rows[2]
    assert one.counts() == same.counts()
    assert one.count("fragments_evicted") > 100
    assert one.count("fragments_followed_packets") + one.count("fragments_unknown_packets") == 1024


def test_datagrams_spread_over_all_buckets() -> None:
    reader = Reader(buckets=256)
    reader.read(*(piece4(p.udp(7, 8, bytes(8)), 0, name=name) for name in range(512)))
    used = (reader.table.entries["state"].reshape(256, -1) != 0).sum(axis=1)
    assert (used > 0).sum() > 190
    assert reader.count("fragments_evicted") < 60
