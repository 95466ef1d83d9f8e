"""No byte that is to be masked leaves, in a million frames cut anywhere; headers stay; checksums are right afterwards."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from stages import memory
from stages.encapsulate.masks import (
    FIXED_IP,
    FIXED_L4,
    FROM_FRAME,
    FROM_L3,
    FROM_L4,
    FROM_PAYLOAD,
    fix_checksums,
    mask_payload,
    mask_range,
    payload_start,
)
from stages.jit import PLAIN
from tests import corpus, libpcap
from tests import packets as p
from tests.again import run_plain
from tests.stages.encapsulate import wireshark
from tests.stages.encapsulate.guarded import Guarded, read
from tests.stages.filter import traffic, tunnel_traffic

IN = Guarded()
FILL = 0x58
SECRET = 0xA5
"""No header has this byte, and all of the payloads that must not leave are made of it."""
ENDS4, ENDS6 = ("10.0.0.1", "10.0.0.2"), ("fe80::1", "fe80::2")


def masked(frame: bytes, *, at_end: bool = True) -> bytes:
    memory.forbid_all()
    at = IN.put(frame, at_end=at_end)
    n_behind = len(frame) - payload_start(at, len(frame))
    assert mask_payload(at, len(frame), FILL) == n_behind
    return read(at, len(frame))


def shapes(secret: bytes) -> list[tuple[bytes, int]]:
    """(frame, bytes of it that may leave)."""
    found: list[tuple[bytes, int]] = []

    def whole(packet: bytes, ip6: bool) -> None:
        for tags in range(5):
            frame = p.ethernet(packet, type=p.ETH_IP6 if ip6 else p.ETH_IP, vlans=(7,) * tags)
            found.append((frame, len(frame) - len(secret)))

    for options in (b"", b"\1" * 40):
        tcp, udp = p.tcp(1, 2, secret, options=options), p.udp(1, 2, secret)
        icmp = b"\x08\0\0\0\0\1\0\1" + secret
        sctp = b"\0\1\0\2" + bytes(8) + secret
        for protocol, segment in ((p.TCP, tcp), (p.UDP, udp), (p.ICMP, icmp), (p.SCTP, sctp), (p.GRE, secret), (p.ESP, secret)):
            whole(p.ipv4(*ENDS4, protocol, segment, options=options), False)
        for protocol, segment in ((p.TCP, tcp), (p.UDP, udp), (p.ICMP6, icmp), (p.NONE, secret)):
            whole(p.ipv6(*ENDS6, protocol, segment), True)
            if protocol != p.NONE:
                whole(p.ipv6(*ENDS6, p.HOPOPTS, p.hop_by_hop(protocol, segment)), True)
                whole(p.ipv6(*ENDS6, p.FRAGMENT, p.fragment_header(protocol, segment, more=True)), True)
        whole(p.ipv4(*ENDS4, p.TCP, tcp, more_fragments=True, options=options), False)
    whole(p.ipv4(*ENDS4, p.TCP, secret, offset=64), False)
    whole(p.ipv4(*ENDS4, p.UDP, secret, offset=8, more_fragments=True), False)
    whole(p.ipv6(*ENDS6, p.FRAGMENT, p.fragment_header(p.TCP, secret, offset=64)), True)
    found[-5:] = [(frame, n - 8) for frame, n in found[-5:]]  # the fragment header goes, too
    found += [(p.ethernet(secret, type=type_), 14) for type_ in (p.ETH_ARP, 0x88CC, 46)]
    label = b"\0\1\1\x40"
    for packet, header_len in ((p.ipv4(*ENDS4, p.UDP, p.udp(1, 2, secret)), 28), (p.ipv6(*ENDS6, p.UDP, p.udp(1, 2, secret)), 48)):
        found.append((p.ethernet(label + packet, type=p.ETH_MPLS), 18 + header_len))
    found.append((p.ethernet(label + b"\x10" + secret[1:], type=p.ETH_MPLS), 14))  # no telling what it is
    assert all(SECRET not in frame[:n] for frame, n in found)
    return found


def test_headers_stay_and_everything_behind_them_goes() -> None:
    for frame, n in shapes(bytes([SECRET]) * 50):
        for padding in (0, 9):
            whole = frame + bytes([SECRET]) * padding
            assert masked(whole) == frame[:n] + bytes([FILL]) * (50 + len(frame) - 50 - n + padding), frame.hex()


@pytest.mark.skipif(PLAIN, reason="a million frames are for compiled kernels")
def test_of_a_million_frames_cut_anywhere_no_masked_byte_leaves() -> None:
    secret = bytes([SECRET]) * 90
    made = [frame for frame, _ in shapes(secret)]
    width, chunk = max(map(len, made)) + 8, 50_000
    templates = np.full((len(made), width), SECRET, np.uint8)
    for row, frame in zip(templates, made, strict=True):
        row[: len(frame)] = np.frombuffer(frame, np.uint8)
    whole = np.array([len(frame) for frame in made])
    chosen = np.random.default_rng(4)
    done = n_masked = 0
    while done < 1_000_000:
        kind = chosen.integers(0, len(made), chunk)
        rows = templates[kind]
        lengths = np.where(chosen.random(chunk) < 0.5, whole[kind], chosen.integers(0, whole[kind] + 9)).astype(np.int64)
        at = int(rows.ctypes.data)
        for i, length in enumerate(lengths.tolist()):
            mask_payload(at + i * width, length, FILL)
        within = np.arange(width) < lengths[:, None]
        assert not ((rows == SECRET) & within).any()
        assert (rows == templates[kind])[~within].all(), "nothing behind the frame is touched"
        n_masked += int(((rows == FILL) & within).sum())
        done += chunk
    assert n_masked > 30_000_000


def test_headers_that_are_not_to_be_believed_do_not_shield_what_is_behind_them() -> None:
    secret = bytes([SECRET]) * 40
    segment = bytearray(p.tcp(1, 2, secret))
    for damaged, n in (
        (p.ipv4(*ENDS4, p.TCP, p.tcp(1, 2, secret), header_words=4), 34),
        (p.ipv4(*ENDS4, p.TCP, b"", header_words=15, total_len=20) + secret, 34),
        (b"\x65" + p.ipv4(*ENDS4, p.UDP, p.udp(1, 2, secret))[1:], 14),
        (p.ipv4(*ENDS4, p.TCP, bytes(segment[:12]) + b"\xf0" + bytes(segment[13:30])), 34),
        (p.ipv4(*ENDS4, p.TCP, bytes(segment[:12]) + b"\x40" + bytes(segment[13:])), 34),
    ):
        assert masked(p.ethernet(damaged))[n:] == bytes([FILL]) * (len(damaged) + 14 - n)


def mask_at(frame: bytes, base: int, offset: int, n_bytes: int) -> tuple[bytes, int]:
    memory.forbid_all()
    at = IN.put(frame)
    n = mask_range(at, len(frame), base, offset, n_bytes, FILL)
    return read(at, len(frame)), n


def test_a_range_counts_from_where_it_is_told() -> None:
    frame = p.tcp_frame(*ENDS4[:1], 1, ENDS4[1], 2, bytes(range(100, 140)), vlans=(1, 2))
    for base, at in ((FROM_FRAME, 0), (FROM_L3, 22), (FROM_L4, 42), (FROM_PAYLOAD, 62)):
        for offset, n_bytes in ((0, 4), (3, 9), (0, 0), (10, 1 << 20), (1 << 20, 5), (38, 5)):
            first, last = min(at + offset, len(frame)), min(at + offset + n_bytes, len(frame))
            expected = frame[:first] + bytes([FILL]) * (last - first) + frame[last:]
            assert mask_at(frame, base, offset, n_bytes) == (expected, last - first)


def test_a_range_whose_base_is_not_there_masks_all_of_the_payload() -> None:
    later = p.ethernet(p.ipv4(*ENDS4, p.TCP, bytes(range(40)), offset=64))
    assert mask_at(later, FROM_L4, 30, 2) == (later[:34] + bytes([FILL]) * 40, 40)
    assert mask_at(later, FROM_PAYLOAD, 30, 2) == (later[:34] + bytes([FILL]) * 40, 40)
    assert mask_at(later, FROM_L3, 30, 2) == (later[:44] + bytes([FILL]) * 2 + later[46:], 2)
    arp = p.ethernet(p.arp(1, (p.MAC_A, "10.0.0.1"), (p.MAC_B, "10.0.0.2")), type=p.ETH_ARP)
    assert mask_at(arp, FROM_L4, 0, 1) == (arp[:14] + bytes([FILL]) * 28, 28)
    cut = p.ethernet(bytes(40), vlans=(1,))[:17]
    assert mask_at(cut, FROM_L3, 0, 1) == (cut[:14] + bytes([FILL]) * 3, 3)
    gre = p.ip_frame(*ENDS4, p.GRE, bytes(40))
    assert mask_at(gre, FROM_L4, 1, 2) == (gre[:35] + bytes([FILL]) * 2 + gre[37:], 2), "any transport has a beginning"
    assert mask_at(gre, FROM_PAYLOAD, 1, 2) == (gre[:34] + bytes([FILL]) * 40, 40), "but not a payload that we know"


def fixed(frame: bytes) -> tuple[bytes, int]:
    memory.forbid_all()
    at = IN.put(frame)
    n = fix_checksums(at, len(frame))
    return read(at, len(frame)), n


def with_checksums(secret: bytes, right: bool) -> list[bytes]:
    """The same packets with right checksums, or with some wrong ones."""
    four, six = (ENDS4, ENDS6) if right else (None, None)
    check = None if right else 0xBAD
    icmp, icmp6 = p.icmp(payload=secret), p.icmp6(ENDS6, payload=secret)
    if not right:
        icmp, icmp6 = (packet[:2] + b"\x12\x34" + packet[4:] for packet in (icmp, icmp6))
    wrong_udp = [p.udp(1, 2, secret, ends=ends) if right else p.udp(1, 2, secret)[:6] + b"\1\1" + secret for ends in (ENDS4, ENDS6)]
    segments = ((p.TCP, p.tcp(1, 2, secret, ends=four)), (p.UDP, wrong_udp[0]), (p.ICMP, icmp))
    segments6 = ((p.TCP, p.tcp(1, 2, secret, ends=six)), (p.UDP, wrong_udp[1]), (p.ICMP6, icmp6))
    found = [p.ethernet(p.ipv4(*ENDS4, kind, segment, options=b"\1\1\1\1", header_checksum=check)) for kind, segment in segments]
    found += [p.ethernet(p.ipv6(*ENDS6, p.HOPOPTS, p.hop_by_hop(*one)), type=p.ETH_IP6, vlans=(3,)) for one in segments6]
    return found


@pytest.mark.parametrize("n", [0, 1, 7, 1400])
def test_checksums_are_right_afterwards_whatever_they_were(n: int) -> None:
    for frame, expected in zip(
        with_checksums(bytes(range(7)) * (n // 7), False), with_checksums(bytes(range(7)) * (n // 7), True), strict=True
    ):
        after, what = fixed(frame + bytes(5))
        assert after == expected + bytes(5)
        assert what == FIXED_L4 | (FIXED_IP if frame[12:14] == b"\x08\0" else 0)


def test_what_cannot_be_known_keeps_its_checksum() -> None:
    none = p.ip_frame(*ENDS4, p.UDP, p.udp(1, 2, b"abc"))
    assert fixed(none) == (none, FIXED_IP)
    wrong = p.tcp(1, 2, bytes(40))[:16] + b"\x12\x34" + bytes(42)
    for packet, what in (
        (p.ipv4(*ENDS4, p.TCP, wrong, more_fragments=True), FIXED_IP),
        (p.ipv4(*ENDS4, p.TCP, wrong, offset=8), FIXED_IP),
        (p.ipv4(*ENDS4, p.TCP, wrong, total_len=200), FIXED_IP),
        (p.ipv4(*ENDS4, p.UDP, p.udp(1, 2, bytes(40), length=4)), FIXED_IP),
        (p.ipv4(*ENDS4, p.SCTP, p.sctp(1, 2)), FIXED_IP),
        (p.ipv4(*ENDS4, p.TCP, wrong, header_words=4), 0),
    ):
        assert fixed(p.ethernet(packet)) == (p.ethernet(packet), what)
    for next_header, packet in (
        (p.ROUTING, p.routing(p.TCP, wrong, segments_left=1)),
        (p.FRAGMENT, p.fragment_header(p.TCP, wrong, more=True)),
    ):
        frame = p.ethernet(p.ipv6(*ENDS6, next_header, packet), type=p.ETH_IP6)
        assert fixed(frame) == (frame, 0)
    arrived = p.ipv6(*ENDS6, p.ROUTING, p.routing(p.TCP, wrong))
    expected = p.ipv6(*ENDS6, p.ROUTING, p.routing(p.TCP, p.tcp(1, 2, bytes(40), ends=ENDS6)))
    assert fixed(p.ethernet(arrived, type=p.ETH_IP6)) == (p.ethernet(expected, type=p.ETH_IP6), FIXED_L4)


def test_hostile_frames_keep_kernels_within_bounds_and_are_masked_to_their_end() -> None:
    chosen = random.Random(3)
    n = 150 if PLAIN else 2000
    made = traffic.some(n, 5) + tunnel_traffic.some(n, 6) + traffic.every_cut(7, n=2) + tunnel_traffic.every_cut(2, 8)
    for frame in made:
        after = masked(frame.data, at_end=chosen.random() < 0.5)
        at = IN.put(frame.data)
        first = payload_start(at, len(frame.data))
        assert 0 <= first <= len(frame.data)
        assert after == frame.data[:first] + bytes([FILL]) * (len(after) - first)
        base = chosen.randrange(4)
        left, n_bytes = mask_at(frame.data, base, chosen.randrange(60), chosen.randrange(60))
        assert sum(a != b for a, b in zip(left, frame.data, strict=True)) <= n_bytes
        fixed(frame.data)


CAPTURES = ("arkime/arkime_synthetic.pcap", "ndpi/http_ipv6.pcap", "ndpi/dns_dot.pcap", "suricata-verify/ethernet-eve/test.pcap")


@corpus.needs_corpus
@pytest.mark.skipif(PLAIN, reason="tshark is asked of what compiled kernels do")
@pytest.mark.parametrize("name", CAPTURES)
def test_tshark_finds_masked_packets_of_captures_in_order(name: str, tmp_path: Path) -> None:
    """What was whole before has right checksums afterwards, and a payload of nothing but the mask."""
    frames = [r.data for r in libpcap.read_ethernet(corpus.CORPUS / name, 500) if r.wirelen == len(r.data)]
    left, whats = [], []
    for frame in frames:
        after, what = fixed(masked(frame))
        left.append(after)
        whats.append(what)
    assert sum(what & FIXED_L4 for what in whats) > len(frames) // 2
    rows = wireshark.fields(left, tmp_path, "tcp.payload", "udp.payload", *wireshark.CHECKSUMS)
    for row, what in zip(rows, whats, strict=True):
        if what & FIXED_L4:
            statuses = wireshark.statuses(row)
            assert statuses
            assert set(statuses) <= {wireshark.GOOD, "3"}, "3: there is none"
            for payload in (*row["tcp.payload"], *row["udp.payload"]):
                assert set(bytes.fromhex(payload)) <= {FILL}


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_kernels_do_the_same_within_bounds() -> None:
    run_plain(__file__)
