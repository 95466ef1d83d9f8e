"""Which frames a block gets, in which order, with which numbers; and what is counted when it cannot have one."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from broker.core import layout
from broker.core.batch import Batch
from broker.core.model import Tool
from broker.core.stage import AGAIN
from stages import memory
from stages.encapsulate.stage import Encapsulate
from tests.stages.delivery import (
    SMALL,
    Surroundings,
    allow_batch,
    allow_encapsulate,
    fill,
    frames,
    generation,
    gre_tool,
    new_batch,
    payload,
    small,
)
from tests.stages.encapsulate.test_headers import opened


@pytest.fixture(autouse=True)
def _no_regions_left() -> Iterator[None]:
    yield
    memory.forbid_all()


def sequences(batch: Batch, tool: int = 0) -> list[int]:
    """GRE sequence numbers of the frames of a tool that has no other option, over IPv4."""
    return [struct.unpack_from("!I", header, 24)[0] for _, t, header, _ in frames(batch) if t == tool]


def block(seq: int, n_packets: int, verdicts: list[int] | int = 1, geometry: layout.Geometry = SMALL) -> Batch:
    batch = new_batch(geometry)
    batch.seq = seq
    fill(batch, [payload(60, seed=i) for i in range(n_packets)], verdicts)
    allow_batch(batch)
    return batch


def workers(n: int, tools: list[Tool]) -> tuple[list[Encapsulate], Surroundings]:
    """`n` workers of one lane: they share tickets and numbers."""
    first = Surroundings(n_workers=n)
    return [
        opened(tools, Surroundings(worker=w, n_workers=n, tickets=first.tickets, sequences=first.sequences, counters=first.counters))
        for w in range(n)
    ], first


def test_frames_lie_in_packet_order_and_tools_in_slot_order() -> None:
    masks = [0, 1 << 63 | 1, 0b110, 0, (1 << 64) - 1, 1 << 63]
    batch = block(0, len(masks), masks)
    surroundings = Surroundings()
    opened([Tool(f"t{slot}", slot, None, "x") for slot in range(64)], surroundings).step(batch)
    wanted = [(p, t) for p, mask in enumerate(masks) for t in range(64) if mask >> t & 1]
    assert [(p, t) for p, t, _, _ in frames(batch)] == wanted
    assert [surroundings.count("encapsulate", "framed_frames", t) for t in (0, 1, 63)] == [2, 2, 3]


def test_a_block_without_packets_or_without_wishes_takes_its_turn_too() -> None:
    (stage,), surroundings = workers(1, [gre_tool(sequence=True)])
    for seq, (n, mask) in enumerate([(0, 1), (3, 0), (2, 1)]):
        batch = block(seq, n, mask)
        assert stage.step(batch) == n
    assert sequences(batch) == [0, 1]
    assert surroundings.drops("encapsulate", 0) == {}


def test_a_frame_that_exceeds_what_ip_can_say_is_counted_and_has_no_number() -> None:
    """IPv4 counts its own header (RFC 791), IPv6 does not (RFC 8200); a file of bare frames has no limit."""
    v4, v6, bare = gre_tool(0, sequence=True), gre_tool(1, remote="2001:db8::9"), Tool("file", 2, None, "x")
    geometry = small(data_bytes=4 * 65_536)
    batch = new_batch(geometry)
    fill(batch, [payload(65_535 - 28), payload(65_535 - 27), payload(65_535 - 4)], 0b111)
    allow_batch(batch)
    surroundings = Surroundings(geometry)
    opened([v4, v6, bare], surroundings).step(batch)
    assert [(p, t) for p, t, _, _ in frames(batch)] == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    fill(batch, [payload(65_535 - 3), payload(60)], 0b011)
    batch.seq = 1
    opened([v4, v6, bare], surroundings).step(batch)
    assert sequences(batch) == [1]
    assert [surroundings.drops("encapsulate", t) for t in range(3)] == [{"too_long": 3}, {"too_long": 1}, {}]
    assert frames(batch)[0][2][2:4] == struct.pack("!H", 60 + 28)


def test_a_tool_that_this_generation_does_not_have_is_counted() -> None:
    batch, surroundings = block(0, 2, 1 << 5 | 1), Surroundings()
    opened([gre_tool(0)], surroundings).step(batch)
    assert len(frames(batch)) == 2
    assert surroundings.drops("encapsulate", 5) == {"no_tool": 2}


@pytest.mark.parametrize(("limit", "fits"), [({"max_frames": 3}, 3), ({"header_bytes": 2 * 24 + 23}, 2)])
def test_nothing_is_written_past_the_room_there_is_and_the_rest_is_counted(limit: dict[str, int], fits: int) -> None:
    geometry = small(**limit)
    batch, surroundings = block(0, 5, geometry=geometry), Surroundings(geometry)
    opened([gre_tool(0)], surroundings).step(batch)
    assert len(frames(batch)) == fits
    assert surroundings.drops("encapsulate", 0) == {"no_room": 5 - fits}
    assert int(batch.block["headers_used"][0]) == fits * 24


def test_rows_that_point_outside_the_block_are_counted_and_not_followed() -> None:
    batch, surroundings = block(0, 4), Surroundings()
    batch.packets["data_at"][1] = 0xFFFF_FFFF
    batch.packets["caplen"][2] = SMALL.data_bytes + 1
    opened([gre_tool(0)], surroundings).step(batch)
    assert [p for p, _, _, _ in frames(batch)] == [0, 3]
    assert surroundings.drops("encapsulate", 0) == {"damaged_packet": 2}


@pytest.mark.parametrize("n_packets", [-1, SMALL.max_packets + 1, 1 << 62])
def test_a_number_of_packets_that_cannot_be_is_not_believed(n_packets: int) -> None:
    batch, surroundings = block(0, 1), Surroundings()
    batch.block["n_packets"] = n_packets
    assert opened([gre_tool(0)], surroundings).step(batch) >= 0
    assert len(frames(batch)) <= SMALL.max_packets


def test_bytes_framed_are_headers_and_packets() -> None:
    batch, surroundings = block(0, 3), Surroundings()
    opened([gre_tool(0, key=1)], surroundings).step(batch)
    assert surroundings.count("encapsulate", "framed_bytes", 0) == 3 * (28 + 60)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_numbers_are_consecutive_in_ring_order_whoever_comes_first(order: tuple[int, ...]) -> None:
    """Two workers of a lane, asked in any order: who is early is told to come again, and has changed nothing."""
    stages, surroundings = workers(2, [gre_tool(sequence=True), gre_tool(1, sequence=True)])
    batches = [block(seq, 5, [1, 3, 2, 0, 3]) for seq in range(4)]
    done: set[int] = set()
    for _ in range(4):
        for seq in order:
            if seq in done:
                continue
            before = batches[seq].memory.copy(), surroundings.counters.copy(), surroundings.sequences.copy(), surroundings.tickets.copy()
            answer = stages[seq % 2].step(batches[seq])
            if all(earlier in done for earlier in range(seq)):
                assert answer == 5
                done.add(seq)
            else:
                assert answer == AGAIN
                after = batches[seq].memory, surroundings.counters, surroundings.sequences, surroundings.tickets
                assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    for tool in (0, 1):
        assert [n for batch in batches for n in sequences(batch, tool)] == list(range(12))


def test_numbers_go_on_over_many_laps() -> None:
    (stage,), _ = workers(1, [gre_tool(sequence=True)])
    batch = block(0, 3)
    found = []
    for seq in range(5 * SMALL.n_blocks):
        batch.seq = seq
        assert stage.step(batch) == 3
        found += sequences(batch)
    assert found == list(range(3 * 5 * SMALL.n_blocks))


def test_a_block_done_again_by_the_next_worker_is_the_same_to_the_byte() -> None:
    tools = [gre_tool(sequence=True, checksum=True), gre_tool(1, "gre-udp", "2001:db8::9", file="x", sequence=True)]
    (stage,), shared = workers(1, tools)
    stage.step(block(0, 7, 3))
    batch = block(1, 7, 3)
    stage.step(batch)
    first = batch.memory.copy()
    numbers = shared.sequences.copy()
    batch.headers[:], batch.frames[:] = 0xEE, 0  # whatever it died in
    again = opened(tools, Surroundings(epoch=2, tickets=shared.tickets, sequences=shared.sequences))
    assert again.step(batch) == 7
    used = int(batch.block["headers_used"][0])
    assert np.array_equal(batch.headers[:used], first[batch.headers_at - batch.block_at :][:used])
    assert frames(batch)
    assert np.array_equal(shared.sequences, numbers)


def test_a_block_done_again_with_more_frames_uses_no_number_twice() -> None:
    """What a worker remembered of duplicates died with it, so that there may be more."""
    tools = [gre_tool(sequence=True), gre_tool(1, sequence=True)]
    (stage,), shared = workers(1, tools)
    found: tuple[list[int], list[int]] = [], []
    for seq in range(2 * SMALL.n_blocks):
        stage.step(batch := block(seq, 4, 3))
        found[0].extend(sequences(batch))
        found[1].extend(sequences(batch, 1))
    seq = 2 * SMALL.n_blocks
    stage.step(block(seq, 3))  # never sent: the worker dies
    again = opened(tools, Surroundings(epoch=2, tickets=shared.tickets, sequences=shared.sequences))
    for batch in (block(seq, 5, 3), block(seq + 1, 5, 3)):
        again.step(batch)
        found[0].extend(sequences(batch))
        found[1].extend(sequences(batch, 1))
    assert all(numbers == sorted(set(numbers)) for numbers in found)


def test_lanes_share_the_numbers_of_a_tool() -> None:
    one, other = Surroundings(), Surroundings()
    other.sequences = one.sequences
    found = []
    for surroundings in (one, other, other, one):
        seq = int(np.count_nonzero(surroundings.tickets["seq"]))
        batch = block(seq, 3)
        opened([gre_tool(sequence=True)], surroundings).step(batch)
        found += sequences(batch)
    assert found == list(range(12))


def test_a_reload_changes_the_header_and_not_the_count() -> None:
    (stage,), surroundings = workers(1, [gre_tool(sequence=True)])
    stage.step(block(0, 3))
    stage.load(generation(gre_tool(sequence=True, remote="192.0.2.77"), number=2))
    allow_encapsulate(stage, surroundings)
    batch = block(1, 2)
    stage.step(batch)
    assert sequences(batch) == [3, 4]
    assert frames(batch)[0][2][16:20] == bytes([192, 0, 2, 77])
