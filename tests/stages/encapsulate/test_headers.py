"""Outer headers, byte for byte, against packets built by hand (tests/packets.py); also compiled against plain, bounds-checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core import layout
from broker.core.model import Tool, Tunnel
from stages import memory
from stages.encapsulate.checksum import sum_words
from stages.encapsulate.stage import Encapsulate
from stages.encapsulate.templates import make_templates
from stages.jit import PLAIN
from tests import packets as by_hand
from tests.again import run_plain
from tests.stages.delivery import Surroundings, allow_batch, allow_encapsulate, fill, frames, generation, gre_tool, new_batch, payload

ENDS = {4: ("198.51.100.7", "192.0.2.9"), 6: ("2001:db8::7", "2001:db8:1::9")}
LENGTHS = (0, 1, 2, 3, 14, 31, 32, 33, 59, 60, 61, 64, 127, 1513, 1514)

OPTIONS = [
    {"key": key, "sequence": sequence, "checksum": checksum}
    for key, sequence, checksum in itertools.product((None, 0, 0xFFFF_FFFF), (False, True), (False, True))
]
EVERY_TUNNEL = [
    (version, kind, in_file, options)
    for version, kind, in_file, options in itertools.product((4, 6), ("gre", "gre-udp"), (False, True), OPTIONS)
]


def expected(version: int, kind: str, in_file: bool, options: dict, window: bytes, number: int, flow: int) -> bytes:
    """The whole outer packet. Over IPv4 there is no UDP checksum; on sockets it is the kernel's to write: zero here."""
    source, remote = ENDS[version]
    inside = by_hand.gre(
        window, key=options["key"], sequence=number & 0xFFFF_FFFF if options["sequence"] else None, with_checksum=options["checksum"]
    )
    protocol = by_hand.GRE
    if kind == "gre-udp":
        protocol = by_hand.UDP
        inside = by_hand.udp(49_152 + flow % 16_384, 4754, inside, ends=(source, remote) if in_file and version == 6 else None)
    if version == 4:
        return by_hand.ipv4(source, remote, protocol, inside, ttl=33, tos=46 << 2, identification=number & 0xFFFF)
    return by_hand.ipv6(source, remote, protocol, inside, hop_limit=33, traffic_class=46 << 2)


@pytest.fixture(autouse=True)
def _no_regions_left() -> Iterator[None]:
    yield
    memory.forbid_all()


def opened(tools: list[Tool], surroundings: Surroundings) -> Encapsulate:
    stage = Encapsulate()
    stage.open(surroundings.context)
    stage.load(generation(*tools))
    allow_encapsulate(stage, surroundings)
    return stage


def test_every_combination_of_tunnel_options_and_odd_lengths_is_what_the_rfcs_say() -> None:
    windows = [payload(n, seed=n) for n in LENGTHS]
    flows = [0xFFFF_FFFF - 5 * i for i in range(len(windows))]
    for group in (EVERY_TUNNEL[at : at + 16] for at in range(0, len(EVERY_TUNNEL), 16)):
        surroundings = Surroundings()
        surroundings.sequences[:] = 0xFFFF_FFF8  # both wrap on the way: 32 bits of GRE, 16 of IPv4
        tools = [
            gre_tool(slot, kind, ENDS[version][1], "x" if in_file else "", source=ENDS[version][0], ttl=33, dscp=46, **options)
            for slot, (version, kind, in_file, options) in enumerate(group)
        ]
        batch = new_batch()
        fill(batch, windows, (1 << len(group)) - 1, flows=flows)
        allow_batch(batch)
        assert opened(tools, surroundings).step(batch) == len(windows)
        got = frames(batch)
        assert [(p, t) for p, t, _, _ in got] == [(p, t) for p in range(len(windows)) for t in range(len(group))]
        for packet, tool, header, window in got:
            version, kind, in_file, options = group[tool]
            number = 0xFFFF_FFF8 + packet
            whole = expected(version, kind, in_file, options, windows[packet], number, flows[packet])
            assert header + window == whole, (group[tool], len(window))


def test_udp_keeps_a_configured_source_port_and_the_port_of_the_tunnel() -> None:
    batch, surroundings = new_batch(), Surroundings()
    fill(batch, [payload(60)])
    allow_batch(batch)
    opened([gre_tool(kind="gre-udp", source_port=5000, port=6000)], surroundings).step(batch)
    ((_, _, header, _),) = frames(batch)
    assert header[20:24] == b"\x13\x88\x17\x70"


