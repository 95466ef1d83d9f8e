"""Sampling keeps what arithmetic says, the same everywhere; buckets are exact to the nanosecond, against fractions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from stages import memory
from stages.encapsulate.limit import (
    MAX_BURST,
    MAX_RATE,
    admit_packet,
    make_limiter,
)
from stages.jit import PLAIN
from stages.wire.sampling import MAX_ONE_IN, sample_flow, sample_packet, sampling_key
from tests import packets as p
from tests.again import run_plain
from tests.stages.wire.reading import Reader

SECOND_NS = 1_000_000_000
NOON_NS = 1_700_000_000_000_000_000
KEY, OTHER = sampling_key("fleet"), sampling_key("another fleet")
N_FLOWS = 2_000 if PLAIN else 200_000


@pytest.fixture(autouse=True)
def _no_regions_left() -> Iterator[None]:
    yield
    memory.forbid_all()


def flows(n: int) -> list[int]:
    """All different."""
    return random.Random(1).sample(range(1 << 32), n)


def test_a_flow_is_kept_in_both_directions_with_or_without_a_tag() -> None:
    made = []
    for n in range(300):
        for ends in (("10.0.0.1", "10.0.0.2"), ("fe80::1", "fe80::2")):
            for one, two, port, other in ((*ends, 1000 + n, 443), (ends[1], ends[0], 443, 1000 + n)):
                made += [p.tcp_frame(one, port, two, other, b"x", vlans=vlans) for vlans in ((), (5,))]
    rows = Reader(allow=memory.allow).read(*made)
    kept = [sample_flow(int(row["flow"]), KEY, 4) for row in rows]
    groups = [kept[at : at + 4] for at in range(0, len(kept), 4)]
    assert all(len(set(group)) == 1 for group in groups)
    assert 0.15 < sum(kept) / len(kept) < 0.35


def test_known_flows_are_kept_by_every_version_of_this_agent() -> None:
    """Agents of different versions must agree: these values are written down, not computed."""
    assert sampling_key("fleet") == 3_411_871_530_693_333_310
    assert [flow for flow in range(60) if sample_flow(flow, KEY, 10)] == [16, 26, 32, 36, 37, 45, 49, 50]


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000])
def test_one_flow_in_n_is_kept_and_a_smaller_sample_lies_within_a_larger(n: int) -> None:
    kept = {flow for flow in flows(N_FLOWS) if sample_flow(flow, KEY, n)}
    expected = N_FLOWS / n
    assert abs(len(kept) - expected) <= (5 * expected**0.5 if n > 1 else 0)
    assert all(sample_flow(flow, KEY, max(n // 2, 1)) for flow in kept)


def test_another_key_keeps_other_flows() -> None:
    some = flows(N_FLOWS)
    both = sum(sample_flow(flow, KEY, 10) & sample_flow(flow, OTHER, 10) for flow in some)
    assert abs(both - N_FLOWS / 100) <= 5 * (N_FLOWS / 100) ** 0.5
    assert [sample_flow(flow, KEY, MAX_ONE_IN) for flow in some[:100]] == [0] * 100


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_exactly_one_of_each_n_packets_is_kept_at_no_fixed_place(n: int) -> None:
    kept = [number for number in range(100 * n) if sample_packet(number, KEY, n)]
    assert [number // n for number in kept] == list(range(100))
    assert n == 1 or len({number % n for number in kept}) > min(n, 10) // 2
    assert kept == [number for number in range(100 * n) if sample_packet(number, KEY, n)], "again the same"


class Bucket:
    """The leak as it is told, in fractions."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate, self.burst, self.level, self.then = rate, burst, Fraction(0), 0

    def leak(self, now: int) -> Fraction:
        passed = now - self.then
        if passed > 0:
            self.level, self.then = max(self.level - Fraction(passed * self.rate, SECOND_NS), Fraction(0)), now
        elif -passed > self.burst * SECOND_NS // self.rate + 1:
            self.then = now
        return self.level


