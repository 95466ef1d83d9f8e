"""Fragments of all kinds in any order: the kernels say what the slow reference says."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import libpcap
from tests import packets as p
from tests.corpus import captures, needs_corpus
from tests.stages.filter import traffic
from tests.stages.wire import reference as r
from tests.stages.wire.reading import SECOND_NS, START_NS, Packet, Reader, shown

EXTENSIONS = {p.HOPOPTS: p.hop_by_hop, p.DSTOPTS: p.destination_options, p.ROUTING: p.routing, p.AH: p.authentication}


def differences(packets: list[Packet], *, chunk: int = 64) -> tuple[list[str], Counter[int], int]:
    """Where we and the reference do not agree; how often each kind of fragment was met; how many of them were anybody's guess."""
    reader, reference = Reader(chunk=chunk), r.Reference()
    rows = reader.read(*packets)
    found, met, too_long, guesses = [], Counter[int](), 0, 0
    for packet, row in zip(packets, rows, strict=True):
        wanted = reference.judge(packet.data, packet.ts_ns, packet.input)
        met[int(row["fragment"])] += 1
        if wanted is None:
            continue
        too_long += wanted.too_long
        if shown(row) == wanted.shown:
            continue
        if wanted.datagram and wanted.datagram.loose and row["fragment"] == r.CONFLICT:
            guesses += 1
            wanted.datagram.is_conflict = True
            continue
        found.append(f"{wanted.shown} is not {shown(row)} of {packet.data[:120].hex()}")
    names = {r.FOLLOWED: "followed_", r.LATER: "unknown_", r.TINY: "tiny_", r.CONFLICT: "overlapping_", r.ATOMIC: "atomic_"}
    assert {kind: reader.count(f"fragments_{name}packets") for kind, name in names.items()} == {kind: met[kind] for kind in names}
    assert reader.count("fragments_packets") == sum(n for kind, n in met.items() if kind != r.NONE)
    assert reader.count("ip6_chain_long_packets") == too_long
    assert reader.count("fragments_evicted") == 0
    return found, met, guesses


@st.composite
def transports(draw: st.DrawFn) -> tuple[int, bytes]:
    ports = draw(st.sampled_from((80, 443))), draw(st.sampled_from((80, 443)))
    return draw(
        st.sampled_from(
            (
                (p.TCP, p.tcp(*ports, bytes(12), flags=draw(st.sampled_from((p.SYN, p.ACK))))),
                (p.UDP, p.udp(*ports, bytes(24))),
                (p.SCTP, p.sctp(*ports)),
                (p.ICMP, p.icmp(draw(st.sampled_from((0, 8))), payload=bytes(24))),
                (p.ICMP6, b"\x80" + bytes(31)),
                (p.GRE, bytes(32)),
            )
        )
    )


@st.composite
def fragments(draw: st.DrawFn) -> bytes:
    """Any piece of one of a few datagrams."""
    protocol, payload = draw(transports())
    vlans = draw(st.sampled_from(((), (), (5,), (5, 6))))
    start, n = draw(st.integers(0, 3)) * 8, draw(st.sampled_from((8, 8, 16, 0, 5, 13, 14)))
    more, name, piece = draw(st.booleans()), draw(st.integers(1, 2)), payload[start : start + n]
    if draw(st.booleans()):
        options = bytes(4 * draw(st.sampled_from((0, 0, 2))))
        packet = p.ipv4("10.0.0.1", "10.0.0.2", protocol, piece, identification=name, offset=start, more_fragments=more, options=options)
        return p.ethernet(packet, vlans=vlans)
    inner = draw(st.lists(st.sampled_from((p.DSTOPTS, p.ROUTING, p.FRAGMENT)), max_size=1)) if start == 0 else []
    for kind in inner:
        piece = p.fragment_header(protocol, piece) if kind == p.FRAGMENT else EXTENSIONS[kind](protocol, piece)
        protocol = kind
        piece = piece[: draw(st.sampled_from((4, 8, 100)))]
    protocol, piece = p.FRAGMENT, p.fragment_header(protocol, piece, offset=start, more=more, identification=name)
    for kind in draw(st.lists(st.sampled_from(sorted(EXTENSIONS)), max_size=draw(st.sampled_from((0, 0, 1, 2, 10))))):
        protocol, piece = kind, EXTENSIONS[kind](protocol, piece)
    return p.ethernet(p.ipv6("fe80::1", "fe80::2", protocol, piece), type=p.ETH_IP6, vlans=vlans)


