"""What is known of a tool, and what a probe makes of it. Pure.

| known | probe | in a row | becomes |
|---|---|---|---|
| not asked | answered | 1 | alive |
| not asked, alive | not answered | fewer than `fail_after` | the same |
| not asked, alive | not answered | `fail_after` | dead |
| alive | answered | any | alive; failures are counted anew |
| dead | answered | fewer than `fail_after` | dead |
| dead | answered | `fail_after` | alive |
| dead | not answered | any | dead; answers are counted anew |

A dead tool has to answer as often as a living one has to fail: one that answers now and then does not make flows go to and fro.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.layout import TOOL_ALIVE, TOOL_DEAD, TOOL_UNASKED


@dataclass(frozen=True, slots=True)
class Standing:
    state: int = TOOL_UNASKED
    against: int = 0  # probes in a row that said otherwise


def judge(before: Standing, answered: bool, fail_after: int) -> Standing:
    if before.state == TOOL_UNASKED and answered:
        return Standing(TOOL_ALIVE)
    if answered == (before.state != TOOL_DEAD):
        return Standing(before.state)
    if before.against + 1 < fail_after:
        return Standing(before.state, before.against + 1)
    return Standing(TOOL_ALIVE if answered else TOOL_DEAD)
