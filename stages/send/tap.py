"""Frames onto a tap device: whoever captures on it, an IDS say, sees them come in (Documentation/networking/tuntap.rst).

The device is made here, is there as long as this worker or another process holds it, and is brought up without addresses, ARP
and IPv6, so that this host answers nothing. It can be made before, persistent (`ip tuntap add NAME mode tap`); then it stays.

| what happens | then |
|---|---|
| it cannot be made or is held by another | frames are counted in dropped_tool_down or dropped_forbidden; tried again later |
| it is brought down | frames are counted in dropped_disk: the kernel says EIO |
| a frame is longer than the kernel takes | counted by its errno |

The kernel never says that whoever captures there is too slow: its own counters do.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from broker.core.batch import Batch
from broker.core.model import Tool
from broker.core.stage import Context
from broker.privileges.asking import open_tap
from stages.send.egress import OPENING, SENDING, Notices, Retry, Scratch
from stages.send.tap_kernels import write_frames


class TapEgress:
    """One tool's tap device."""

    repeats = True

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any) -> None:
        self.tool = tool
        self._counters = context.counters[tool.slot :]
        self._counters_at = context.counters_at + 8 * tool.slot
        self._scratch = scratch
        self._reasons_at = int(SENDING.ctypes.data)
        self._notices = Notices(log, tool)
        self._retry = Retry()
        self._block, self._vectors = np.zeros(3, np.int64), np.zeros(4, np.int64)
        self._fd = -1
        self._down = 0  # the counter of frames that come while it is not open
        self._open()

    def _open(self) -> bool:
        try:
            self._fd = open_tap(self.tool.tap)
        except OSError as error:
            self._down = int(OPENING[error.errno or 0])
            self._retry.failed()
            self._notices.warn("tool_down", error.strerror or str(error), tap=self.tool.tap)
            return False
        self._retry.worked()
        self._notices.info("tool_opened", tap=self.tool.tap)
        return True

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        if self._fd < 0 and not (self._retry.due() and self._open()):
            self._counters[self._down] += n_rows
            return
        self._block[:] = batch.frames_at, batch.headers_at, batch.data_at
        number = write_frames(
            self._fd, int(self._block.ctypes.data), rows_at, n_rows, int(self._vectors.ctypes.data), self._reasons_at, self._counters_at,
            self._scratch.progress_at, progress,
        )  # fmt: skip
        if number:
            self._notices.warn("tool_refused", os.strerror(number), tap=self.tool.tap)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
