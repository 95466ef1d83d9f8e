"""The table of `standing`, row by row; then whole stories, told by a twin that looks back at all that has been."""

from __future__ import annotations

import random

import pytest

from broker.core.layout import TOOL_ALIVE, TOOL_DEAD, TOOL_UNASKED
from broker.supervisor.probes.standing import Standing, judge


@pytest.mark.parametrize(
    ("state", "against", "answered", "becomes"),
    [
        (TOOL_UNASKED, 0, True, Standing(TOOL_ALIVE)),
        (TOOL_UNASKED, 2, True, Standing(TOOL_ALIVE)),
        (TOOL_UNASKED, 0, False, Standing(TOOL_UNASKED, 1)),
        (TOOL_UNASKED, 2, False, Standing(TOOL_DEAD)),
        (TOOL_ALIVE, 0, True, Standing(TOOL_ALIVE)),
        (TOOL_ALIVE, 2, True, Standing(TOOL_ALIVE)),
        (TOOL_ALIVE, 0, False, Standing(TOOL_ALIVE, 1)),
        (TOOL_ALIVE, 1, False, Standing(TOOL_ALIVE, 2)),
        (TOOL_ALIVE, 2, False, Standing(TOOL_DEAD)),
        (TOOL_DEAD, 0, False, Standing(TOOL_DEAD)),
        (TOOL_DEAD, 2, False, Standing(TOOL_DEAD)),
        (TOOL_DEAD, 0, True, Standing(TOOL_DEAD, 1)),
        (TOOL_DEAD, 2, True, Standing(TOOL_ALIVE)),
    ],
)
def test_each_row_of_the_table_with_three_in_a_row(state: int, against: int, answered: bool, becomes: Standing) -> None:
    assert judge(Standing(state, against), answered, 3) == becomes


def test_with_one_in_a_row_it_is_what_the_last_probe_said() -> None:
    standing = Standing()
    for answered in (False, True, True, False, False, True):
        standing = judge(standing, answered, 1)
        assert standing.state == (TOOL_ALIVE if answered else TOOL_DEAD)


@pytest.mark.parametrize("fail_after", [1, 2, 3, 5])
def test_a_state_changes_when_the_last_probes_were_all_against_it_and_only_then(fail_after: int) -> None:
    rng = random.Random(fail_after)
    standing, story, state = Standing(), [], TOOL_UNASKED
    for _ in range(3000):
        story.append(rng.random() < 0.5)
        standing = judge(standing, story[-1], fail_after)
        last = story[-fail_after:]
        if state == TOOL_UNASKED and story[-1]:
            state = TOOL_ALIVE
        elif len(last) == fail_after and not any(last):
            state = TOOL_DEAD
        elif len(last) == fail_after and all(last):
            state = TOOL_ALIVE
        assert standing.state == state
