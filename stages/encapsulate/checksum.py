"""Internet checksums, from `wire`: senders write them, receivers verify them."""

from __future__ import annotations

from stages.wire.checksum import fold, sum_words

__all__ = ["fold", "sum_words"]
