"""The model of scaling, on cases worked out by hand."""

from __future__ import annotations

import pytest

from bench.model import Cost, Machine, Plan, predict, spread

COSTS = (Cost("capture", 30, 200), Cost("filter", 50, 100), Cost("encapsulate", 20, 100), Cost("send", 40, 400))
FREE = Machine(cores=1, memory_bytes_per_s=1e12, hand_over_ns=0)
"""Memory that never limits, and hand-overs for nothing."""


def machine(cores: int, *, bandwidth: float = 1e12, hand_over_ns: float = 0) -> Machine:
    return Machine(cores, bandwidth, hand_over_ns)


def test_one_core_does_all_that_the_stages_take() -> None:
    found = predict(COSTS, FREE, Plan())
    assert found.limit == "cores"
    assert found.packets_per_s == pytest.approx(1e9 / 140)


def test_with_cores_enough_the_slowest_stage_is_the_limit() -> None:
    found = predict(COSTS, machine(4), Plan())
    assert (found.limit, found.packets_per_s) == ("filter", pytest.approx(1e9 / 50))


def test_another_worker_moves_the_limit_to_the_next_stage() -> None:
    found = predict(COSTS, machine(8), Plan(1, {"filter": 2}))
    assert (found.limit, found.packets_per_s) == ("send", pytest.approx(1e9 / 40))


def test_two_lanes_carry_twice_as_much_until_the_cores_are_used_up() -> None:
    assert predict(COSTS, machine(8), Plan(2)).packets_per_s == pytest.approx(2e9 / 50)
    found = predict(COSTS, machine(8), Plan(4))
    assert (found.limit, found.packets_per_s) == ("cores", pytest.approx(8e9 / 140))


def test_a_hand_over_is_paid_by_each_stage_and_shared_by_the_packets_of_a_block() -> None:
    found = predict(COSTS, machine(1, hand_over_ns=10_000), Plan(block_packets=1000))
    assert found.cpu_ns == pytest.approx(140 + 4 * 10)
    assert found.packets_per_s == pytest.approx(1e9 / 180)


def test_every_send_worker_visits_every_block() -> None:
    """Two of them share the 40 ns, but each takes over each block: 40 / 2 + 10."""
    found = predict(COSTS, machine(16, hand_over_ns=10_000), Plan(1, {"send": 2, "filter": 4, "encapsulate": 4}, 1000))
    assert found.limits["send"] == pytest.approx(1e9 / 30)
    assert found.limits["filter"] == pytest.approx(4e9 / 60)
    assert found.limit == "capture"
    assert found.cpu_ns == pytest.approx(140 + 5 * 10)


def test_memory_is_the_limit_where_it_is_slow() -> None:
    found = predict(COSTS, machine(64, bandwidth=8e9), Plan(16))
    assert (found.limit, found.packets_per_s) == ("memory", pytest.approx(1e7))


def test_what_the_kernel_does_is_a_stage_without_a_hand_over() -> None:
    costs = (Cost("kernel receive", 1000, 0, hands_over=False), *COSTS)
    found = predict(costs, machine(8, hand_over_ns=10_000), Plan(block_packets=1000))
    assert (found.limit, found.packets_per_s) == ("kernel receive", pytest.approx(1e6))


def test_lanes_are_as_many_as_have_a_core_for_each_stage() -> None:
    assert [spread(COSTS, cores, 1024).lanes for cores in (1, 2, 8, 64)] == [1, 1, 2, 16]
    assert Plan(2, {"filter": 3}).processes(COSTS) == 12


def test_cores_that_are_halves_of_one_take_longer_for_the_work_and_not_for_the_hand_over() -> None:
    found = predict(COSTS, Machine(2, 1e12, 10_000, slowdown=1.5), Plan(block_packets=1000))
    assert found.cpu_ns == pytest.approx(1.5 * 140 + 4 * 10)
    assert (found.limit, found.packets_per_s) == ("cores", pytest.approx(2e9 / 250))