@st.composite
def streams(draw: st.DrawFn) -> list[Packet]:
    now, packets = START_NS, []
    for frame in draw(st.lists(fragments(), min_size=1, max_size=25)):
        now += draw(st.sampled_from((0, 0, 0, SECOND_NS // 500, 2 * SECOND_NS, 31 * SECOND_NS)))
        cut = draw(st.sampled_from((0, 0, 0, 0, 5, 20)))
        packets.append(Packet(frame[: len(frame) - cut], now, draw(st.sampled_from((0, 0, 0, 7)))))
    return packets


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(streams())
def test_any_stream_of_pieces_is_shown_as_the_reference_shows_it(packets: list[Packet]) -> None:
    assert differences(packets)[0] == []


@pytest.mark.parametrize("seed", range(4))
def test_long_streams_of_shuffled_datagrams_are_shown_as_the_reference_shows_them(seed: int) -> None:
    """Whole datagrams in a few sizes of piece, some of them twice; neighbours out of order."""
    chosen = random.Random(seed)
    packets = []
    for name in range(150):
        ends = f"10.0.{name % 3}.1", f"10.0.{name % 2}.2"
        size = chosen.choice((24, 48, 120))
        pieces = p.fragments(*ends, p.UDP, p.udp(1000 + name, 53, bytes(chosen.randrange(60, 400))), size=size, identification=name)
        packets += [Packet(p.ethernet(piece), START_NS + name * SECOND_NS // 100) for piece in pieces * chosen.choice((1, 1, 2))]
    for _ in range(300):
        i = chosen.randrange(len(packets) - 3)
        packets[i], packets[i + 3] = packets[i + 3], packets[i]
    found, met, _ = differences(packets, chunk=chosen.choice((1, 7, 64)))
    assert found == []
    assert met[r.FOLLOWED] > 500
    assert met[r.LATER] > 10
    assert met[r.CONFLICT] < 5


def test_all_kinds_of_traffic_are_shown_as_the_reference_shows_them() -> None:
    packets = [Packet(f.data) for f in traffic.some(6000, seed=5) + traffic.every_cut(seed=6, n=60)]
    found, met, _ = differences(packets)
    assert found == []
    assert set(met) == set(range(7))


@needs_corpus
@libpcap.needs_libpcap
def test_fragments_of_real_captures_are_shown_as_the_reference_shows_them() -> None:
    met, guesses, n = Counter[int](), 0, 0
    for capture in captures():
        if capture.is_ethernet and ("frag" in capture.features or "ip6-" in capture.features):
            packets = [Packet(record.data, START_NS + i * 1_000_000) for i, record in enumerate(libpcap.read_ethernet(capture.path, 2000))]
            found, here, loose = differences(packets)
            assert found == [], capture.name
            met, guesses, n = met + here, guesses + loose, n + len(packets)
    assert n > 10_000
    assert set(met) == set(range(7))
    assert guesses < n // 100


@needs_corpus
@libpcap.needs_libpcap
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_what_follows_has_the_ports_that_tshark_finds_by_putting_the_datagram_together() -> None:
    """tshark shows them at the last fragment to come."""
    n = 0
    for capture in captures():
        if (
            not capture.is_ethernet
            or "-nonfirst" not in capture.features
            or not capture.name.startswith(("deepflow/", "pcapplusplus/", "zeek/"))
        ):
            continue
        fields = ("frame.number", "udp.srcport", "udp.dstport", "ip.fragment.error", "ipv6.fragment.error")
        command = ["tshark", "-n", "-r", str(capture.path), "-c", "500", "-T", "fields", "-E", "occurrence=f"]
        command += [
            "-o",
            "ip.defragment:TRUE",
            "-o",
            "ipv6.defragment:TRUE",
            "-Y",
            "udp && (ip.reassembled.length || ipv6.reassembled.length)",
        ]
        text = subprocess.run([*command, *(word for f in fields for word in ("-e", f))], capture_output=True, text=True, timeout=60).stdout
        rows = Reader().read(*(Packet(record.data, START_NS + i) for i, record in enumerate(libpcap.read_ethernet(capture.path, 500))))
        for line in text.splitlines():
            number, source, destination, *errors = line.split("\t")
            row = rows[int(number) - 1]
            if row["fragment"] == r.FOLLOWED and int(row["protocol"]) in (17, 512 + 17) and not any(errors):
                assert (int(row["source_port"]), int(row["destination_port"])) == (int(source), int(destination)), (capture.name, number)
                n += 1
    assert n > 30
