"""Every tunnel that is not plain GRE, byte for byte against headers built by hand, over IPv4 and IPv6."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from broker.config.lanes import HEADER_BYTES
from broker.core import layout
from broker.core.model import Tool
from stages import memory
from stages.encapsulate.templates import HEADER_ROOM, make_templates
from stages.jit import PLAIN
from tests import packets as by_hand
from tests.again import run_plain
from tests.stages.delivery import NOON_NS, Surroundings, allow_batch, fill, frames, gre_tool, new_batch, payload
from tests.stages.encapsulate.test_headers import ENDS, opened


@dataclass(frozen=True)
class Seen:
    """What the expected header is made from."""

    window: bytes
    number: int
    flow: int
    ts_ns: int
    truncated: bool


Expected = Callable[[Seen], bytes]

UNTAGGED = by_hand.tcp_frame("10.0.0.1", 1000, "10.0.0.2", 443, payload(77))
TAGGED = by_hand.tcp_frame("2001:db8::1", 1000, "2001:db8::2", 443, payload(31), vlans=(5 << 13 | 1 << 12 | 0xABC, 7))


def erspan2(**options: Any) -> Expected:
    return lambda seen: by_hand.erspan2(seen.window, sequence=seen.number & 0xFFFF_FFFF, truncated=seen.truncated, **options)


def tag(seen: Seen) -> dict[str, int]:
    """What the frame's outer tag says."""
    return {"vlan": 0xABC, "cos": 5} if seen.window == TAGGED else {}


def erspan3(subheader: Callable[[Seen], bytes] = lambda _: b"", *, tick: Callable[[int], int], **options: Any) -> Expected:
    return lambda seen: by_hand.erspan3(
        seen.window,
        sequence=seen.number & 0xFFFF_FFFF,
        truncated=seen.truncated,
        timestamp=tick(seen.ts_ns),
        subheader=subheader(seen),
        **{**tag(seen), **options},
    )


def ip_of(seen: Seen) -> tuple[bytes, int]:
    return (seen.window[14:], by_hand.ETH_IP) if seen.window == UNTAGGED else (seen.window[22:], by_hand.ETH_IP6)


