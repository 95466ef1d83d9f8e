"""Which packets are our own: built by hand, in every wrapping that a capture may show them in."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from broker.core.model import Config, Tool, Tunnel
from stages import memory
from stages.capture.own import own_table
from stages.capture.own_kernels import ALIKE, FOREIGN, OWN, whose
from stages.jit import PLAIN
from tests import packets as p
from tests.again import run_plain
from tests.stages.wire.tunnels import FRAME, erspan1, erspan2, erspan3, geneve, vxlan

US, TOOL, US6, TOOL6 = "192.0.2.1", "192.0.2.9", "2001:db8::1", "2001:db8::9"
OTHER, OTHER6 = "198.51.100.7", "2001:db8:2::7"
PORT = 50_040
TOOLS = (
    Tunnel("gre", TOOL, key=7),
    Tunnel("gre-udp", TOOL, port=PORT),
    Tunnel("gre", TOOL6),
    Tunnel("gre-udp", TOOL6),
    Tunnel("gre", "192.0.2.73", source=US, key=3),  # ends in the same bits as 192.0.2.9
)


def config(*tunnels: Tunnel) -> Config:
    return Config("n", (), tuple(Tool(f"t{n}", n, tunnel=tunnel) for n, tunnel in enumerate(tunnels)), ())


_table = own_table(config(*TOOLS))
assert _table is not None


def answer(frame: bytes, table: np.ndarray = _table) -> int:
    held = np.frombuffer(frame + bytes(64), np.uint8).copy()
    memory.forbid_all()
    memory.allow(held.ctypes.data, len(frame))
    memory.allow(table.ctypes.data, table.nbytes)
    found: int = whose(table.ctypes.data, held.ctypes.data, len(frame))
    memory.forbid_all()
    return found


GRE4 = p.ipv4(US, TOOL, p.GRE, p.gre(FRAME, key=7))
GRE6 = p.ipv6(US6, TOOL6, p.GRE, p.gre(FRAME))
UDP4 = p.ipv4(US, TOOL, p.UDP, p.udp(4000, PORT, p.gre(FRAME)))
UDP6 = p.ipv6(US6, TOOL6, p.UDP, p.udp(4000, 4754, p.gre(FRAME), ends=(US6, TOOL6)))
PACKETS = {"gre": GRE4, "gre over IPv6": GRE6, "gre-udp": UDP4, "gre-udp over IPv6": UDP6}


def framed(packet: bytes, **more: object) -> bytes:
    return p.ethernet(packet, type=p.ETH_IP6 if packet[0] >> 4 == 6 else p.ETH_IP, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
@pytest.mark.parametrize("vlans", [(), (30,), (7, 30), (1, 2, 3, 4)])
def test_what_our_tunnels_send_is_our_own_behind_any_tags(packet: bytes, vlans: tuple[int, ...]) -> None:
    assert answer(framed(packet, vlans=vlans)) == OWN


def test_its_fragments_are_the_later_ones_by_addresses_and_protocol() -> None:
    for protocol, payload in ((p.GRE, p.gre(FRAME * 20)), (p.UDP, p.udp(4000, PORT, p.gre(FRAME * 20)))):
        pieces = p.fragments(US, TOOL, protocol, payload, size=400)
        assert len(pieces) > 2
        assert [answer(framed(piece)) for piece in pieces] == [OWN] * len(pieces)
        assert {answer(framed(piece)) for piece in p.fragments(US, OTHER, protocol, payload, size=400)[1:]} == {FOREIGN}
    first = p.fragment_header(p.UDP, p.udp(4000, 4754, p.gre(FRAME * 9)), more=True)
    later = p.fragment_header(p.UDP, bytes(400), offset=800)
    for piece in (first, later):
        assert answer(framed(p.ipv6(US6, TOOL6, p.FRAGMENT, piece))) == OWN
        assert answer(framed(p.ipv6(US6, OTHER6, p.FRAGMENT, piece))) != OWN


@pytest.mark.parametrize("type_", [3, 4, 5, 11, 12])
def test_icmp_errors_that_quote_it_are_our_own(type_: int) -> None:
    for quoted in (GRE4, UDP4):
        for n_bytes in (20 + 8, 20 + 60):
            assert answer(framed(p.ipv4("192.0.2.200", US, p.ICMP, p.icmp(type_, 3, bytes(4), quoted[:n_bytes])))) == OWN
    elsewhere = p.ipv4(US, OTHER, p.GRE, p.gre(FRAME))
    assert answer(framed(p.ipv4("192.0.2.200", US, p.ICMP, p.icmp(type_, 3, bytes(4), elsewhere)))) == FOREIGN
    assert answer(framed(p.ipv4("192.0.2.200", US, p.ICMP, p.icmp(8, 0, bytes(4), GRE4)))) == FOREIGN


@pytest.mark.parametrize("type_", [1, 2, 3, 4])
def test_icmpv6_errors_that_quote_it_are_our_own(type_: int) -> None:
    ends = ("2001:db8::200", US6)
    for quoted in (GRE6, UDP6):
        assert answer(framed(p.ipv6(*ends, p.ICMP6, p.icmp6(ends, type_, 0, bytes(4), quoted[:60])))) == OWN
    elsewhere = p.ipv6(US6, OTHER6, p.GRE, p.gre(FRAME))
    assert answer(framed(p.ipv6(*ends, p.ICMP6, p.icmp6(ends, type_, 0, bytes(4), elsewhere)))) == FOREIGN
    assert answer(framed(p.ipv6(*ends, p.ICMP6, p.icmp6(ends, 128, 0, bytes(4), GRE6)))) == FOREIGN


def test_arp_and_neighbour_discovery_for_a_tool_are_our_own() -> None:
    macs = p.MAC_A, p.MAC_B
    for sender, target, expected in ((US, TOOL, OWN), (TOOL, US, OWN), (US, OTHER, FOREIGN), (US, "192.0.2.137", FOREIGN)):
        assert answer(p.ethernet(p.arp(1, (macs[0], sender), (macs[1], target)), type=p.ETH_ARP)) == expected
        assert answer(p.ethernet(p.arp(2, (macs[0], sender), (macs[1], target)), type=p.ETH_ARP, vlans=(5,))) == expected
    for target, expected in ((TOOL6, OWN), (OTHER6, FOREIGN)):
        for type_ in (135, 136):
            ends = (US6, target)
            message = p.icmp6(ends, type_, 0, bytes(4), p.address(target))
            assert answer(framed(p.ipv6(*ends, p.ICMP6, message, hop_limit=255))) == expected


WRAPPED = {
    "another broker's GRE": lambda frame: p.ip_frame(OTHER, US, p.GRE, p.gre(frame, key=9)),
    "ERSPAN": lambda frame: p.ip_frame(OTHER, US, p.GRE, erspan2(frame, 5, 1)),
    "VXLAN": lambda frame: p.udp_frame(OTHER, 5, US, 4789, vxlan(frame, 5)),
    "Geneve with options": lambda frame: p.udp_frame(OTHER, 5, US, 6081, geneve(frame, 5, options=struct.pack("!HBBI", 1, 1, 1, 7))),
    "GRE in UDP at a port of ours": lambda frame: p.udp_frame(OTHER, 5, US, PORT, p.gre(frame)),
    "IPv6": lambda frame: p.ip_frame(OTHER6, US6, p.GRE, p.gre(frame, key=9)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_it_is_found_in_the_tunnels_of_others(wrap: object) -> None:
    """Two brokers that mirror each other."""
    for packet in PACKETS.values():
        assert answer(wrap(framed(packet, vlans=(3,)))) == OWN  # type: ignore[operator]
        assert answer(wrap(wrap(framed(packet)))) == OWN  # type: ignore[operator]
        assert answer(wrap(FRAME)) in (FOREIGN, ALIKE)  # type: ignore[operator]


def test_where_a_source_is_configured_only_what_comes_from_it_is_our_own() -> None:
    def sent_by(source: str, key: int) -> int:
        return answer(p.ip_frame(source, "192.0.2.73", p.GRE, p.gre(FRAME, key=key)))

    assert [sent_by(US, 3), sent_by(OTHER, 9), sent_by(OTHER, 3)] == [OWN, FOREIGN, ALIKE]


def test_other_traffic_of_the_tools_is_not_our_own() -> None:
    assert answer(p.tcp_frame(US, 5, TOOL, 443, b"x" * 50)) == FOREIGN
    assert answer(p.udp_frame(US, 5, TOOL, 514, b"x" * 50)) == FOREIGN
    assert answer(p.ip_frame(TOOL, US, p.GRE, p.gre(FRAME, key=9))) == FOREIGN
    assert answer(framed(p.ipv6(US6, TOOL6, p.ICMP6, p.icmp6((US6, TOOL6), 128)))) == FOREIGN


def test_at_other_addresses_it_is_alike_by_kind_port_and_key() -> None:
    assert answer(p.ip_frame(OTHER, "203.0.113.5", p.GRE, p.gre(FRAME, key=7))) == ALIKE
    assert answer(p.ip_frame(OTHER, "203.0.113.5", p.GRE, p.gre(FRAME, key=8))) == FOREIGN
    assert answer(p.udp_frame(OTHER, 5, "203.0.113.5", PORT, p.gre(FRAME))) == ALIKE
    assert (
        answer(p.udp_frame(OTHER, 5, "203.0.113.5", 4789, vxlan(p.ip_frame(OTHER, "203.0.113.5", p.GRE, p.gre(FRAME, key=7)), 1))) == ALIKE
    )


KINDS = {
    "nvgre": (Tunnel("nvgre", TOOL, vsid=5), lambda: (p.GRE, p.gre(FRAME, key=5 << 8 | 9)), FOREIGN),  # a key for each flow
    "gre-ip": (Tunnel("gre-ip", TOOL, key=5), lambda: (p.GRE, p.gre(FRAME[18:], protocol=0x0800, key=5)), ALIKE),
    "erspan1": (Tunnel("erspan1", TOOL), lambda: (p.GRE, erspan1(FRAME)), ALIKE),
    "erspan2": (Tunnel("erspan2", TOOL, session=5), lambda: (p.GRE, erspan2(FRAME, 5, 1)), ALIKE),
    "erspan3": (Tunnel("erspan3", TOOL, session=5), lambda: (p.GRE, erspan3(FRAME, 5, 1, 1)), ALIKE),
    "vxlan": (Tunnel("vxlan", TOOL, vni=5), lambda: (p.UDP, p.udp(9, 4789, vxlan(FRAME, 5))), ALIKE),
    "geneve": (Tunnel("geneve", TOOL, vni=5, port=999), lambda: (p.UDP, p.udp(9, 999, geneve(FRAME, 5))), ALIKE),
}


@pytest.mark.parametrize(("tunnel", "made", "elsewhere"), KINDS.values(), ids=KINDS)
def test_every_kind_of_tunnel_is_known_and_what_is_like_it(tunnel: Tunnel, made: Callable[[], tuple[int, bytes]], elsewhere: int) -> None:
    table = own_table(config(tunnel))
    assert table is not None
    protocol, payload = made()
    assert answer(p.ip_frame(US, TOOL, protocol, payload), table) == OWN
    assert answer(p.ip_frame(US, OTHER, protocol, payload), table) == elsewhere


def test_what_is_cut_anywhere_is_looked_at_no_further() -> None:
    for packet in PACKETS.values():
        frame = WRAPPED["VXLAN"](framed(packet))
        assert {answer(frame[:n]) for n in range(len(frame))} <= {FOREIGN, OWN, ALIKE}
        assert answer(framed(packet)[: 14 + (40 if packet[0] >> 4 == 6 else 20)]) == OWN


def test_without_tunnels_there_is_no_table() -> None:
    assert own_table(config()) is None
    assert own_table(Config("n", (), (Tool("f", file="x.pcap"), Tool("r", file="x.pcap", tunnel=TOOLS[0])), ())) is None


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_python_answers_the_same_and_stays_within_the_frame() -> None:
    """These tests once more, uncompiled: each access must lie in the frame or in the table."""
    run_plain(__file__)
