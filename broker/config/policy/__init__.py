"""The policy: what the operator's expressions say, and the image of it that the filter works by. Pure; see README.md beside this file.

`parse_expression` is for who wants to know whether an expression is right and what it says, `compile_policy` for who runs it.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.config.policy.compiler import compile_policy
from broker.config.policy.errors import PolicyError
from broker.config.policy.parser import parse
from broker.config.policy.sets import Elements, read_set
from broker.config.policy.tree import Node

__all__ = ["PolicyError", "compile_policy", "parse_expression", "read_sets"]

Sets = Mapping[str, tuple[str, ...]] | Mapping[str, Elements]


def read_sets(sets: Mapping[str, tuple[str, ...]]) -> dict[str, Elements]:
    """Sets as `parse_expression` wants them, read once for many expressions. PolicyError (offset -1) names the set and the element."""
    return {name: read_set(name, texts) for name, texts in sets.items()}


def parse_expression(text: str, sets: Sets) -> Node:
    """What the expression says. PolicyError carries the offset of the word that is wrong.

    `sets` as in the configuration or, faster for many expressions, as `read_sets` gives them.
    """
    return parse(text, {name: value if isinstance(value, Elements) else read_set(name, value) for name, value in sets.items()})
