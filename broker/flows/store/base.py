"""What every store can do, and how it says that it cannot now."""

from __future__ import annotations

from typing import Protocol

from broker.core.errors import TapmeshError
from broker.flows.segments import Header, Rows, Segment


class StoreError(TapmeshError):
    """It did not take the segment, and may do so later: it is down, full, or does not answer."""


class StoreFullError(StoreError):
    """It has no room on disk for the segment. Asking again costs next to nothing until there is more."""


class StoreBackend(Protocol):
    """TapmeshError when made with what it cannot work with; it connects later."""

    def put(self, segment: Segment, header: Header, rows: Rows) -> int:
        """Store all rows, durably; how many bytes that took. The same segment may come again, after whatever had happened to the attempt
        before: each row is stored once. StoreError when it was not."""

    def tend(self) -> None:
        """Housekeeping, when no segment waits. StoreError when it could not be done."""

    def close(self) -> None: ...

    @property
    def held_bytes(self) -> int:
        """That it holds; 0 if it does not know."""
        return 0

    @property
    def expired_records(self) -> int:
        """That it has removed because of their age, or for want of room, since it was made."""
        return 0
