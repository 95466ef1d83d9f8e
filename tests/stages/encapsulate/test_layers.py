"""Frames without some of their layers: byte for byte against packets built by hand, by what tshark sees in captures, and hostile ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from stages import memory
from stages.encapsulate import layers
from stages.encapsulate.layers import (
    ALL_TAGS,
    HEAD_ROOM,
    NETWORK_AT,
    NO_WINDOW_END,
    STRIP_CUT,
    STRIP_DEEP,
    STRIP_DONE,
    STRIP_ERSPAN,
    STRIP_FRAGMENT,
    STRIP_GENEVE,
    STRIP_GRE,
    STRIP_GTP,
    STRIP_IPIP,
    STRIP_MPLS,
    STRIP_VNTAG,
    STRIP_VXLAN,
    WHOLE,
)
from stages.jit import PLAIN
from tests import corpus, libpcap
from tests import packets as p
from tests.again import run_plain
from tests.stages.encapsulate.guarded import Guarded, read
from tests.stages.filter import shark, tunnel_traffic

IN, OUT = Guarded(), Guarded(HEAD_ROOM)
EVERYTHING = (
    ALL_TAGS | STRIP_VNTAG | STRIP_GRE | STRIP_ERSPAN | STRIP_VXLAN | STRIP_GENEVE | STRIP_GTP | STRIP_MPLS | STRIP_IPIP
)  # fmt: skip
OUTER = "192.0.2.1", "192.0.2.2"
OUTER_MACS = {"source": "02:00:00:00:00:01", "destination": "02:00:00:00:00:02"}


def leaving(shape: int, frame: bytes, at: int) -> tuple[bytes, int]:
    """What leaves, and the code."""
    assert layers.head_len_of(shape) <= HEAD_ROOM
    window = frame[layers.window_at_of(shape) : layers.window_end_of(shape)]
    return read(at, layers.head_len_of(shape)) + window, layers.strip_code_of(shape)


def strip(frame: bytes, what: int, *, at_end: bool = True) -> tuple[bytes, int]:
    memory.forbid_all()
    out = OUT.put(bytes(HEAD_ROOM))
    return leaving(layers.strip_layers(IN.put(frame, at_end=at_end), len(frame), what, out), frame, out)


def outer(payload: bytes, protocol: int = p.UDP, **options: object) -> bytes:
    return p.ethernet(p.ipv4(*OUTER, protocol, payload), **OUTER_MACS, **options)  # type: ignore[arg-type]


def outer6(payload: bytes, protocol: int = p.UDP) -> bytes:
    chain = p.hop_by_hop(protocol, payload)
    return p.ethernet(p.ipv6("2001:db8::1", "2001:db8::2", p.HOPOPTS, chain), type=p.ETH_IP6, **OUTER_MACS)


def label(n: int, *, bottom: bool = True) -> bytes:
    return struct.pack("!I", n << 12 | bottom << 8 | 64)


def erspan3(inner: bytes, *, more: bool, session: int = 9) -> bytes:
    head = struct.pack("!HHIHH", 2 << 12, session, 7, 0, 1 << 15 | more)
    return p.gre(head + bytes(8 * more) + inner, protocol=0x22EB, sequence=1)


INNER = p.tcp_frame("10.0.0.1", 4000, "10.0.0.2", 443, b"hello, inner", vlans=(7,))
VXLAN_HEAD = struct.pack("!BxxxI", 8, 5001 << 8)
CARRIES_ETHERNET: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "gre": (STRIP_GRE, lambda inner: outer(p.gre(inner), p.GRE)),
    "gre with all options": (STRIP_GRE, lambda inner: outer(p.gre(inner, key=1, sequence=2, with_checksum=True), p.GRE)),
    "gre over IPv6 with a chain": (STRIP_GRE, lambda inner: outer6(p.gre(inner, key=1), p.GRE)),
    "gre in UDP": (STRIP_GRE, lambda inner: outer(p.udp(9, 4754, p.gre(inner)))),
    "gre behind tags": (STRIP_GRE, lambda inner: outer(p.gre(inner), p.GRE, vlans=(1, 2, 3, 4))),
    "erspan 1": (STRIP_ERSPAN, lambda inner: outer(p.gre(inner, protocol=0x88BE), p.GRE)),
    "erspan 2": (STRIP_ERSPAN, lambda inner: outer(p.gre(struct.pack("!HHI", 1 << 12, 5, 0) + inner, protocol=0x88BE, sequence=1), p.GRE)),
    "erspan 3": (STRIP_ERSPAN, lambda inner: outer(erspan3(inner, more=False), p.GRE)),
    "erspan 3 with subheader": (STRIP_ERSPAN, lambda inner: outer(erspan3(inner, more=True), p.GRE)),
    "vxlan": (STRIP_VXLAN, lambda inner: outer(p.udp(9, 4789, VXLAN_HEAD + inner))),
    "vxlan over IPv6": (STRIP_VXLAN, lambda inner: outer6(p.udp(9, 4789, VXLAN_HEAD + inner))),
    "geneve": (STRIP_GENEVE, lambda inner: outer(p.udp(9, 6081, struct.pack("!BBHI", 2, 0, p.ETH_TEB, 9 << 8) + bytes(8) + inner))),
    "pseudowire": (STRIP_MPLS, lambda inner: p.ethernet(label(16, bottom=False) + label(17) + bytes(4) + inner, type=p.ETH_MPLS)),
    "MPLS in UDP": (STRIP_MPLS, lambda inner: outer(p.udp(9, 6635, label(17) + bytes(4) + inner))),
}  # fmt: skip
CARRIES_IP: dict[str, tuple[int, Callable[[bytes, int], bytes]]] = {
    "gre": (STRIP_GRE, lambda inner, type_: outer(p.gre(inner, protocol=type_, key=3), p.GRE)),
    "gtp": (STRIP_GTP, lambda inner, _: outer(p.udp(9, 2152, struct.pack("!BBHI", 0x30, 255, len(inner), 5) + inner), vlans=(9,))),
    "geneve": (STRIP_GENEVE, lambda inner, type_: outer(p.udp(9, 6081, struct.pack("!BBHI", 0, 0, type_, 9 << 8) + inner))),
    "ip": (STRIP_IPIP, lambda inner, type_: outer(inner, p.IPV6 if type_ == p.ETH_IP6 else p.IPIP)),
    "MPLS": (STRIP_MPLS, lambda inner, _: p.ethernet(label(16, bottom=False) + label(17) + inner, type=p.ETH_MPLS, **OUTER_MACS)),
}  # fmt: skip
PACKETS = {
    p.ETH_IP: p.ipv4("10.0.0.1", "10.0.0.2", p.UDP, p.udp(1, 2, b"payload", ends=("10.0.0.1", "10.0.0.2"))),
    p.ETH_IP6: p.ipv6("fe80::1", "fe80::2", p.UDP, p.udp(1, 2, b"payload", ends=("fe80::1", "fe80::2"))),
}


@pytest.mark.parametrize("name", CARRIES_ETHERNET)
def test_the_frame_in_a_tunnel_leaves_as_it_is_and_padding_behind_it_does_not(name: str) -> None:
    what, wrap = CARRIES_ETHERNET[name]
    frame = wrap(INNER)
    assert strip(frame, what) == (INNER, STRIP_DONE)
    assert strip(frame, what | ALL_TAGS) == (p.tcp_frame("10.0.0.1", 4000, "10.0.0.2", 443, b"hello, inner"), STRIP_DONE)
    assert strip(frame, EVERYTHING & ~what & ~ALL_TAGS) == (frame, STRIP_DONE), "what is not named stays"
    if what != STRIP_MPLS:
        assert strip(frame + bytes(30), what) == (INNER, STRIP_DONE)


@pytest.mark.parametrize("name", CARRIES_IP)
@pytest.mark.parametrize("type_", PACKETS)
def test_a_packet_without_ethernet_gets_the_outer_addresses_and_its_type(name: str, type_: int) -> None:
    what, wrap = CARRIES_IP[name]
    expected = p.ethernet(PACKETS[type_], type=type_, **OUTER_MACS)
    assert strip(wrap(PACKETS[type_], type_), what | ALL_TAGS) == (expected, STRIP_DONE)
    assert strip(wrap(PACKETS[type_], type_), what) == (expected, STRIP_DONE)


def test_tags_before_labels_stay_unless_they_are_named() -> None:
    frame = p.ethernet(label(17) + PACKETS[p.ETH_IP], type=p.ETH_MPLS, vlans=(1, 2))
    assert strip(frame, STRIP_MPLS) == (p.ethernet(PACKETS[p.ETH_IP], vlans=(1, 2)), STRIP_DONE)
    assert strip(frame, STRIP_MPLS | 1) == (p.ethernet(PACKETS[p.ETH_IP], vlans=(2,)), STRIP_DONE)
    assert strip(frame, STRIP_MPLS | ALL_TAGS) == (p.ethernet(PACKETS[p.ETH_IP]), STRIP_DONE)
    assert strip(frame, 1) == (p.ethernet(label(17) + PACKETS[p.ETH_IP], type=p.ETH_MPLS, vlans=(2,)), STRIP_DONE)


@pytest.mark.parametrize("n_tags", range(7))
def test_tags_are_removed_from_the_outside_as_many_as_are_asked_for(n_tags: int) -> None:
    payload = PACKETS[p.ETH_IP]
    frame = p.ethernet(payload, vlans=tuple(range(1, n_tags + 1)))
    for n in range(5):
        assert strip(frame, n) == (p.ethernet(payload, vlans=tuple(range(1, n_tags + 1))[n:]), STRIP_DONE)
    assert strip(frame, ALL_TAGS) == (
        p.ethernet(payload, vlans=tuple(range(1, n_tags + 1))[4:]), STRIP_DEEP if n_tags > 4 else STRIP_DONE
    )  # fmt: skip
    if n_tags > 4:
        assert strip(frame, STRIP_GRE) == (frame, STRIP_DEEP), "what is behind so many tags is not looked for"


def test_a_vn_tag_goes_and_the_tags_around_it_stay() -> None:
    rest = p.vlan(PACKETS[p.ETH_IP], 5)
    macs = p.mac(p.MAC_B) + p.mac(p.MAC_A)
    vn_tag = b"\x89\x26\x80\x01\x00\x02"
    frame = macs + vn_tag + b"\x81\x00" + rest
    assert strip(frame, STRIP_VNTAG) == (macs + b"\x81\x00" + rest, STRIP_DONE)
    assert strip(frame, ALL_TAGS) == (macs + vn_tag + b"\x08\x00" + PACKETS[p.ETH_IP], STRIP_DONE)
    assert strip(frame, ALL_TAGS | STRIP_VNTAG) == (p.ethernet(PACKETS[p.ETH_IP]), STRIP_DONE)
    behind = macs + b"\x88\xa8\x00\x07" + vn_tag + b"\x08\x00" + PACKETS[p.ETH_IP]
    assert strip(behind, STRIP_VNTAG) == (macs + b"\x88\xa8\x00\x07\x08\x00" + PACKETS[p.ETH_IP], STRIP_DONE)


def test_tunnels_are_stripped_from_the_outside_up_to_the_first_that_is_not_named() -> None:
    frame = INNER
    for _ in range(4):
        frame = outer(p.udp(9, 4789, VXLAN_HEAD + frame))
    assert strip(frame, STRIP_VXLAN) == (INNER, STRIP_DONE)
    once_more = outer(p.udp(9, 4789, VXLAN_HEAD + frame))
    assert strip(once_more, STRIP_VXLAN) == (outer(p.udp(9, 4789, VXLAN_HEAD + INNER)), STRIP_DEEP)
    mixed = outer(p.udp(9, 4789, VXLAN_HEAD + outer(p.gre(INNER), p.GRE)))
    assert strip(mixed, STRIP_VXLAN) == (outer(p.gre(INNER), p.GRE), STRIP_DONE)
    assert strip(mixed, STRIP_GRE) == (mixed, STRIP_DONE)
    assert strip(mixed, STRIP_GRE | STRIP_VXLAN) == (INNER, STRIP_DONE)


def test_a_tunnel_in_fragments_is_left_for_who_can_put_it_together() -> None:
    datagram = p.udp(9, 4789, VXLAN_HEAD + INNER)
    for packet in p.fragments(*OUTER, p.UDP, datagram, size=64):
        frame = p.ethernet(packet, vlans=(3,))
        assert strip(frame, STRIP_VXLAN) == (frame, STRIP_FRAGMENT)
        assert strip(frame, STRIP_VXLAN | ALL_TAGS) == (p.ethernet(packet), STRIP_FRAGMENT)
        assert strip(frame, STRIP_MPLS) == (frame, STRIP_DONE), "labels on the link cannot be in a fragment"
    inside = p.ethernet(p.fragments("10.0.0.1", "10.0.0.2", p.UDP, bytes(64), size=32)[1])
    assert strip(outer(p.gre(inside), p.GRE), STRIP_GRE) == (inside, STRIP_FRAGMENT)


@pytest.mark.parametrize("name", CARRIES_ETHERNET)
def test_what_is_cut_before_the_inner_ethertype_stays_as_it_is(name: str) -> None:
    what, wrap = CARRIES_ETHERNET[name]
    whole = wrap(INNER)
    first_whole = len(whole) - len(INNER) + 18  # its tag is a part of what is asked for
    for n in range(first_whole):
        left, code = strip(whole[:n], what)
        assert left == whole[:n]
        assert code == STRIP_CUT
    for n in range(first_whole, len(whole)):
        code = STRIP_DONE if n >= first_whole + 10 else STRIP_CUT  # before its protocol, nobody knows whether it is one more tunnel
        assert strip(whole[:n], what) == (whole[len(whole) - len(INNER) : n], code)


def test_what_does_not_say_what_it_carries_is_left() -> None:
    for frame, what in (
        (outer(p.gre(bytes(40), protocol=0), p.GRE), STRIP_GRE),
        (outer(p.gre(bytes(40), protocol=0x880B), p.GRE), STRIP_GRE),
        (outer(p.gre(b"\x50" + bytes(40), protocol=p.ETH_IP), p.GRE), STRIP_GRE),
        (outer(p.udp(9, 2152, struct.pack("!BBHI", 0x30, 255, 4, 5) + b"\0\0\0\0")), STRIP_GTP),
        (p.ethernet(label(17) + b"\x10\0\0\x21", type=p.ETH_MPLS), STRIP_MPLS),
    ):
        assert strip(frame, what) == (frame, STRIP_CUT)


def test_an_outer_length_that_lies_is_not_followed() -> None:
    packet = p.ipv4(*OUTER, p.GRE, p.gre(INNER), total_len=24)
    frame = p.ethernet(packet)
    assert strip(frame, STRIP_GRE) == (frame, STRIP_CUT)
    assert strip(p.ethernet(p.ipv4(*OUTER, p.GRE, p.gre(INNER), total_len=0)), STRIP_GRE) == (INNER, STRIP_DONE)


def push(frame: bytes, what: int, *tags: int) -> tuple[bytes, int]:
    memory.forbid_all()
    at, out = IN.put(frame), OUT.put(bytes(HEAD_ROOM))
    shape = layers.strip_layers(at, len(frame), what, out) if what else WHOLE
    for tci in tags:
        shape = layers.push_tag(shape, at, len(frame), 0x8100, tci, out)
    return leaving(shape, frame, out)


def test_tags_are_pushed_on_frames_stripped_or_not() -> None:
    plain = p.ethernet(PACKETS[p.ETH_IP])
    assert push(plain, 0, 5) == (p.ethernet(PACKETS[p.ETH_IP], vlans=(5,)), STRIP_DONE)
    assert push(p.ethernet(PACKETS[p.ETH_IP], vlans=(1, 2)), 1, 5, 6) == (p.ethernet(PACKETS[p.ETH_IP], vlans=(6, 5, 2)), STRIP_DONE)
    for what, wrap in CARRIES_ETHERNET.values():
        assert push(wrap(plain), what, 5) == (p.ethernet(PACKETS[p.ETH_IP], vlans=(5,)), STRIP_DONE)
    for what, wrap_ip in CARRIES_IP.values():
        expected = p.ethernet(PACKETS[p.ETH_IP6], type=p.ETH_IP6, vlans=(0xFFFF, 5), **OUTER_MACS)
        assert push(wrap_ip(PACKETS[p.ETH_IP6], p.ETH_IP6), what, 5, 0xFFFF) == (expected, STRIP_DONE)
    assert push(plain[:11], 0, 5) == (plain[:11], STRIP_CUT)
    many = tuple(range(1, 20))
    left, code = push(plain, 0, *many)
    assert code == STRIP_DEEP
    assert left == p.ethernet(PACKETS[p.ETH_IP], vlans=many[:13][::-1]), "as many as there is room for"


def test_the_network_layer_is_found_behind_tags_and_labels() -> None:
    def found(frame: bytes) -> tuple[int, int] | int:
        memory.forbid_all()
        place = layers.network_of(IN.put(frame), len(frame))
        return place if place < 0 else (place & 0xFFFF, place >> NETWORK_AT)

    packet = PACKETS[p.ETH_IP6]
    for n in range(5):
        frame = p.ethernet(packet, type=p.ETH_IP6, vlans=(1,) * n)
        assert found(frame) == (p.ETH_IP6, 14 + 4 * n)
        assert all(found(frame[:cut]) == -1 for cut in range(14 + 4 * n))
    assert found(p.ethernet(label(3, bottom=False) + label(4) + packet, type=p.ETH_MPLS, vlans=(1,))) == (p.ETH_IP6, 26)
    assert found(p.ethernet(label(4) + bytes(4) + INNER, type=p.ETH_MPLS)) == (p.ETH_IP, 14 + 8 + 18)
    assert found(p.ethernet(label(4, bottom=False) * 17 + packet, type=p.ETH_MPLS)) == -1
    assert found(p.ethernet(bytes(46), type=46)) == (46, 14)


def test_hostile_frames_keep_kernels_within_bounds_and_lose_no_byte_behind_what_was_stripped() -> None:
    n = 150 if PLAIN else 3000
    for frame in tunnel_traffic.some(n, 5) + tunnel_traffic.every_cut(2 if PLAIN else 20, 6):
        for what in (EVERYTHING, EVERYTHING & ~ALL_TAGS, 1, STRIP_MPLS | STRIP_VNTAG):
            for at_end in (True, False):
                left, _ = strip(frame.data, what, at_end=at_end)
                assert len(left) <= len(frame.data) + 2
        layers.network_of(IN.put(frame.data), len(frame.data))


CAPTURES = (
    "arkime/gre-erspan-vxlan.pcap", "arkime/gtp-u.pcap", "deepflow/agent/common/ff-vxlan.pcap", "deepflow/agent/common/geneve.pcap",
    "deepflow/agent/common/vmware-gre-teb.pcap", "ndpi/ipv6_in_gtp.pcap", "ndpi/rtmp.pcap", "ovs/tunnel-push-pop-ipv6.at.pcap",
    "pcapplusplus/Packet++Test/PacketExamples/MplsPackets.pcap", "pcapplusplus/Packet++Test/PacketExamples/Vxlan1.pcap",
    "skydive/gre-mpls-icmpv4.pcap", "skydive/vxlan-src-port.pcap", "suricata-verify/decode-erspan-typeI-02/input.pcap",
    "suricata-verify/decode-erspan-typeII-01/input.pcap", "suricata-verify/decode-vntag-01/input.pcap",
    "suricata-verify/geneve-decoder/input.pcap", "suricata-verify/vxlan-decoder-01/input.pcap",
)  # fmt: skip
STRIPPED = {
    "vlan",
    "ieee8021ad",
    "vntag",
    "mpls",
    "gre",
    "erspan",
    "vxlan",
    "geneve",
    "gtp",
    "pwethheuristic",
    "pwethcw",
    "pwethnocw",
    "eth_maybefcs",
}


def in_view(row: shark.Row) -> list[str]:
    """The protocols behind the last header that is to go, without Ethernet."""
    stack = row.stack
    last = max((i for i, name in enumerate(stack) if name in STRIPPED), default=-1)
    return [name for name in stack[last + 1 :] if name not in ("eth", "ethertype")]


@corpus.needs_corpus
@pytest.mark.skipif(PLAIN, reason="tshark is asked of what compiled kernels do")
@pytest.mark.parametrize("name", CAPTURES)
def test_tshark_sees_in_what_leaves_what_it_saw_inside(name: str, tmp_path: Path) -> None:
    frames = [record.data for record in libpcap.read_ethernet(corpus.CORPUS / name, 100)]
    assert frames
    stripped = [strip(frame, EVERYTHING & ~STRIP_IPIP)[0] for frame in frames]
    assert stripped != frames, "this capture has something to strip"
    before, after = shark.rows(frames, tmp_path), shark.rows(stripped, tmp_path)
    assert len(before) == len(after) == len(frames)
    for n, (was, is_) in enumerate(zip(before, after, strict=True)):
        if "ppp" in was.stack:
            assert stripped[n] == frames[n], "no Ethernet frame holds PPP"
            continue
        assert in_view(was) == [name for name in is_.stack if name not in ("eth", "ethertype")], (n, was.stack, is_.stack)
        for column in ("tcp.payload", "udp.payload"):
            assert was.columns[column].split(";")[-1] == is_.columns[column].split(";")[-1] or is_.columns[column] == ""


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_kernels_do_the_same_within_bounds() -> None:
    run_plain(__file__)


def test_a_shape_holds_the_largest_frames() -> None:
    shape = layers.pack_shape(64, 262_144, NO_WINDOW_END, STRIP_DEEP)
    assert layers.head_len_of(shape) == 64
    assert layers.window_at_of(shape) == 262_144
    assert layers.window_end_of(shape) == NO_WINDOW_END
    assert layers.strip_code_of(shape) == STRIP_DEEP
