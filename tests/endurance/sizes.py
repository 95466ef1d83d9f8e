"""How much an endurance test does: bounded in CI, at length behind `make endurance`, and what TAPMESH_N_<NAME> says before both."""

from __future__ import annotations

import os
import random

LONG = os.environ.get("TAPMESH_LENGTH") == "1"


def size(name: str, ci: int, length: int) -> int:
    given = os.environ.get(f"TAPMESH_N_{name.upper()}")
    if given:
        return int(given)
    return length if LONG else ci


def seed() -> int:
    """TAPMESH_SEED, or another one each time. Print it: it is what repeats a failure."""
    return int(os.environ.get("TAPMESH_SEED") or random.SystemRandom().randrange(1 << 32))