def admitted(limiter: np.ndarray, now_ns: int, n_bits: int) -> int:
    memory.forbid_all()
    memory.allow(int(limiter.ctypes.data), limiter.nbytes)
    return admit_packet(int(limiter.ctypes.data), now_ns, n_bits)


@pytest.mark.parametrize("seed", range(12))
def test_buckets_agree_with_fractions_at_any_rate_and_with_clocks_that_jump(seed: int) -> None:
    chosen = random.Random(seed)
    rates, bursts = (
        [chosen.choice((1, 3, 999, 7_777_777, MAX_RATE)) for _ in range(2)],
        [chosen.choice((1, 5, 12_000, MAX_BURST)) for _ in range(2)],
    )
    limiter, buckets = make_limiter(rates[0], bursts[0], rates[1], bursts[1]), [Bucket(*both) for both in zip(rates, bursts, strict=True)]
    now = NOON_NS
    n_admitted = 0
    for _ in range(300 if PLAIN else 5_000):
        now += chosen.choice((0, 1, 17, 1_000, SECOND_NS // 3, 10 * SECOND_NS, -5, -1_000, -100 * SECOND_NS))
        n_bits = chosen.choice((1, 5, 480, 12_112))
        expected = int(buckets[0].leak(now) + 1 <= bursts[0] and buckets[1].leak(now) + n_bits <= bursts[1])
        if expected:
            buckets[0].level += 1
            buckets[1].level += n_bits
        assert admitted(limiter, now, n_bits) == expected
        n_admitted += expected
    assert n_admitted


def test_a_rate_is_met_exactly_over_a_long_time() -> None:
    """A 333rd of a second is no whole number of nanoseconds: a rounded leak would drift."""
    limiter, n = make_limiter(packets_per_s=333, burst_packets=2), 0
    for step in range(3_000 if PLAIN else 300_000):
        passed_ns = step * 100_000
        n += admitted(limiter, NOON_NS + passed_ns, 8)
        assert n == (min(step + 1, 2 + 333 * passed_ns // SECOND_NS))


def test_a_burst_passes_at_once_and_then_the_rate_does() -> None:
    limiter = make_limiter(packets_per_s=10, burst_packets=4)
    assert [admitted(limiter, NOON_NS, 8) for _ in range(6)] == [1, 1, 1, 1, 0, 0]
    assert admitted(limiter, NOON_NS + SECOND_NS // 10 - 1, 8) == 0
    assert admitted(limiter, NOON_NS + SECOND_NS // 10, 8) == 1
    assert admitted(limiter, NOON_NS + SECOND_NS // 10, 8) == 0
    assert [admitted(limiter, NOON_NS + 5 * SECOND_NS, 8) for _ in range(6)] == [1, 1, 1, 1, 0, 0]


def test_a_refused_packet_takes_nothing_from_the_other_bucket() -> None:
    limiter = make_limiter(packets_per_s=1, burst_packets=2, bits_per_s=1000, burst_bits=1000)
    assert [admitted(limiter, NOON_NS, bits) for bits in (900, 900, 900, 100, 0)] == [1, 0, 0, 1, 0]
    assert limiter["level"].tolist() == [2 * SECOND_NS, 1000 * SECOND_NS]


def test_no_limit_is_no_limit_and_what_never_fits_never_passes() -> None:
    assert all(admitted(make_limiter(), now, 1 << 30) for now in (0, NOON_NS, -5))
    limiter = make_limiter(bits_per_s=MAX_RATE, burst_bits=1000)
    assert [admitted(limiter, NOON_NS + n, 1001) for n in range(5)] == [0] * 5


@pytest.mark.parametrize(
    "wrong", [{"packets_per_s": -1}, {"bits_per_s": MAX_RATE + 1}, {"burst_packets": 0}, {"burst_bits": MAX_BURST + 1}]
)
def test_a_limit_out_of_range_is_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_limiter(**wrong)


@pytest.mark.skipif(PLAIN, reason="this is the plain run")
def test_plain_kernels_do_the_same_within_bounds() -> None:
    run_plain(__file__)