def test_a_udp_checksum_that_comes_out_as_zero_is_sent_as_all_ones() -> None:
    """RFC 768: zero would mean that there is none. The window is chosen so that the sum is 0xFFFF."""
    source, remote = ENDS[6]
    window = bytearray(60)
    plain = by_hand.udp(49_152, 4754, by_hand.gre(bytes(window)))
    rest = by_hand.checksum(by_hand.pseudo_header((source, remote), by_hand.UDP, len(plain)) + plain)
    window[:2] = rest.to_bytes(2, "big")
    batch, surroundings = new_batch(), Surroundings()
    fill(batch, [bytes(window)], flows=[0])
    allow_batch(batch)
    opened([gre_tool(kind="gre-udp", remote=remote, source=source, file="x")], surroundings).step(batch)
    ((_, _, header, _),) = frames(batch)
    assert header[46:48] == b"\xff\xff"


def test_a_bare_file_tool_gets_frames_without_a_header() -> None:
    batch, surroundings = new_batch(), Surroundings()
    fill(batch, [payload(60), payload(61)])
    allow_batch(batch)
    opened([Tool("file", 0, None, "out.pcap")], surroundings).step(batch)
    assert [(header, window) for _, _, header, window in frames(batch)] == [(b"", payload(60)), (b"", payload(61))]
    assert int(batch.block["headers_used"][0]) == 0


def test_flows_share_sockets_and_tools_share_files() -> None:
    batch, surroundings = new_batch(), Surroundings()
    fill(batch, [payload(60)] * 3, 0b111, flows=[11, 22, 33])
    allow_batch(batch)
    opened([gre_tool(0), gre_tool(1, file="x"), Tool("file", 2, None, "y")], surroundings).step(batch)
    rows = batch.frames[:9]
    assert rows["share"].tolist() == [11, 1, 2, 22, 1, 2, 33, 1, 2]


def test_the_source_is_what_the_route_says_and_unspecified_in_files() -> None:
    tools = [gre_tool(0, remote="127.0.0.5"), gre_tool(1, remote="127.0.0.5", file="x"), gre_tool(2, remote="2001:db8::1", file="x")]
    headers = make_templates(tools)["header"]
    assert headers[0, 12:16].tobytes() == b"\x7f\0\0\x01"
    assert headers[1, 12:16].tobytes() == bytes(4)
    assert headers[2, 8:24].tobytes() == bytes(16)


@pytest.mark.parametrize("kind", ["gre", "gre-udp"])
def test_scapy_finds_every_checksum_right(kind: str) -> None:
    scapy = pytest.importorskip("scapy.layers.l2", reason="scapy is not installed")
    inet = pytest.importorskip("scapy.layers.inet", reason="scapy is not installed")
    batch, surroundings = new_batch(), Surroundings()
    windows = [by_hand.tcp_frame("10.0.0.1", 1000 + n, "10.0.0.2", 443, payload(n)) for n in range(40)]
    fill(batch, windows)
    allow_batch(batch)
    tunnel = Tunnel(kind, "192.0.2.9", "198.51.100.7", key=9, sequence=True, checksum=True)  # type: ignore[arg-type]
    opened([Tool("t", 0, tunnel, "x")], surroundings).step(batch)
    for n, (_, _, header, window) in enumerate(frames(batch)):
        packet = inet.IP(header + window)
        if kind == "gre-udp":
            packet[inet.UDP].payload = scapy.GRE(bytes(packet[inet.UDP].payload))
        gre = packet[scapy.GRE]
        assert (gre.proto, gre.key, gre.sequence_number, bytes(gre.payload)) == (0x6558, 9, n, windows[n])
        for layer in (inet.IP, scapy.GRE):
            del packet[layer].chksum  # scapy computes what is missing
        assert bytes(packet) == header + window


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 7))
def test_sums_equal_the_slow_checksum_at_any_length_and_alignment(data: bytes, skip: int) -> None:
    memory.forbid_all()
    array = np.frombuffer(bytes(skip) + data, np.uint8)
    memory.allow(int(array.ctypes.data), array.nbytes)
    assert ~sum_words(int(array.ctypes.data) + skip, len(data)) & 0xFFFF == by_hand.checksum(data)


def test_sums_of_the_largest_frames_of_ones_do_not_overflow() -> None:
    ones = np.full(layout.MAX_FRAME_BYTES, 0xFF, np.uint8)
    memory.allow(int(ones.ctypes.data), ones.nbytes)
    assert sum_words(int(ones.ctypes.data), ones.nbytes) == 0xFFFF


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_python_writes_the_same_and_stays_within_bounds() -> None:
    """These tests and those of the frames once more, uncompiled: each access must lie in memory that the stage may touch."""
    run_plain(__file__, Path(__file__).with_name("test_frames.py"))
