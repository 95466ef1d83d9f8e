"""Masks and segments through the real processes: tshark finds the streams that went in, and every checksum right."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import packets as p
from tests.cli.tapmesh import tapmesh
from tests.stages.encapsulate.test_cards import EXAMPLES, expected
from tests.stages.encapsulate.wireshark import CHECKSUMS, GOOD

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")

MTU = 1500
CONFIG = """
inputs: {span: {kind: pcap, file: /dev/null}}
tools:
  cards: {kind: pcap, file: cards.pcap, mask: cards}
  cut: {tunnel: {kind: gre, remote: 192.0.2.9, source: 192.0.2.1, checksum: true}, super_frames: segment}
  cut6: {tunnel: {kind: vxlan, remote: "2001:db8::9", source: "2001:db8::1"}, super_frames: segment}
  both: {kind: pcap, file: both.pcap, mask: cards, super_frames: segment}
maps:
  - {name: everything, rules: [{pass: ""}], to: [cards, cut, cut6, both]}
"""
ENDS = (
    (("10.0.0.1", "10.0.0.2"), ()), (("10.0.0.3", "10.0.0.2"), (30,)), (("2001:db8::a", "2001:db8::b"), ()),
    (("2001:db8::c", "2001:db8::b"), (30, 40)),
)  # fmt: skip
"""Of the streams: addresses, and tags of their frames."""


def text(chosen: random.Random, n_bytes: int) -> bytes:
    """Words, numbers of cards written in three ways, and numbers that are none."""
    parts: list[str] = []
    while sum(map(len, parts)) < n_bytes:
        number = chosen.choice(EXAMPLES)
        grouped = [number[at : at + 4] for at in range(0, len(number), 4)]
        parts.append(f"{chosen.choice(('', ' ', '-')).join(grouped)};")
        parts.append(f"order {chosen.randrange(10**16):016}, total {chosen.randrange(1000)}; " * chosen.randrange(3))
        parts.append("lorem ipsum " * chosen.randrange(60))
    return "".join(parts).encode()[:n_bytes]


def traffic() -> tuple[list[bytes], list[list[bytes]]]:
    """Frames, most of them longer than any link takes, and for each stream the payloads of its frames."""
    chosen = random.Random(7)
    frames: list[bytes] = []
    streams: list[list[bytes]] = [[] for _ in ENDS]
    seqs = [0xFFFF_0000, 1, 2, 0x7FFF_FFF0]
    for turn in range(40):
        at = turn % len(ENDS)
        (source, destination), vlans = ENDS[at]
        payload = text(chosen, chosen.choice((0, 1, 700, 1461, 5000, 20_000, 64_000)))
        segment = p.tcp(4000, 5999, payload, flags=p.ACK | p.PSH, seq=seqs[at], ack=1, ends=(source, destination))
        frames.append(p.ip_frame(source, destination, p.TCP, segment, vlans=vlans))
        seqs[at] = (seqs[at] + len(payload)) % 2**32
        streams[at].append(payload)
    return frames, streams


def seen_by_tshark(path: Path) -> Iterator[tuple[int, int, bytes, int]]:
    """(stream, sequence number, payload, length of the innermost IP packet) of each TCP packet, all of whose checksums are right."""
    names = ("tcp.stream", "tcp.seq_raw", "tcp.payload", "ip.len", "ipv6.plen", *CHECKSUMS, "gre.checksum.status")
    options = ("ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "udp.check_checksum:TRUE", "tcp.desegment_tcp_streams:FALSE")
    command = ["tshark", "-n", "-r", str(path), *(word for option in options for word in ("-o", option)), "-T", "fields"]
    command += ["-E", "aggregator=;", *(word for name in names for word in ("-e", name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        stream, seq, payload, *more = line.split("\t")
        lengths = [[int(part) + extra for part in value.split(";") if part] for value, extra in zip(more, (0, 40), strict=False)]
        statuses = [status for value in more[2:] for status in value.split(";") if status]
        assert set(statuses) == {GOOD}, line[:200]
        yield int(stream), int(seq), bytes.fromhex(payload), min(lengths[0][-1:] + lengths[1][-1:])


def joined(path: Path, *, segmented: bool) -> list[bytes]:
    """The bytes of each stream, none missing and none twice."""
    streams: list[bytes] = [b""] * len(ENDS)
    ahead: dict[int, int] = {}
    longest = 0
    for stream, seq, payload, length in seen_by_tshark(path):
        assert ahead.get(stream, seq) == seq
        ahead[stream] = (seq + len(payload)) % 2**32
        streams[stream] += payload
        longest = max(longest, length)
    assert (longest == MTU) if segmented else (longest > 60_000)
    return streams


def test_streams_of_super_frames_leave_masked_and_in_segments(tmp_path: Path) -> None:
    frames, streams = traffic()
    (tmp_path / "in.pcap").write_bytes(p.pcap(frames))
    (tmp_path / "config.yaml").write_text(CONFIG)
    out = tmp_path / "out"
    done = tapmesh("replay", tmp_path / "in.pcap", "--config", tmp_path / "config.yaml", "--out", out)
    assert done.returncode == 0, done.stderr
    plain = [b"".join(payloads) for payloads in streams]
    masked = [b"".join(expected(payload, 4)[0] for payload in payloads) for payloads in streams]
    assert sum(map(len, plain)) > 300_000
    assert all(stream.count(b"*") > 100 for stream in masked)
    assert joined(out / "cards.pcap", segmented=False) == masked
    assert joined(out / "cut.pcap", segmented=True) == plain
    assert joined(out / "cut6.pcap", segmented=True) == plain
    assert joined(out / "both.pcap", segmented=True) == masked
