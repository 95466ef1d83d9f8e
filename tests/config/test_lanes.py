"""Rings follow from the configuration alone, so that every process that asks gets the same answer."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from broker.config.lanes import (
    BLOCK_FRAMES,
    HEADER_BYTES,
    SEGMENT_FRAMES,
    copies_in,
    cpu_of,
    geometry,
    lanes,
    needed_tools,
    reachable_tools,
    tool_room,
)
from broker.core import layout
from broker.core.model import Config, Cpus, Input, Map, Mask, RingSizes, Rule, Shape, Stages, Tool
from tests.config.strategies import configs


def config(inputs: str, n_capture: int = 1, n_tools: int = 1, block_packets: int = 1024) -> Config:
    """Inputs: a word each, those that end in .pcap are files."""
    made = tuple(Input(i, "pcap", files=(i,)) if i.endswith(".pcap") else Input(i, "afpacket", interface=i) for i in inputs.split())
    tools = tuple(Tool(f"t{k}", file=f"f{k}") for k in range(n_tools))
    maps = (Map("m", (Rule("pass", ""),), tuple(t.name for t in tools)),)
    return Config("n", made, tools, maps, stages=Stages(n_capture, 2, 3, 4), ring=RingSizes(16, block_packets))


def test_a_live_input_has_as_many_lanes_as_capture_and_files_share_one() -> None:
    found = lanes(config("eth0 a.pcap eth1 b.pcap", n_capture=2))
    assert [[i.name for i in lane.inputs] for lane in found] == [["eth0"], ["eth0"], ["eth1"], ["eth1"], ["a.pcap", "b.pcap"]]
    assert [lane.number for lane in found] == [0, 1, 2, 3, 4]
    assert [lane.fanout_size for lane in found] == [2, 2, 2, 2, 1]


def test_workers_are_given_the_cpus_of_their_stage_in_turn_lane_after_lane() -> None:
    made = replace(config("eth0"), stages=Stages(cpus=Cpus(filter=(3, 5, 7))))
    assert [cpu_of(made, lane, "filter", worker, 2) for lane in (0, 1) for worker in (0, 1)] == [3, 5, 7, 3]
    assert cpu_of(made, 0, "send", 0, 1) is None


def test_lanes_of_one_input_are_one_fanout_group_and_others_another() -> None:
    a, b, c, d, files = (lane.fanout_group for lane in lanes(config("eth0 eth1 a.pcap", n_capture=2)))
    assert a == b != c == d
    assert files == 0
    assert 0 < a < 65_536


def test_fanout_groups_of_many_inputs_and_of_other_nodes_differ() -> None:
    many = config(" ".join(f"eth{k}" for k in range(64)), n_capture=2)
    groups = {lane.fanout_group for lane in lanes(many)}
    assert len(groups) == 64
    others = {lane.fanout_group for lane in lanes(replace(many, node="other"))}
    assert groups != others, "two brokers on one host must not join each other's groups"


def test_a_single_lane_needs_no_fanout_group() -> None:
    (lane,) = lanes(config("eth0"))
    assert (lane.fanout_group, lane.fanout_size) == (0, 1)


def test_a_block_has_frames_for_every_packet_and_tool_and_room_for_more() -> None:
    for n_tools, room, max_packets in ((1, 4, 1024), (4, 6, 1024), (10, 15, 1024), (16, 24, 682), (43, 64, 256), (64, 64, 256)):
        made = config("eth0", n_tools=n_tools)
        g = geometry(made, lanes(made)[0])
        assert tool_room(made) == room
        n_frames = max_packets * room + SEGMENT_FRAMES
        assert (g.max_packets, g.max_frames, g.header_bytes) == (max_packets, n_frames, n_frames * HEADER_BYTES)
        assert (g.n_blocks, g.n_filter, g.n_encapsulate, g.n_send, g.data_bytes) == (
            16,
            2,
            3,
            4,
            layout.MAX_FRAME_BYTES + layout.RECORD_BYTES,
        )


def test_large_blocks_are_bounded_too() -> None:
    made = config("eth0", n_tools=8, block_packets=16_384)
    assert geometry(made, lanes(made)[0]).max_frames - SEGMENT_FRAMES <= BLOCK_FRAMES
    assert geometry(made, lanes(made)[0]).max_packets == BLOCK_FRAMES // 12


def test_copies_of_a_full_block_have_room_with_a_tag_more() -> None:
    masked = Shape(mask=(Mask("payload"),), push_vlan=7)
    made = config("eth0", n_tools=2)
    made = replace(made, tools=(replace(made.tools[0], shape=masked), made.tools[1]))
    g = geometry(made, lanes(made)[0])
    assert copies_in(g) == 1
    for caplen in (64, 256, 300, 1520):  # as capture lays them: each begins on 16 bytes
        n_packets = min(g.max_packets, g.data_bytes // (caplen + 15 & -16))
        assert n_packets * (caplen + 4 + 15 & -16) <= g.shaped_bytes


def test_tools_are_reachable_by_the_maps_of_the_lane_and_by_the_collector() -> None:
    rule = (Rule("pass", ""),)
    made = config("eth0 eth1", n_tools=4)
    maps = (Map("all", rule, ("t0",)), Map("first", rule, ("t1",), inputs=("eth0",)), Map("second", rule, ("t2", "t0"), inputs=("eth1",)))
    made = replace(made, maps=maps, collector=("t3",))
    first, second = lanes(made)
    assert reachable_tools(made, first) == {"t0", "t1", "t3"}
    assert reachable_tools(made, second) == {"t0", "t2", "t3"}
    assert needed_tools(made) == 3


@settings(max_examples=100, deadline=None)
@given(configs())
def test_no_packet_can_need_more_frames_than_a_block_has(made: Config) -> None:
    for lane in lanes(made):
        g = geometry(made, lane)
        assert g.max_packets >= 1
        assert g.max_packets * len(reachable_tools(made, lane)) <= g.max_frames - SEGMENT_FRAMES <= BLOCK_FRAMES
        assert g.max_packets <= made.ring.block_packets
