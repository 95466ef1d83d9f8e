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

import errno
import os
from typing import Any

import numpy as np

from broker.core import layout
from broker.core.batch import Batch
from broker.core.model import Tool
from broker.core.stage import Context
from broker.privileges.asking import open_tap
from stages.jit import kernel
from stages.memory import add64, load16, load32, load64, store64
from stages.send import kernels
from stages.send.egress import DELIVERED_BYTES, DELIVERED_FRAMES, OPENING, OTHER, SENDING, Notices, Retry, Scratch
from stages.send.libc import errno_location, writev

_EINTR = errno.EINTR

assert layout.FRAME.fields is not None
_FRAME_BYTES = layout.FRAME.itemsize
_HEADER_AT, _HEADER_LEN, _DATA_AT, _DATA_LEN = (layout.FRAME.fields[f][1] for f in ("header_at", "header_len", "data_at", "data_len"))


@kernel
def write_frames(
    fd: int, block_at: int, rows_at: int, n_rows: int, vectors_at: int, reasons_at: int, counters_at: int, progress_at: int, progress: int
) -> int:
    """Write the frames of `rows` (uint32[n_rows]) one by one; each is delivered or counted by its errno (`reasons`, as for sockets).
    Returns the last errno; 0: all were taken.

    `block_at`: int64[3], where FRAME, headers and data lie; `vectors_at`: room for two iovecs.
    """
    frames_at, headers_at, data_at = load64(block_at), load64(block_at + 8), load64(block_at + 16)
    last = 0
    for k in range(n_rows):
        frame = frames_at + load32(rows_at + 4 * k) * _FRAME_BYTES
        header_len, data_len = load16(frame + _HEADER_LEN), load32(frame + _DATA_LEN)
        store64(vectors_at, headers_at + load32(frame + _HEADER_AT))
        store64(vectors_at + 8, header_len)
        store64(vectors_at + 16, data_at + load32(frame + _DATA_AT))
        store64(vectors_at + 24, data_len)
        store64(progress_at, max(load64(progress_at), progress + k + 1))
        number = _EINTR
        while number == _EINTR:
            number = 0 if int(writev(fd, vectors_at, 2)) >= 0 else load32(errno_location())
        if number == 0:
            add64(counters_at + 8 * DELIVERED_FRAMES, 1)
            add64(counters_at + 8 * DELIVERED_BYTES, header_len + data_len)
        else:
            last = number
            add64(counters_at + 8 * (load64(reasons_at + 8 * number) if number < kernels.N_REASONS else OTHER), 1)
    return last


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
