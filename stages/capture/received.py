"""What a tunnel input has taken from its sockets, in shared memory: so that the next worker counts what this one had and did not publish.

received-LANE:  (SOCKET | mmsghdr[VECTORS] ...)[FAMILIES] | DROPS[FAMILIES]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from broker.core.shm import map_file
from stages.capture.endpoint_kernels import LEN, MMSGHDR_BYTES, NO_MESSAGE, SOCKET, VECTORS, VECTORS_BYTES

FAMILIES = 2
DROPS = np.dtype(
    [
        ("identity", "<i8"),  # of the socket
        ("base", "<i8"),  # the total when it was opened
        ("total", "<i8"),  # datagrams dropped by the kernel at all sockets there were
        ("stopped", "<i8"),  # 1: it rejects everything, and its drops are no loss
    ]
)
_BITS32 = 0xFFFF_FFFF


class Received:
    """Of one lane. `sockets`: SOCKET[FAMILIES], `vectors`: uint8[FAMILIES, VECTORS_BYTES]; kernels use both."""

    def __init__(self, directory: Path, lane: int) -> None:
        """PipelineError in words when there is no room for it."""
        path = directory / f"received-{lane}"
        sockets = FAMILIES * SOCKET.itemsize
        vectors = sockets + FAMILIES * VECTORS_BYTES
        size = vectors + FAMILIES * DROPS.itemsize
        memory = map_file(path) if path.exists() else map_file(path, size=size, create=True)
        self.sockets = memory[:sockets].view(SOCKET)
        self.vectors = memory[sockets:vectors].reshape(FAMILIES, VECTORS_BYTES)
        self._drops = memory[vectors:size].view(DROPS)
        self._settle()

    def _settle(self) -> None:
        """A call that was under way when a worker died: the kernel has given a length to each message that it took out of the socket."""
        lengths = self.vectors[:, : VECTORS * MMSGHDR_BYTES].view("<u4")[:, LEN // 4 :: MMSGHDR_BYTES // 4]
        for row, of_it in zip(self.sockets, lengths, strict=True):
            if row["receiving"]:
                row["received"] = row["before"] + np.count_nonzero(of_it != NO_MESSAGE)
                row["receiving"] = 0
            row["got"] = row["done"] = 0

    @property
    def datagrams(self) -> int:
        """Taken from the sockets, by all workers there were."""
        return int(self.sockets["received"].sum())

    @property
    def dropped(self) -> int:
        """By the kernel, at all sockets there were, as of the last reading."""
        return int(self._drops["total"].sum())

    def opened(self, family: int, identity: int, now: int) -> None:
        """A socket is in use; `now`: its own count of drops, 32 bits. One that another worker had counts on."""
        row = self._drops[family]
        if int(row["identity"]) != identity:
            row["base"] = row["total"]
            row["identity"] = identity
        elif row["stopped"]:
            row["base"] = int(row["total"]) - now
        row["stopped"] = 0

    def stopped(self, family: int) -> None:
        self._drops[family]["stopped"] = 1

    def read(self, family: int, now: int) -> None:
        """`now`: the socket's own count of drops, 32 bits."""
        row = self._drops[family]
        known = int(row["total"]) - int(row["base"])
        row["total"] = int(row["total"]) + ((now - known) & _BITS32)
