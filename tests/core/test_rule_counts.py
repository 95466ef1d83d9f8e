"""The file of a generation's rule counts: what is in it, which half is valid, and what is told when it is not one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from broker.core.errors import PipelineError
from broker.core.rule_counts import COUNTS, Halves, create_rule_counts, file_bytes, half_bytes, open_rule_counts


def halves(n_rules: int = 2) -> Halves:
    return Halves(np.zeros(2 * half_bytes(n_rules), np.uint8), n_rules)


@pytest.mark.parametrize(
    ("below", "cursor", "expected"),
    [
        ((5, 6), 6, 1),
        ((7, 6), 6, 1),  # the next block is being counted
        ((7, 6), 7, 0),  # and has been published
        ((7, 8), 9, 1),  # other generations have gone on
        ((9, 8), 8, 1),  # its worker died in block 8
    ],
)
def test_valid_is_the_newer_half_that_the_cursor_has_reached(below: tuple[int, int], cursor: int, expected: int) -> None:
    found = halves()
    found.below[:] = below
    assert found.valid(cursor) == expected


def test_what_was_copied_while_the_cursor_moved_is_read_again() -> None:
    """The worker publishes two blocks while it is read: the half that was valid is another then."""
    found, cursors = halves(), iter([3, 5, 5, 5])
    found.below[:] = (3, 2)

    def cursor() -> int:
        now = next(cursors)
        found.below[:] = (now, now - 1) if now == 3 else (now - 2, now)
        found.rows["packets"][:] = [[3, 3], [now, now]]
        return now

    assert found.read(cursor).tolist() == [[5, 0, 0], [5, 0, 0]]
    assert next(cursors, None) is None


def test_where_the_cursor_never_stands_still_something_is_read_all_the_same() -> None:
    found, cursors = halves(), itertools.count()
    found.rows["bytes"][:] = 7
    assert found.read(lambda: next(cursors)).tolist() == [[0, 7, 0], [0, 7, 0]]


def test_every_worker_has_its_own_slice(tmp_path: Path) -> None:
    create_rule_counts(tmp_path, 3, n_rules=5, n_lanes=2, n_filter=3)
    written = open_rule_counts(tmp_path, 3, writable=True)
    for lane in range(2):
        for worker in range(3):
            mine = written.of_worker(lane, worker)
            assert not mine.rows["packets"].any()
            mine.below[:] = 1
            mine.rows["packets"][:] = 10 * lane + worker
    read = open_rule_counts(tmp_path, 3)
    found = [read.of_worker(lane, worker).read(lambda: 1)[:, 0].tolist() for lane in range(2) for worker in range(3)]
    assert found == [[n] * 5 for n in (0, 1, 2, 10, 11, 12)]
    assert (tmp_path / "rules-3").stat().st_size == file_bytes(5, 2, 3)


def test_a_policy_without_rules_has_counts_of_none(tmp_path: Path) -> None:
    create_rule_counts(tmp_path, 1, 0, 1, 1)
    assert open_rule_counts(tmp_path, 1).of_worker(0, 0).read(lambda: 0).shape == (0, len(COUNTS))


def test_what_a_dead_supervisor_left_under_the_number_does_not_count(tmp_path: Path) -> None:
    create_rule_counts(tmp_path, 1, 2, 1, 1)
    open_rule_counts(tmp_path, 1, writable=True).of_worker(0, 0).rows["packets"][:] = 9
    create_rule_counts(tmp_path, 1, 3, 1, 1)
    assert open_rule_counts(tmp_path, 1).of_worker(0, 0).read(lambda: 0).tolist() == [[0, 0, 0]] * 3


@pytest.mark.parametrize(("content", "words"), [(b"short", "no counts of rules"), (bytes(4096), "no counts of rules")])
def test_a_file_that_is_none_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "rules-1").write_bytes(content)
    with pytest.raises(PipelineError, match=words):
        open_rule_counts(tmp_path, 1)


def test_a_file_that_was_cut_is_told(tmp_path: Path) -> None:
    create_rule_counts(tmp_path, 1, 2, 1, 1)
    with (tmp_path / "rules-1").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(PipelineError, match="200 bytes, expected 320"):
        open_rule_counts(tmp_path, 1)
    with pytest.raises(PipelineError, match="rules-2: No such file"):
        open_rule_counts(tmp_path, 2)
