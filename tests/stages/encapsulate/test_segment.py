"""Super-frames into segments: their payloads are the original's, tshark finds every checksum right, and nothing else has changed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stages import memory
from stages.encapsulate import segment
from stages.encapsulate.segment import (
    SEGMENT_CUT,
    SEGMENT_FLAGS,
    SEGMENT_FRAGMENT,
    SEGMENT_HEADER_ROOM,
    SEGMENT_LONG,
    SEGMENT_NOT_IP,
    SEGMENT_NOT_TCP,
)
from stages.jit import PLAIN
from tests import corpus, libpcap
from tests import packets as p
from tests.again import run_plain
from tests.stages.delivery import payload
from tests.stages.encapsulate import wireshark
from tests.stages.encapsulate.guarded import Guarded, read
from tests.stages.encapsulate.wireshark import GOOD, statuses
from tests.stages.filter import traffic, tunnel_traffic

IN, OUT = Guarded(), Guarded(SEGMENT_HEADER_ROOM)
ENDS4, ENDS6 = ("10.0.0.1", "10.0.0.2"), ("fe80::1", "fe80::2")
MSS = 1460


def plan(frame: bytes, udp: int = 0) -> int:
    memory.forbid_all()
    return segment.plan_segments(IN.put(frame), len(frame), udp)


def segments(frame: bytes, mss: int = MSS, *, udp: int = 0, at_end: bool = True) -> list[bytes]:
    """The frames that leave. Each header is written into memory of just its length."""
    memory.forbid_all()
    at = IN.put(frame, at_end=at_end)
    found = segment.plan_segments(at, len(frame), udp)
    assert found > 0, found
    header_len = segment.header_len_of(found)
    assert header_len <= SEGMENT_HEADER_ROOM
    left = []
    for i in range(segment.n_segments_of(found, mss)):
        out = OUT.put(bytes(header_len))
        segment.write_segment_header(out, at, found, mss, i)
        window = segment.segment_at(found, mss, i)
        left.append(read(out, header_len) + frame[window : window + segment.segment_len(found, mss, i)])
    return left


def tcp(n: int, ends: tuple[str, str] = ENDS4, seq: int = 0xFFFF_F000, flags: int = p.ACK | p.PSH | p.FIN | p.CWR | p.ECE) -> bytes:
    return p.tcp(4000, 443, payload(n), flags=flags, seq=seq, ack=77, options=bytes.fromhex("0101080a0000000100000002"), ends=ends)


def test_each_segment_is_the_packet_that_a_card_would_have_sent() -> None:
    """Byte for byte: sequence numbers and identifications wrap, the last segment is the short one."""
    options, n = bytes.fromhex("94040000"), 10_000
    data = payload(n)
    whole = p.ipv4(*ENDS4, p.TCP, tcp(n), identification=0xFFFE, options=options, dont_fragment=True, tos=2, header_checksum=0xBAD)
    left = segments(p.ethernet(whole, vlans=(1, 2, 3, 4)) + bytes(7), 1000)
    assert len(left) == 10
    for i, frame in enumerate(left):
        flags = p.ACK | p.ECE | (p.CWR if i == 0 else 0) | (p.PSH | p.FIN if i == 9 else 0)
        part = p.tcp(
            4000, 443, data[1000 * i : 1000 * (i + 1)], flags=flags, seq=(0xFFFF_F000 + 1000 * i) & 0xFFFF_FFFF, ack=77,
            options=bytes.fromhex("0101080a0000000100000002"), ends=ENDS4,
        )  # fmt: skip
        packet = p.ipv4(*ENDS4, p.TCP, part, identification=(0xFFFE + i) & 0xFFFF, options=options, dont_fragment=True, tos=2)
        assert frame == p.ethernet(packet, vlans=(1, 2, 3, 4)), i


@pytest.mark.parametrize("n", [0, 1, 1459, 1460, 1461, 2920, 2921, 65_000])
def test_any_length_is_divided_without_a_byte_lost(n: int) -> None:
    for frame in (p.ip_frame(*ENDS4, p.TCP, tcp(n)), p.ip_frame(*ENDS6, p.TCP, tcp(n, ENDS6))):
        left = segments(frame)
        assert len(left) == max(1, -(-n // MSS))
        header_len = len(frame) - n
        assert b"".join(one[header_len:] for one in left) == payload(n)
        if n <= MSS:
            assert left == [frame], "a packet that is short enough is what it was"


def test_extension_headers_are_kept_and_lengths_count_them() -> None:
    chain = p.hop_by_hop(p.DSTOPTS, p.destination_options(p.TCP, tcp(3000, ENDS6)))
    left = segments(p.ethernet(p.ipv6(*ENDS6, p.HOPOPTS, chain, traffic_class=3, flow_label=5), type=p.ETH_IP6))
    for i, frame in enumerate(left):
        flags = p.ACK | p.ECE | (p.CWR if i == 0 else 0) | (p.PSH | p.FIN if i == 2 else 0)
        part = p.tcp(
            4000, 443, payload(3000)[MSS * i : MSS * (i + 1)], flags=flags, seq=(0xFFFF_F000 + MSS * i) & 0xFFFF_FFFF, ack=77,
            options=bytes.fromhex("0101080a0000000100000002"), ends=ENDS6,
        )  # fmt: skip
        expected = p.hop_by_hop(p.DSTOPTS, p.destination_options(p.TCP, part))
        assert frame == p.ethernet(p.ipv6(*ENDS6, p.HOPOPTS, expected, traffic_class=3, flow_label=5), type=p.ETH_IP6)


def test_udp_becomes_datagrams_only_where_that_is_known_to_be_right() -> None:
    for ends in (ENDS4, ENDS6):
        frame = p.udp_frame(ends[0], 5, ends[1], 443, payload(2500))
        assert plan(frame) == SEGMENT_NOT_TCP
        parts = [payload(2500)[:1200], payload(2500)[1200:2400], payload(2500)[2400:]]
        expected = [p.udp_frame(ends[0], 5, ends[1], 443, part) for part in parts]
        left = segments(frame, 1200, udp=1)
        if ends is ENDS6:
            assert left == expected
        else:  # the identifications differ, and the header checksum with them
            assert [one[:18] + one[20:24] + one[26:] for one in left] == [one[:18] + one[20:24] + one[26:] for one in expected]
    without = p.ip_frame(*ENDS4, p.UDP, p.udp(5, 443, payload(2500)))
    assert all(one[40:42] == b"\0\0" for one in segments(without, 1200, udp=1)), "none stays none"


def test_a_length_of_zero_is_left_to_the_card_and_means_all_that_is_there() -> None:
    whole = p.ipv4(*ENDS4, p.TCP, tcp(5000), total_len=0)
    assert segments(p.ethernet(whole)) == segments(p.ip_frame(*ENDS4, p.TCP, tcp(5000)))
    whole = p.ipv6(*ENDS6, p.TCP, tcp(5000, ENDS6), payload_len=0)
    assert segments(p.ethernet(whole, type=p.ETH_IP6)) == segments(p.ip_frame(*ENDS6, p.TCP, tcp(5000, ENDS6)))


def test_what_cannot_be_segmented_says_why() -> None:
    segment_ = tcp(3000)
    frame = p.ip_frame(*ENDS4, p.TCP, segment_)
    jumbo = p.hop_by_hop(p.TCP, tcp(3000, ENDS6), bytes.fromhex("c20400010000"))
    long = tcp(3000, ENDS6)
    kind = p.TCP
    for _ in range(9):
        long, kind = p.destination_options(kind, long), p.DSTOPTS
    routed = p.routing(p.TCP, tcp(3000, ENDS6), segments_left=1)
    cases = {
        SEGMENT_NOT_IP: [p.ethernet(p.arp(1, (p.MAC_A, "10.0.0.1"), (p.MAC_B, "10.0.0.2")), type=p.ETH_ARP), p.ethernet(b"\x65" * 60)],
        SEGMENT_NOT_TCP: [p.ip_frame(*ENDS4, p.ICMP, p.icmp()), p.ip_frame(*ENDS4, p.GRE, p.gre(frame))],
        SEGMENT_FRAGMENT: [p.ethernet(packet) for packet in p.fragments(*ENDS4, p.TCP, segment_, size=1480)]
        + [p.ethernet(p.ipv6(*ENDS6, p.FRAGMENT, p.fragment_header(p.TCP, segment_, offset=8, more=True)), type=p.ETH_IP6)],
        SEGMENT_CUT: [frame[:n] for n in (*range(14), *range(14, 66, 5), len(frame) - 1)]
        + [p.ethernet(p.ipv4(*ENDS4, p.TCP, segment_, header_words=4)), p.ethernet(p.ipv4(*ENDS4, p.TCP, segment_, total_len=50))],
        SEGMENT_LONG: [p.ethernet(p.ipv6(*ENDS6, *more), type=p.ETH_IP6) for more in ((kind, long), (p.ROUTING, routed))]
        + [p.ethernet(p.ipv6(*ENDS6, p.HOPOPTS, jumbo, payload_len=0), type=p.ETH_IP6)],
        SEGMENT_FLAGS: [p.ip_frame(*ENDS4, p.TCP, tcp(3000, flags=flag | p.ACK)) for flag in (p.SYN, p.RST, p.URG)],
    }
    for reason, frames in cases.items():
        for one in frames:
            assert plan(one) == reason, (reason, len(one), one[:60].hex())
    assert segments(p.ethernet(p.ipv6(*ENDS6, p.ROUTING, p.routing(p.TCP, tcp(3000, ENDS6))), type=p.ETH_IP6)), "where it is, it ends"


def test_hostile_frames_keep_kernels_within_bounds() -> None:
    chosen = random.Random(3)
    n = 150 if PLAIN else 2000
    made = traffic.some(n, 5) + tunnel_traffic.some(n, 6) + traffic.every_cut(7, n=2) + tunnel_traffic.every_cut(2, 8)
    done = 0
    for frame in made:
        for udp in (0, 1):
            if plan(frame.data, udp) > 0:
                mss = chosen.choice((1, 2, 7, 1460))
                left = segments(frame.data, mss, udp=udp, at_end=chosen.random() < 0.5)
                found = plan(frame.data, udp)
                header_len, payload_len = segment.header_len_of(found), segment.payload_len_of(found)
                assert b"".join(one[header_len:] for one in left) == frame.data[header_len : header_len + payload_len]
                done += 1
    assert done > 20


CAPTURES = (
    "arkime/wireshark-bdat.pcap", "deepflow/agent/flow_generator/redis/redis.pcap", "ipfixprobe/functional/inputs/http.pcap",
    "ndpi/http_ipv6.pcap", "ndpi/resp.pcap", "ndpi/shadowsocks.pcap", "ndpi/thrift.pcap", "skydive/iperf-same-L2L3.pcap",
    "suricata-verify/ethernet-eve/test.pcap", "suricata-verify/file-match-crossed/http-multipart-post.pcap",
    "suricata-verify/mqtt-connect-rules/mqtt5_pub_jpeg.pcap", "suricata-verify/smb2-01/smb2-peter.pcap", "tcpdump/bigtcp-ipv6.pcap",
    "wireshark/http2_follow_multistream.pcapng", "zeek/ftp/bigtransfer.pcap", "zeek/krb/kerberos_tso.pcapng",
)  # fmt: skip


@corpus.needs_corpus
@pytest.mark.skipif(PLAIN, reason="tshark is asked of what compiled kernels do")
@pytest.mark.parametrize("name", CAPTURES)
def test_tshark_finds_the_stream_whole_and_every_checksum_right(name: str, tmp_path: Path) -> None:
    frames = [r.data for r in libpcap.read_ethernet(corpus.CORPUS / name, 1000) if len(r.data) > 1514 and plan(r.data) > 0]
    assert frames
    names = ("tcp.payload", "tcp.seq_raw", "ip.id", "tcp.options", "frame.len")
    before = wireshark.fields(frames, tmp_path, *names)
    for was, frame in zip(before, frames, strict=True):
        if was["tcp.payload"] == []:  # tshark goes by a length that is 0 here: it sees no TCP
            was["tcp.payload"] = [frame[segment.header_len_of(plan(frame)) :].hex()]
    all_left = [segments(frame) for frame in frames]
    after = iter(wireshark.fields([one for left in all_left for one in left], tmp_path, *names, *wireshark.CHECKSUMS))
    for was, left in zip(before, all_left, strict=True):
        rows = [next(after) for _ in left]
        assert "".join(row["tcp.payload"][0] for row in rows) == was["tcp.payload"][0]
        for i, row in enumerate(rows):
            assert set(statuses(row)) == {GOOD}
            assert int(row["frame.len"][0]) <= 1600
            if was["tcp.seq_raw"]:
                assert int(row["tcp.seq_raw"][0]) == (int(was["tcp.seq_raw"][0]) + MSS * i) % 2**32
                assert row["tcp.options"] == was["tcp.options"]
            if was["ip.id"]:
                assert int(row["ip.id"][0], 16) == (int(was["ip.id"][0], 16) + i) % 2**16


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_kernels_do_the_same_within_bounds() -> None:
    run_plain(__file__)
