"""What can be wrong with an expression or a policy."""

from __future__ import annotations


class PolicyError(ValueError):
    """`offset`: characters from the start of the expression to the word that is wrong; -1: the policy as a whole, no expression."""

    def __init__(self, message: str, offset: int = -1) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
