"""Tools that share, repeat and stand in for each other."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from broker.core.layout import TOOL_ALIVE, TOOL_DEAD
from stages import memory
from tests import packets as by_hand
from tests.stages import delivery
from tests.stages.encapsulate.shaping import TWO, Shaping

TOOLS = "abc"
TEXT = """
inputs: {span: {kind: pcap, file: x}}
tools:
  a: {tunnel: {kind: gre, remote: 192.0.2.1}}
  b: {tunnel: {kind: gre, remote: 192.0.2.2}}
  c: {tunnel: {kind: gre, remote: 192.0.2.3}, slice_bytes: 20}
groups:
  g: {members: [a, b, c]%s}
collector: g
"""
N = 250


@pytest.fixture(autouse=True)
def _no_regions_left() -> Iterator[None]:
    yield
    memory.forbid_all()


def group(keys: str = "") -> Shaping:
    return Shaping(TEXT % (f", {keys}" if keys else ""))


def frame(source: str, source_port: int, destination: str, port: int) -> bytes:
    return by_hand.udp_frame(source, source_port, destination, port, b"payload")


def member_of(one: Shaping, packets: list[bytes], flows: list[int]) -> list[str]:
    """Of a group that shares, the tool that each packet went to."""
    sent = one.send(packets, one.bit("g"), flows=flows)
    found = {packet: tool for tool, frames in sent.items() for packet, _ in frames}
    assert sum(map(len, sent.values())) == len(packets)
    return [found[packet] for packet in range(len(packets))]


FLOWS = [random.Random(n).getrandbits(32) for n in range(N)]
PACKETS = [frame("10.0.0.1", 5, "10.0.0.2", 6)] * N


def test_flows_stay_with_their_member_and_all_get_some() -> None:
    one = group()
    before = member_of(one, PACKETS, FLOWS)
    assert member_of(one, PACKETS, FLOWS) == before
    assert member_of(group(), PACKETS, FLOWS) == before, "as every broker decides"
    assert min(Counter(before)[tool] for tool in TOOLS) > N / 6
    assert one.owed(2 * N) == 0


def test_a_dead_member_moves_only_its_own_share_and_takes_it_back() -> None:
    one = group()
    before = member_of(one, PACKETS, FLOWS)
    state = one.stage._context.tool_state
    state[one.slot("b")] = TOOL_DEAD
    without = member_of(one, PACKETS, FLOWS)
    assert all(new == old for new, old in zip(without, before, strict=True) if old != "b")
    assert {new for new, old in zip(without, before, strict=True) if old == "b"} == {"a", "c"}
    state[one.slot("b")] = TOOL_ALIVE
    assert member_of(one, PACKETS, FLOWS) == before
    state[[one.slot(tool) for tool in TOOLS]] = TOOL_DEAD
    assert member_of(one, PACKETS, FLOWS) == before, "as if all were there"


def test_weights_are_parts() -> None:
    many = [random.Random(n).getrandbits(32) for n in range(N)]
    got = Counter(tool for _ in range(4) for tool in member_of(group("weights: {a: 8}"), PACKETS, many))
    assert got["a"] > 3 * (got["b"] + got["c"]) > 0


def test_every_packet_to_all_that_are_there() -> None:
    one = group("mode: replicate")
    sent = one.send(PACKETS[:4], one.bit("g"))
    assert [[p for p, _ in sent[tool]] for tool in TOOLS] == [[0, 1, 2, 3]] * 3
    assert {len(inner) for _, inner in sent["c"]} == {20}, "in the shape of the member"
    one.stage._context.tool_state[one.slot("a")] = TOOL_DEAD
    sent = one.send(PACKETS[:4], one.bit("g"))
    assert [len(sent[tool]) for tool in TOOLS] == [0, 4, 4]
    assert one.owed(8) == 0


def test_the_next_one_stands_in() -> None:
    one = group("mode: failover")
    assert set(member_of(one, PACKETS, FLOWS)) == {"a"}
    one.stage._context.tool_state[one.slot("a")] = TOOL_DEAD
    assert set(member_of(one, PACKETS, FLOWS)) == {"b"}


def test_a_tool_gets_a_packet_once() -> None:
    one = group()
    sent = one.send(PACKETS, one.bit("g") | one.bit("a"), flows=FLOWS)
    assert [p for p, _ in sent["a"]] == list(range(N))
    assert one.count("merged_frames", "a") == N - len(sent["b"]) - len(sent["c"])
    assert one.owed(2 * N) == 0


@pytest.mark.parametrize(("balance", "distinct"), [("two-tuple", 1), ("three-tuple", 2)])
def test_what_a_flow_is(balance: str, distinct: int) -> None:
    one = group(f"balance: {balance}")
    ends = [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")]
    udp = [by_hand.udp_frame(source, n, destination, 7 * n, b"x") for n in range(1, 20) for source, destination in ends]
    tcp = [by_hand.tcp_frame(source, n, destination, 7 * n, b"x") for n in range(1, 20) for source, destination in ends]
    assert len(set(member_of(one, udp, FLOWS[: len(udp)]))) == 1
    assert len(set(member_of(one, tcp, FLOWS[: len(tcp)]))) == 1
    many = [by_hand.tcp_frame(f"10.0.{n}.1", 1, f"10.0.{n}.2", 2, b"x") for n in range(N)]
    others = [by_hand.udp_frame(f"10.0.{n}.1", 1, f"10.0.{n}.2", 2, b"x") for n in range(N)]
    alike = sum(a == b for a, b in zip(member_of(one, many, FLOWS), member_of(one, others, FLOWS), strict=True))
    assert (alike == N) == (distinct == 1)


def test_rows_that_point_outside_the_block_are_not_looked_into() -> None:
    text = TWO % ("", "", "groups: {g: {members: [a, b], of: inner}}\nmaps: [{name: m, rules: [{pass: ip}], to: g}]")
    one = Shaping(text)
    batch = delivery.new_batch(one.surroundings.geometry)
    delivery.fill(batch, [bytes(60)] * 2, one.bit("g"))
    batch.packets["data_at"][0], batch.packets["caplen"][1] = 1 << 31, 0xFFFF_FFF0
    delivery.allow_batch(batch)
    batch.seq = 0
    one.stage.step(batch)
    assert one.count("dropped_damaged_packet", "a") + one.count("dropped_damaged_packet", "b") == 2
    assert one.owed(2) == 0


def test_what_a_tunnel_carries_can_be_what_counts() -> None:
    one, plain = group("of: inner"), group()
    inner = [by_hand.tcp_frame(f"10.7.{n}.1", 40, f"10.7.{n}.2", 50, b"x") for n in range(60)]
    vxlan = [by_hand.udp_frame("192.0.2.50", 9, "192.0.2.60", 4789, b"\x08\0\0\0\0\0\x05\0" + packet) for packet in inner]
    there = [by_hand.udp_frame("192.0.2.60", 9, "192.0.2.50", 4789, b"\x08\0\0\0\0\0\x05\0" + packet) for packet in inner]
    flows = [1] * 60
    got = member_of(one, vxlan, flows)
    assert len(set(got)) == 3
    assert member_of(one, there, flows) == got == member_of(one, inner, flows)
    assert len(set(member_of(plain, vxlan, flows))) == 1
