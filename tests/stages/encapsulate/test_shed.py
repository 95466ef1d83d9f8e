"""Who is dropped first when the broker cannot keep up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from broker.core.model import MAX_PRIORITY, Input, Lane
from stages import memory
from stages.encapsulate.shed import DOWN, UP, Shedding
from tests import packets as by_hand
from tests.stages.encapsulate.shaping import TWO, Shaping

WEB = by_hand.tcp_frame("10.0.0.1", 1, "10.0.0.2", 80, b"x")
FLOWS = [random.Random(n).getrandbits(32) for n in range(200)]


@pytest.fixture(autouse=True)
def _no_regions_left() -> Iterator[None]:
    yield
    memory.forbid_all()


def shares(shedding: Shedding) -> list[float]:
    return [round(int(share) / 2**32, 3) for share in shedding.shares]


def test_lower_priorities_go_first_and_come_back_last() -> None:
    shedding = Shedding()
    for _ in range(24):
        shedding.look(0.9)
    assert shares(shedding) == [1.0, 0.5, 0, 0, 0, 0, 0, 0]
    shedding.look(0.6)
    assert shares(shedding)[1] == 0.5, "neither full nor easy: as it is"
    for _ in range(int(UP / DOWN) * 24):
        shedding.look(0.1)
    assert shares(shedding) == [0.0] * 8
    for _ in range(1000):
        shedding.look(1.0)
    assert shares(shedding) == [1.0] * MAX_PRIORITY + [0.0]


@pytest.mark.parametrize("kind", ["afpacket", "pcap"])
def test_whole_flows_of_the_lower_one_are_shed_and_counted_where_waiting_would_lose_packets(kind: str) -> None:
    one = Shaping(TWO % (", priority: 0", ", priority: 3", ""))
    live = Lane(0, (Input("span", "afpacket" if kind == "afpacket" else "pcap"),))
    one.stage._context = replace(one.stage._context, lane=live, ring_fill=lambda: 1.0)
    one.load(TWO % (", priority: 0", ", priority: 3", ""), 2)
    kept: list[set[int]] = []
    for _ in range(8):
        sent = one.send([WEB] * 200, 3, flows=FLOWS)
        assert len(sent["b"]) == 200
        kept.append({p for p, _ in sent["a"]})
    assert all(later <= earlier for earlier, later in itertools.pairwise(kept)), "who is gone stays gone"
    assert (len(kept[-1]) in range(60, 140)) == (kind == "afpacket")
    assert one.count("dropped_shed", "a") == sum(200 - len(k) for k in kept)
    assert one.owed(8 * 400) == 0
