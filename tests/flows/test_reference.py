"""The slow meter does what is written of flows: cases by hand, and names as tshark reads them."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import libpcap, packets
from tests.corpus import needs_corpus, sample
from tests.flows import merged
from tests.flows.reference import ACTIVE, FORCED, IDLE, SEEN, meter, meter_packets, see
from tests.libpcap import Record
from tests.packets import ACK

FIN, SYN, RST = 1, 2, 4
A, B = "10.0.0.1", "10.0.0.2"
SECOND = 10**9


def metered(*timed: tuple[float, bytes], layer: str = "outer", **options: float) -> list[dict[str, Any]]:
    records = [Record(round(at * SECOND), len(frame), frame) for at, frame in timed]
    return meter_packets(see(records, layer), **options)


def segment(way: int, flags: int, payload: bytes = b"", seq: int = 0) -> bytes:
    ends, ports = ((A, B), (1000, 80)) if way == 0 else ((B, A), (80, 1000))
    return packets.ip_frame(*ends, 6, packets.tcp(*ports, payload, flags=flags, seq=seq, ends=ends))


def datagram(way: int = 0, n_bytes: int = 10, port: int = 1000) -> bytes:
    return packets.udp_frame(A, port, B, 53, bytes(n_bytes)) if way == 0 else packets.udp_frame(B, 53, A, port, bytes(n_bytes))


def test_both_directions_are_one_flow() -> None:
    (found,) = metered((1, datagram(0, 10)), (2, datagram(1, 30)), (3, datagram(0, 5)))
    assert (found["source"], found["destination"], found["source_port"], found["destination_port"]) == (A, B, 1000, 53)
    assert (found["packets"], found["bytes"]) == ((2, 1), (38 + 33, 58))
    assert (found["min_bytes"], found["max_bytes"]) == ((33, 58), (38, 58))
    assert (found["first_ns"], found["last_ns"], found["end"]) == (SECOND, 3 * SECOND, FORCED)


@pytest.mark.parametrize(("gap_s", "n"), [(15.0, 1), (15.000000001, 2)])
def test_silence_ends_a_flow(gap_s: float, n: int) -> None:
    found = metered((0, datagram()), (gap_s, datagram(1)))
    assert len(found) == n
    assert n == 1 or (found[0]["end"], found[1]["source"]) == (IDLE, B)


def test_a_flow_that_goes_on_is_written_and_keeps_its_direction() -> None:
    found = metered(*((t, datagram(int(t > 50))) for t in range(0, 130, 10)))
    assert [(r["packets"], r["end"], r["continued"]) for r in found] == [
        ((6, 0), ACTIVE, False),
        ((0, 6), ACTIVE, True),
        ((0, 1), FORCED, True),
    ]
    assert {r["source"] for r in found} == {A}


def test_the_source_is_who_began() -> None:
    (found,) = metered((1, segment(1, SYN | ACK)), (2, segment(0, ACK)))
    assert (found["source"], found["packets"], found["began"], found["rtt_us"]) == (A, (1, 1), True, (0, 0))
    (found,) = metered((1, segment(1, ACK)), (2, segment(0, ACK)))
    assert (found["source"], found["began"]) == (B, False)


HANDSHAKE = ((1, segment(0, SYN)), (1.002, segment(1, SYN | ACK)), (1.005, segment(0, ACK, seq=1)))


def test_the_handshake_is_timed() -> None:
    assert metered(*HANDSHAKE)[0]["rtt_us"] == (3000, 2000)
    assert metered(HANDSHAKE[0], *HANDSHAKE)[0]["rtt_us"] == (0, 0)
    assert metered(*HANDSHAKE[:2], (1.003, HANDSHAKE[1][1]), HANDSHAKE[2])[0]["rtt_us"] == (0, 2000)
    at_once = [(1, frame) for _, frame in HANDSHAKE]
    assert metered(*at_once)[0]["rtt_us"] == (1, 1)


def test_a_connection_that_is_closed_ends() -> None:
    closed = (*HANDSHAKE, (2, segment(0, FIN | ACK, seq=1)), (3, segment(1, FIN | ACK, seq=1)))
    assert [r["end"] for r in metered(*closed)] == [SEEN]
    assert len(metered(*closed, (5, segment(0, ACK)))) == 1
    assert [r["end"] for r in metered(*closed, (5.1, segment(0, ACK)))] == [SEEN, FORCED]
    assert [r["end"] for r in metered(*closed, (3.1, segment(0, SYN)))] == [SEEN, FORCED]
    assert [r["end"] for r in metered((1, segment(0, RST)))] == [SEEN]


def test_repeated_segments_are_counted_and_keep_alives_are_not() -> None:
    sent = [(1, segment(0, ACK, b"abcd", 100)), (2, segment(0, ACK, b"efgh", 104))]
    assert metered(*sent)[0]["retransmitted"] == (0, 0)
    assert metered(*sent, (3, segment(0, ACK, b"abcd", 100)), (4, segment(0, ACK, b"efgh", 104)))[0]["retransmitted"] == (2, 0)
    assert metered(*sent, (3, segment(0, ACK, b"h", 107)), (4, segment(0, ACK, b"", 107)))[0]["retransmitted"] == (0, 0)
    wrapped = [(1, segment(0, ACK, b"abcd", 2**32 - 2)), (2, segment(0, ACK, b"efgh", 2)), (3, segment(0, ACK, b"abcd", 2**32 - 2))]
    assert metered(*wrapped)[0]["retransmitted"] == (1, 0)


def test_question_and_answer_of_icmp_are_one_flow() -> None:
    ping, pong = (packets.ip_frame(*ends, 1, packets.icmp(kind)) for ends, kind in (((A, B), 8), ((B, A), 0)))
    (found,) = metered((1, ping), (2, pong))
    assert (found["source_port"], found["destination_port"], found["packets"]) == (8, 0, (1, 1))
    (found,) = metered((1, packets.ip_frame(A, B, 1, packets.icmp(3, 1))))
    assert (found["source_port"], found["destination_port"]) == (3, 1)


def test_later_fragments_have_the_ports_of_the_first() -> None:
    pieces = [packets.ethernet(one) for one in packets.fragments(A, B, 17, packets.udp(1000, 53, bytes(3000)), size=1000)]
    (found,) = metered(*((n, piece) for n, piece in enumerate(pieces)))
    assert (found["packets"][0], found["source_port"], found["fragments"]) == (len(pieces), 1000, True)
    assert len(metered(*((n, piece) for n, piece in enumerate(reversed(pieces))))) == 2


def test_bytes_are_those_of_the_packet_and_not_of_the_frame() -> None:
    frame = datagram(0, 2)
    (found,) = metered((1, frame + bytes(40)))
    assert found["bytes"] == (30, 0)
    cut = bytearray(frame)
    cut[16:18] = b"\0\0"
    assert metered((1, bytes(cut) + bytes(40)))[0]["bytes"] == (70, 0)
    cut[16:18] = struct.pack("!H", 1500)
    assert metered((1, bytes(cut)))[0]["bytes"] == (30, 0)


def test_vlans_and_tunnels_are_told_apart() -> None:
    tagged = [packets.udp_frame(A, 1, B, 2, vlans=vlans) for vlans in ((), (7,), (7, 8))]
    assert sorted((r["vlan"], r["packets"][0]) for r in metered(*((n, one) for n, one in enumerate(tagged)))) == [(0, 1), (7, 2)]
    carried = [packets.udp_frame("192.0.2.1", 9, "192.0.2.2", 4789, packets.vxlan(datagram(), vni=vni)) for vni in (5, 6)]
    assert len(metered((1, carried[0]), (2, carried[1]))) == 1
    inner = metered((1, carried[0]), (2, carried[1]), layer="inner")
    assert sorted((r["tunnel"], r["tunnel_id"], r["source"], r["bytes"]) for r in inner) == [("vxlan", vni, A, (38, 0)) for vni in (5, 6)]


def test_what_is_in_no_flow() -> None:
    arp, whole = packets.arp(1, ("02:00:00:00:00:01", A), ("02:00:00:00:00:02", B)), datagram()
    found = see([Record(1, len(arp), arp), Record(2, len(whole), whole[:33]), Record(3, len(whole), whole[:34])])
    assert [seen.why for seen in found] == ["not ip", "cut", ""]


@needs_corpus
def test_names_are_those_that_tshark_reads(tmp_path: Path) -> None:
    """Of each packet alone, where tshark takes it for DNS or TLS too."""
    some = [c for c in sample(40) if c.packets < 300 and ("dns" in c.name.lower() or "tls" in c.name.lower())]
    records = merged.records(some)
    fields = [word for name in ("dns.qry.name", "tls.handshake.extensions_server_name") for word in ("-e", name)]
    words = ["tshark", "-r", str(merged.write(tmp_path / "merged.pcap", records)), "-T", "fields", "-E", "occurrence=f"]
    done = subprocess.run(
        [*words, "-o", "tcp.desegment_tcp_streams:false", *fields], capture_output=True, text=True, timeout=60, check=True
    )
    compared = 0
    for seen, line in zip(see(records), done.stdout.splitlines(), strict=True):
        dns, tls = line.split("\t")
        for found in meter_packets([seen]):
            if found["named"] and (dns or tls):
                read = {"dns": dns, "tls": tls}[found["named"]].lower()
                assert found["name"] == ("." if read == "<root>" else read), seen.number
                compared += 1
    assert compared > 50


@needs_corpus
def test_records_are_in_a_fixed_order_and_hold_every_packet() -> None:
    for capture in sample(2):
        if libpcap.read(capture.path).datalink != 1:
            continue
        for layer in ("outer", "inner"):
            found = meter(capture.path, layer=layer)
            assert found == meter(capture.path, layer=layer)
            n_packets = sum(seen.packet is not None for seen in see(libpcap.read(capture.path).records, layer))
            assert sum(sum(record["packets"]) for record in found) == n_packets
