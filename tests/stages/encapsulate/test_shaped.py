"""What becomes of packets on their way, by the configuration as it is written."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from stages import memory
from tests import packets as by_hand
from tests.stages import delivery
from tests.stages.encapsulate.shaping import OUTER, TWO, Shaping

WEB = by_hand.tcp_frame("10.0.0.1", 1234, "10.0.0.2", 80, b"x" * 700)
TAGGED = by_hand.ip_frame("10.0.0.1", "10.0.0.2", 17, by_hand.udp(5, 6, b"y" * 40), vlans=(7, 9))
BOTH = 3


@pytest.fixture(autouse=True)
def _no_regions_left() -> Iterator[None]:
    yield
    memory.forbid_all()


def shaping(a: str = "", b: str = "", more: str = "") -> Shaping:
    return Shaping(TWO % (f", {a}" if a else "", f", {b}" if b else "", more))


def test_a_slice_is_shorter_and_says_what_it_was() -> None:
    one = shaping("slice_bytes: 100")
    batch = one.block([WEB, WEB[:60]], BOTH)
    rows = batch.frames[:4]
    assert [int(r["data_len"]) for r in rows] == [100, len(WEB), 60, 60]
    assert [int(r["wirelen"]) for r in rows] == [OUTER + len(WEB)] * 2 + [OUTER + 60] * 2
    assert one.count("sliced_frames", "a") == 1
    assert one.owed(4) == 0


@pytest.mark.parametrize(("after", "kept"), [("l2", 14), ("l3", 34), ("l4", 54)])
def test_a_slice_keeps_headers(after: str, kept: int) -> None:
    one = shaping(f"slice_after: {after}, slice_bytes: 5")
    assert one.send([WEB], 1)["a"] == [(0, WEB[: kept + 5])]


def test_what_is_said_twice_is_no_other_thing() -> None:
    carried = by_hand.ip_frame("10.0.0.1", "10.0.0.2", 47, by_hand.gre(WEB))
    marked = WEB[:15] + b"\x04" + WEB[16:]  # another DSCP
    one = shaping("strip: [gre, gre]", "dedup: {ignore: [ttl, ttl]}")
    assert one.send([carried], 1)["a"] == [(0, WEB)]
    assert one.send([WEB, marked], 2)["b"] == [(0, WEB), (1, marked)]


@pytest.mark.parametrize("slice_bytes", [10, 17, 60])
def test_a_slice_says_the_original_length_of_the_frame_with_its_new_tag(slice_bytes: int) -> None:
    batch = shaping(f"push_vlan: 5, slice_bytes: {slice_bytes}").block([WEB], 1)
    assert int(batch.frames["wirelen"][0]) == OUTER + len(WEB) + 4


def test_no_frame_says_that_it_was_shorter_than_it_is() -> None:
    batch = shaping("slice_bytes: 200", "slice_bytes: 70").block([WEB[:100]], BOTH, wirelens=[50])
    assert batch.frames["wirelen"][:2].tolist() == [OUTER + 100] * 2


def test_tags_are_taken_off_and_put_on() -> None:
    one = shaping("strip: vlan", "strip: vlan, push_vlan: 77")
    bare = TAGGED[:12] + TAGGED[20:]
    sent = one.send([TAGGED, WEB], BOTH)
    assert sent["a"] == [(0, bare), (1, WEB)]
    assert sent["b"] == [(0, bare[:12] + b"\x81\x00\x00\x4d" + bare[12:]), (1, WEB[:12] + b"\x81\x00\x00\x4d" + WEB[12:])]
    assert (one.count("stripped_frames", "a"), one.count("stripped_frames", "b")) == (1, 1)


def test_outer_lengths_and_checksums_know_what_was_put_on() -> None:
    text = TWO.replace("remote: 192.0.2.1", "remote: 192.0.2.1, checksum: true, key: 9") % (", push_vlan: 5", "", "")
    one = Shaping(text)
    ((_, _, header, window), _) = delivery.frames(one.block([WEB], BOTH))
    packet = header + window
    assert len(header) == 20 + 12 + 16
    assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
    assert by_hand.checksum(packet[:20]) == 0
    assert by_hand.checksum(packet[20:]) == 0


def test_erspan_tells_the_tag_of_the_frame_that_leaves() -> None:
    text = TWO.replace("kind: gre", "kind: erspan2") % (", push_vlan: 5", ", strip: vlan, super_frames: segment", "")
    one = Shaping(text)
    no_tag = bytearray(by_hand.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2, b"\x81\x00" * 1000))
    no_tag[24:26] = b"\x81\x00"  # the IPv4 checksum stands where a tag would, in a window without the first 12 bytes
    words = [struct.unpack_from("!I", header, 28)[0] for _, _, header, _ in delivery.frames(one.block([TAGGED, bytes(no_tag)], BOTH))]
    assert [(word >> 16 & 0xFFF, word >> 11 & 3) for word in words] == [(5, 3), (0, 0), (5, 3), (0, 0), (0, 0)]


def test_a_segment_to_a_layer_3_tool_says_its_version() -> None:
    text = TWO.replace("kind: gre", "kind: gre-ip") % (", super_frames: segment", ", super_frames: segment", "")
    six = by_hand.ethernet(by_hand.ipv6("2001:db8::1", "2001:db8::2", 6, by_hand.tcp(1, 2, b"E" * 2000)), type=0x86DD)
    four = by_hand.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2, b"a" * 2000)
    found = [(packet, header[22:24]) for packet, _, header, _ in delivery.frames(Shaping(text).block([four, six], 1))]
    assert found == [(0, b"\x08\x00"), (0, b"\x08\x00"), (1, b"\x86\xdd"), (1, b"\x86\xdd")]


def test_what_is_masked_for_one_is_whole_for_the_other() -> None:
    card = b"pay 4111-1111-1111-1111 now"
    paid = by_hand.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2, card)
    one = shaping("mask: cards", "", "")
    sent = one.send([paid, WEB], BOTH)
    assert sent["a"][0][1].endswith(b"pay ****-****-****-1111 now")
    assert by_hand.checksum(sent["a"][0][1][14:34]) == 0
    assert sent["a"][1] == (1, WEB)
    assert sent["b"] == [(0, paid), (1, WEB)]
    assert one.count("masked_frames", "a") == 1


def test_no_room_for_a_copy_is_counted() -> None:
    one = Shaping(TWO % (", mask: payload", "", ""), delivery.small(shaped_bytes=1500))
    sent = one.send([WEB, WEB, WEB], BOTH)
    assert [len(sent["a"]), len(sent["b"])] == [1, 3]
    assert one.count("dropped_no_room", "a") == 2
    assert one.owed(6) == 0


def test_a_super_frame_becomes_segments_that_hold_the_same() -> None:
    payload = delivery.payload(5000)
    whole = by_hand.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2, payload)
    one = shaping("super_frames: segment, mask: {from: l3, at: 4, bytes: 2}", "super_frames: segment, slice_after: l4, segment_bytes: 1000")
    sent = one.send([whole, WEB], BOTH)
    assert [len(inner) for _, inner in sent["a"]] == [1514, 1514, 1514, 54 + 5000 - 3 * 1460, len(WEB)]
    assert b"".join(inner[54:] for p, inner in sent["a"] if p == 0) == payload
    assert {len(inner) for _, inner in sent["b"]} == {54}
    assert len(sent["b"]) == 6 + 1
    assert (one.count("segmented_frames", "a"), one.count("given_frames", "a")) == (1, 3)
    assert one.owed(4) == 0


def test_what_cannot_be_cut_goes_whole() -> None:
    long = by_hand.udp_frame("10.0.0.1", 1, "10.0.0.2", 2, bytes(3000))
    one = shaping("super_frames: segment")
    assert one.send([long], 1)["a"] == [(0, long)]
    assert one.count("unsegmented_frames", "a") == 1


@pytest.mark.parametrize("oversize", ["slice", "drop"])
def test_what_the_path_does_not_take_is_cut_or_dropped(oversize: str) -> None:
    one = shaping(f"oversize: {oversize}, mtu_bytes: 600")
    sent = one.send([WEB, WEB[: 600 - OUTER], WEB[: 601 - OUTER]], BOTH)
    assert len(sent["b"]) == 3
    if oversize == "slice":
        assert [len(inner) for _, inner in sent["a"]] == [600 - OUTER] * 3
        assert one.count("sliced_frames", "a") == 2
    else:
        assert sent["a"] == [(1, WEB[: 600 - OUTER])]
        assert one.count("dropped_mtu", "a") == 2
    assert one.owed(6) == 0


def test_duplicates_go_once_to_who_does_not_want_them_twice() -> None:
    one = shaping("dedup: {within_ms: 10}")
    again = one.send([WEB, TAGGED, WEB], BOTH, times=[10**9, 10**9, 10**9 + 10**6])
    assert ([p for p, _ in again["a"]], [p for p, _ in again["b"]]) == ([0, 1], [0, 1, 2])
    late = one.send([WEB], BOTH, times=[2 * 10**9])
    assert len(late["a"]) == 1, "the window has passed"
    assert one.count("dropped_duplicate", "a") == 1
    assert one.owed(8) == 0


def test_a_reload_remembers_what_has_been() -> None:
    text = TWO % (", dedup: {within_ms: 1000}", "", "")
    one = Shaping(text)
    one.send([WEB], 1, times=[10**9])
    one.load(text, 2)
    assert one.send([WEB], 1, times=[10**9 + 5])["a"] == []


def test_whole_flows_are_sampled_and_both_tools_choose_alike() -> None:
    one = shaping("sample: {one_in: 4}", "sample: {one_in: 4}")
    flows = [random.Random(n).getrandbits(32) for n in range(200)]
    sent = one.send([WEB] * 200, BOTH, flows=flows)
    assert [p for p, _ in sent["a"]] == [p for p, _ in sent["b"]]
    assert 25 < len(sent["a"]) < 80
    assert one.count("dropped_sampled", "a") == 200 - len(sent["a"])
    every = shaping("sample: {one_in: 4, by: packet}").send([WEB] * 40, 1)["a"]
    assert [p // 4 for p, _ in every] == list(range(10)), "one of each four"


def test_a_limit_lets_through_what_it_says_and_counts_the_rest() -> None:
    one = shaping("limit: {packets_per_s: 1000, burst_ms: 10}")
    sent = one.send([WEB] * 100, 1, times=[10**9 + n * 10**5 for n in range(100)])["a"]  # 10,000 a second for 10 ms
    assert 18 <= len(sent) <= 21  # the burst of 10, and 10 more come by the hundredth
    assert one.owed(100) == 0


def test_a_low_limit_lets_super_frames_through_now_and_then() -> None:
    text = TWO.replace("tunnel: {kind: gre, remote: 192.0.2.1}", "kind: pcap, file: y") % (", limit: {bits_per_s: 1000}", "", "")
    longest = by_hand.ethernet(bytes(65_535), vlans=(7,))
    assert len(Shaping(text, delivery.small(data_bytes=1 << 17)).send([longest], 1)["a"]) == 1


def test_the_shape_of_a_map_goes_for_its_packets() -> None:
    one = shaping("mask: payload", "", 'maps: [{name: m, rules: [{pass: ""}], to: [a, b], slice_bytes: 60}]')
    a, b = one.bit("a", "m"), one.bit("b", "m")
    sent = one.send([WEB, WEB, WEB], [a | b, one.bit("a") | one.bit("b"), a | one.bit("a")])
    assert [len(inner) for _, inner in sent["a"]] == [60, len(WEB), 60], "of two shapes the one of the map goes"
    assert [len(inner) for _, inner in sent["b"]] == [60, len(WEB)]
    assert all(inner[54:] == bytes(len(inner) - 54) for _, inner in sent["a"])
    assert one.owed(6) == 0


SHAPES = (
    "slice_bytes: 80", "slice_after: l3, slice_bytes: 9", "strip: [vlan, gre, vxlan]", "push_vlan: 12", "mask: payload", "mask: cards",
    "super_frames: segment, segment_bytes: 600", "oversize: drop, mtu_bytes: 900", "oversize: slice, mtu_bytes: 700", "sample: {one_in: 2}",
    "dedup: {within_ms: 1}", "limit: {packets_per_s: 100000, burst_ms: 1}",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_every_wish_is_accounted_for_whatever_is_done(seed: int) -> None:
    chosen = random.Random(seed)
    keys: dict[str, str] = {}
    for tool in "ab":
        picked: dict[str, str] = {}
        for text in chosen.sample(SHAPES, 6):
            if not any(f"{key.split(':')[0]}:" in " ".join(picked.values()) for key in text.split(", ") if ":" in key):
                picked[text] = text
        keys[tool] = ", ".join(picked)
    group = "groups: {g: {members: [a, b], balance: three-tuple, of: inner}}"
    maps = 'maps: [{name: m, rules: [{pass: ""}], to: [g, a], slice_bytes: 70}]'
    geometry = delivery.small(max_frames=300, header_bytes=chosen.choice((3000, 300 * 64)), shaped_bytes=chosen.choice((4000, 1 << 18)))
    one = Shaping(TWO % (f", {keys['a']}", f", {keys['b']}", f"{group}\n{maps}"), geometry)
    pool = [WEB, TAGGED, by_hand.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2, bytes(4000)), WEB[:20], TAGGED[:13], b"", bytes(64)]
    bits = [one.bit("a"), one.bit("b"), one.bit("g"), one.bit("a", "m"), one.bit("g", "m"), 1 << 40]
    wanted = 0
    for _ in range(4):
        packets = [chosen.choice(pool) for _ in range(60)]
        verdicts = [sum(bit for bit in bits if chosen.random() < 0.5) for _ in packets]
        wanted += sum(verdict.bit_count() for verdict in verdicts)
        batch = one.block(packets, verdicts)
        for packet, _, header, window in delivery.frames(batch):
            assert len(header) >= OUTER
            assert struct.unpack_from("!H", header, 2)[0] == len(header) + len(window)
            assert by_hand.checksum(header[:20]) == 0
            assert packet < 60
        assert one.owed(wanted) == 0
