"""What a cliff is: a point against the one a decade before."""

from __future__ import annotations

from bench.growth import grown


def test_a_point_is_compared_with_the_last_one_a_decade_before() -> None:
    assert grown([(1, 2.0), (10, 3.0), (100, 12.0), (1_000, 12.0)]) == [1.0, 1.5, 4.0, 1.0]


def test_where_no_point_is_a_decade_before_it_is_the_first() -> None:
    """Steps smaller than a decade do not hide a cliff between them."""
    assert grown([(1, 1.0), (2, 2.0), (4, 4.0), (8, 8.0), (16, 16.0)]) == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert grown([(1, 1.0), (4, 2.0), (16, 2.0), (64, 8.0)]) == [1.0, 2.0, 2.0, 4.0]