CASES: list[tuple[str, dict[str, Any], Expected]] = [
    ("nvgre", {"vsid": 0xFFFFFF}, lambda seen: by_hand.nvgre(seen.window, subnet=0xFFFFFF, flow=seen.flow & 0xFF)),
    ("nvgre", {"vsid": 5000, "flow_id": 0x81}, lambda seen: by_hand.nvgre(seen.window, subnet=5000, flow=0x81)),
    ("nvgre", {"flow_id": 0}, lambda seen: by_hand.nvgre(seen.window, subnet=0, flow=0)),
    ("gre-ip", {}, lambda seen: by_hand.gre(ip_of(seen)[0], protocol=ip_of(seen)[1])),
    (
        "gre-ip",
        {"key": 0xFFFF_FFFF, "sequence": True, "checksum": True},
        lambda seen: by_hand.gre(
            ip_of(seen)[0], protocol=ip_of(seen)[1], key=0xFFFF_FFFF, sequence=seen.number & 0xFFFF_FFFF, with_checksum=True
        ),
    ),
    ("erspan1", {}, lambda seen: by_hand.gre(seen.window, protocol=0x88BE)),
    ("erspan2", {}, lambda seen: erspan2(session=0, encapsulation=3 if tag(seen) else 0, **tag(seen))(seen)),
    (
        "erspan2",
        {"session": 1023, "vlan": 4095, "cos": 7, "encapsulation": 3, "index": 0xFFFFF},
        erspan2(session=1023, vlan=4095, cos=7, encapsulation=3, index=0xFFFFF),
    ),
    ("erspan2", {"session": 1, "vlan": 0, "cos": 0, "encapsulation": 0, "index": 1}, erspan2(session=1, index=1)),
    (
        "erspan2",
        {"session": 1, "vlan": 9},
        lambda seen: erspan2(**{"session": 1, "encapsulation": 3 if tag(seen) else 0, **tag(seen), "vlan": 9})(seen),
    ),
    ("erspan3", {"session": 7}, erspan3(session=7, granularity=1, tick=lambda ts: ts // 100)),
    (
        "erspan3",
        {"session": 1023, "granularity": "100us", "hw_id": 63, "direction": "egress", "vlan": 1, "cos": 2},
        erspan3(session=1023, granularity=0, hw_id=63, egress=True, vlan=1, cos=2, tick=lambda ts: ts // 100_000),
    ),
    (
        "erspan3",
        {"subheader": True, "index": 0x3FFF},
        erspan3(
            lambda seen: struct.pack("!II", 3 << 26 | 0x3FFF, seen.ts_ns // 100 >> 32 & 0xFFFF_FFFF),
            session=0,
            granularity=1,
            tick=lambda ts: ts // 100,
        ),
    ),
    (
        "erspan3",
        {"subheader": True, "index": 0xFFFF, "granularity": "ieee1588"},
        erspan3(
            lambda seen: struct.pack("!II", 5 << 26 | 0xFFFF, seen.ts_ns // 10**9 & 0xFFFF_FFFF),
            session=0,
            granularity=2,
            tick=lambda ts: ts % 10**9,
        ),
    ),
    ("vxlan", {"vni": 0xFFFFFF}, lambda seen: by_hand.vxlan(seen.window, vni=0xFFFFFF)),
    ("geneve", {"vni": 0xFFFFFF}, lambda seen: by_hand.geneve(seen.window, vni=0xFFFFFF)),
    ("geneve", {"generation": True}, lambda seen: by_hand.geneve(seen.window, vni=0, options=struct.pack("!HBBI", 0xFF54, 1, 1, 1))),
]
PORTS = {"vxlan": 4789, "geneve": 6081}


@pytest.fixture(autouse=True)
def _no_regions_left() -> Iterator[None]:
    yield
    memory.forbid_all()


def outer(version: int, kind: str, options: dict[str, Any], inside: bytes, seen: Seen, *, in_file: bool) -> bytes:
    ends = ENDS[version]
    protocol = by_hand.GRE
    if kind in PORTS:
        protocol = by_hand.UDP
        port = options.get("source_port", 49_152 + seen.flow % 16_384)
        summed = in_file if version == 6 else options.get("udp_checksum", False)
        inside = by_hand.udp(port, options.get("port", PORTS[kind]), inside, ends=ends if summed else None)
    if version == 6:
        return by_hand.ipv6(*ends, protocol, inside, hop_limit=options.get("ttl", 64), traffic_class=options.get("dscp", 0) << 2)
    return by_hand.ipv4(
        *ends,
        protocol,
        inside,
        ttl=options.get("ttl", 64),
        tos=options.get("dscp", 0) << 2,
        identification=seen.number & 0xFFFF,
        dont_fragment=options.get("df", False),
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("in_file", [False, True], ids=["socket", "file"])
@pytest.mark.parametrize("common", [{}, {"ttl": 1, "dscp": 63, "df": True}], ids=["plain", "options"])
def test_every_tunnel_is_what_its_specification_says(version: int, in_file: bool, common: dict[str, Any]) -> None:
    tools = [
        gre_tool(slot, kind, ENDS[version][1], "x" if in_file else "", source=ENDS[version][0], **options, **common)
        for slot, (kind, options, _) in enumerate(CASES)
    ]
    packets = [UNTAGGED, TAGGED, UNTAGGED, TAGGED]
    flows = [0, 1, 0xFFFF_FFFF, 0x1234_5678]
    times = [0, NOON_NS, 2**62 + 5, -1]
    wirelens = [len(UNTAGGED), len(TAGGED), 9000, len(TAGGED) + 1]
    batch, surroundings = new_batch(), Surroundings()
    surroundings.sequences[:] = 0xFFFF_FFFE
    fill(batch, packets, (1 << len(tools)) - 1, flows=flows, times=times, wirelens=wirelens)
    allow_batch(batch)
    opened(tools, surroundings).step(batch)
    got = frames(batch)
    assert [(p, t) for p, t, _, _ in got] == [(p, t) for p in range(4) for t in range(len(tools))]
    for p, t, header, window in got:
        kind, options, expected = CASES[t]
        seen = Seen(packets[p], 0xFFFF_FFFE + p, flows[p], times[p], wirelens[p] > len(packets[p]))
        want = outer(version, kind, {**options, **common}, expected(seen), seen, in_file=in_file)
        assert header + window == want, (CASES[t][:2], p)


@pytest.mark.parametrize("kind", ["vxlan", "geneve", "gre-udp"])
@pytest.mark.parametrize("version", [4, 6])
def test_ports_are_the_configured_ones_and_a_checksum_is_there_if_asked(kind: str, version: int) -> None:
    options = {"port": 9999, "source_port": 1234, "udp_checksum": True}
    tool = gre_tool(0, kind, ENDS[version][1], "x", source=ENDS[version][0], **options)
    inside = {"vxlan": by_hand.vxlan(UNTAGGED, vni=0), "geneve": by_hand.geneve(UNTAGGED, vni=0), "gre-udp": by_hand.gre(UNTAGGED)}[kind]
    batch, surroundings = new_batch(), Surroundings()
    fill(batch, [UNTAGGED], flows=[7])
    allow_batch(batch)
    opened([tool], surroundings).step(batch)
    ((_, _, header, window),) = frames(batch)
    datagram = by_hand.udp(1234, 9999, inside, ends=ENDS[version])
    assert (header + window)[20 if version == 4 else 40 :] == datagram


NOT_IP = [
    by_hand.ethernet(by_hand.arp(1, ("02:00:00:00:00:0a", "10.0.0.1"), ("00:00:00:00:00:00", "10.0.0.2")), type=by_hand.ETH_ARP),
    UNTAGGED[:14],  # an ethertype and nothing behind it
    UNTAGGED[:13],
    b"",
    by_hand.ethernet(b"\x60" + bytes(60), type=by_hand.ETH_IP),  # says IPv4, is none
    by_hand.ethernet(b"\x45" + bytes(60), type=by_hand.ETH_IP6),
    by_hand.ethernet(UNTAGGED[14:], vlans=(1, 2, 3, 4, 5)),  # one tag more than is looked behind
    by_hand.ethernet(bytes(40), type=by_hand.ETH_MPLS),
]


def test_what_is_no_ip_packet_is_counted_and_not_sent_to_a_layer_3_tool() -> None:
    packets = [UNTAGGED, *NOT_IP, by_hand.ethernet(UNTAGGED[14:], vlans=(1, 2, 3, 4)), UNTAGGED[:15]]
    batch, surroundings = new_batch(), Surroundings()
    fill(batch, packets, 0b11)
    allow_batch(batch)
    opened([gre_tool(0, "gre-ip"), gre_tool(1)], surroundings).step(batch)
    assert [window for _, tool, _, window in frames(batch) if tool == 0] == [UNTAGGED[14:], UNTAGGED[14:], UNTAGGED[14:15]]
    assert [window for _, tool, _, window in frames(batch) if tool == 1] == packets
    assert [surroundings.drops("encapsulate", tool) for tool in (0, 1)] == [{"not_ip": len(NOT_IP)}, {}]
    assert surroundings.count("encapsulate", "framed_bytes", 0) == 3 * 24 + 2 * (len(UNTAGGED) - 14) + 1


def test_a_layer_3_frame_says_how_long_the_packet_was_without_its_link_header() -> None:
    batch, surroundings = new_batch(), Surroundings()
    fill(batch, [UNTAGGED[:60]], wirelens=[1514])
    allow_batch(batch)
    opened([gre_tool(0, "gre-ip", file="x")], surroundings).step(batch)
    assert batch.frames["wirelen"][0] == 24 + 1500


def test_a_row_that_points_outside_the_block_is_not_looked_into() -> None:
    batch, surroundings = new_batch(), Surroundings()
    fill(batch, [UNTAGGED])
    allow_batch(batch)
    batch.packets["data_at"][0] = 0xFFFF_0000
    opened([gre_tool(0, "gre-ip")], surroundings).step(batch)
    assert surroundings.drops("encapsulate", 0) == {"damaged_packet": 1}


def test_the_longest_header_fits_the_room_that_there_is_for_each() -> None:
    """A block never runs out of header bytes before it runs out of frames."""
    longest = [
        gre_tool(0, "erspan3", "2001:db8::9", subheader=True),
        gre_tool(1, "geneve", "2001:db8::9", generation=True),
        gre_tool(2, "gre-udp", "2001:db8::9", key=1, sequence=True, checksum=True),
    ]
    assert make_templates(longest)["header_len"].max() == 68 <= HEADER_ROOM <= HEADER_BYTES
    assert HEADER_ROOM - 20 <= layout.SLACK, "what is copied past the shortest header must end in the slack"


def test_the_generation_in_a_header_is_the_one_the_block_is_handled_by() -> None:
    (row,) = make_templates([Tool("t", 0, gre_tool(0, "geneve", generation=True).tunnel)], generation=77)[:1]
    assert row["header"][28 + 8 : 28 + 16].tobytes() == bytes.fromhex("ff540101") + (77).to_bytes(4, "big")


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_python_writes_the_same_and_stays_within_bounds() -> None:
    run_plain(__file__)
