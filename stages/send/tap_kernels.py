"""Frames of a block -> a tap device, one system call each."""

from __future__ import annotations

import errno

from broker.core import layout
from stages.jit import kernel
from stages.memory import add64, load16, load32, load64, store64
from stages.send import kernels
from stages.send.egress import DELIVERED_BYTES, DELIVERED_FRAMES, OTHER
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
