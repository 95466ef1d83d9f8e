"""Sort a block's frames by tool, hand them to a socket.

Frames are checked once, by `sort_frames`, before anything follows the offsets in them.

JOB is private memory, a row for the socket in hand; VECTORS is ``mmsghdr[64]`` and then ``iovec[64][2]`` (bits/socket.h, bits/uio.h):
outer header, then the window of the packet.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

import numpy as np

from broker.core import layout
from broker.core.batch import BATCH
from broker.core.layout import MAX_FRAME_BYTES, TOOLS
from broker.core.metrics import index
from stages.jit import kernel
from stages.memory import add64, load16, load32, load64, store32, store64
from stages.send.libc import errno_location, sendmmsg

JOB = np.dtype(
    [
        (name, "<i8")
        for name in (
            "fd",
            "skip",  # bytes of the outer header that the kernel writes itself
            "counters_at",  # of the tool's slot 0 counter: counters + 8 * slot
            "reasons_at",  # int64[N_REASONS]: errno -> index of a counter
            "vectors_at",
            "progress_at",  # shared
            "progress",  # what is stored there before the first of `rows` is handed over
            "rows_at",  # uint32[n_rows]: positions in FRAME
            "n_rows",
            "done",  # how many of them are delivered or counted
            "failures",  # refusals in a row that were not about the one frame; goes on from block to block
            "frames_at",
            "headers_at",
            "data_at",
        )
    ]
)
VECTORS = 64  # datagrams a call: more are no faster
N_REASONS = 256  # errnos; Linux has fewer
MMSGHDR_BYTES, IOVEC_BYTES = 64, 16
VECTORS_BYTES = VECTORS * (MMSGHDR_BYTES + 2 * IOVEC_BYTES)
GIVE_UP_AFTER = 16


def offset_of(dtype: np.dtype[Any], field: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[field][1])


_N_PACKETS, _N_FRAMES = (offset_of(layout.BLOCK, f) for f in ("n_packets", "n_frames"))
_FRAME_BYTES = layout.FRAME.itemsize
_PACKET, _TOOL, _HEADER_LEN, _HEADER_AT, _DATA_AT, _DATA_LEN, _SHARE = (
    offset_of(layout.FRAME, f) for f in ("packet", "tool", "header_len", "header_at", "data_at", "data_len", "share")
)
_JOB = tuple(offset_of(JOB, f) for f in JOB.names or ())
_FD, _SKIP, _COUNTERS_AT, _REASONS_AT, _VECTORS_AT, _PROGRESS_AT, _PROGRESS = _JOB[:7]
_ROWS_AT, _N_ROWS, _DONE, _FAILURES, _FRAMES_AT, _HEADERS, _DATA = _JOB[7:]

_DAMAGED, _DELIVERED_FRAMES, _DELIVERED_BYTES, _UNHEARD, _OTHER = (
    index("send", name) for name in ("dropped_damaged_frame", "delivered_frames", "delivered_bytes", "unheard_reports", "dropped_other")
)

_BATCH_BLOCK, _BATCH_FRAMES, _BATCH_MAX_PACKETS, _BATCH_MAX_FRAMES, _BATCH_HEADER_BYTES, _BATCH_WINDOW_BYTES = (
    offset_of(BATCH, f) for f in ("block_at", "frames_at", "max_packets", "max_frames", "header_bytes", "window_bytes")
)

_IOVECS = VECTORS * MMSGHDR_BYTES
_MSG_LEN = 56  # in mmsghdr, after msghdr
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_EINTR, _EMSGSIZE = errno.EINTR, errno.EMSGSIZE
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


SORT = np.dtype(
    [
        (name, "<i8")
        for name in (
            "worker", "n_workers",
            "mine_at",  # int64[max_frames]: scratch
            "rows_at",  # uint32[max_frames]: positions in FRAME, tool after tool in slot order
            "counts_at",  # int64[2, TOOLS]: how many of each tool; where in `rows` they end
            "found_at",  # int64[TOOLS, 3]: slot, first of its rows, how many
            "counters_at",  # int64[N_COUNTERS]
        )
    ]
)  # fmt: skip
"""The frames of a worker, sorted by tool. Private memory; *written* by `sort_frames`: what all but the last address point to."""
_WORKER, _N_WORKERS, _MINE_AT, _SORTED_AT, _COUNTS_AT, _FOUND_AT, _ALL_COUNTERS = (offset_of(SORT, f) for f in SORT.names or ())
FOUND_BYTES = 24


@kernel
def sort_frames(batch: int, sort: int) -> int:
    """The frames of this worker by tool, in the order of the block within each. `batch`: BATCH, `sort`: SORT. Returns how many tools have
    any: the rows of `found`."""
    block_at, frames_at, max_frames = load64(batch + _BATCH_BLOCK), load64(batch + _BATCH_FRAMES), load64(batch + _BATCH_MAX_FRAMES)
    header_bytes, data_bytes = load64(batch + _BATCH_HEADER_BYTES), load64(batch + _BATCH_WINDOW_BYTES)
    worker, n_workers, counters_at = load64(sort + _WORKER), load64(sort + _N_WORKERS), load64(sort + _ALL_COUNTERS)
    mine_at, rows_at, counts_at = load64(sort + _MINE_AT), load64(sort + _SORTED_AT), load64(sort + _COUNTS_AT)
    n_packets = min(max(load64(block_at + _N_PACKETS), 0), load64(batch + _BATCH_MAX_PACKETS))
    n_frames = min(max(load64(block_at + _N_FRAMES), 0), max_frames)
    ends_at, found, n_found = counts_at + 8 * TOOLS, load64(sort + _FOUND_AT), 0
    for tool in range(TOOLS):
        store64(counts_at + 8 * tool, 0)
    n_mine = 0
    for f in range(n_frames):
        frame = frames_at + f * _FRAME_BYTES
        if n_workers > 1 and load32(frame + _SHARE) % n_workers != worker:
            continue
        tool = load16(frame + _TOOL)
        headers_end = load32(frame + _HEADER_AT) + load16(frame + _HEADER_LEN)
        data_end = load32(frame + _DATA_AT) + load32(frame + _DATA_LEN)
        too_long = load32(frame + _DATA_LEN) > MAX_FRAME_BYTES
        if tool >= TOOLS or load32(frame + _PACKET) >= n_packets or headers_end > header_bytes or data_end > data_bytes or too_long:
            add64(counters_at + 8 * (_DAMAGED + tool % TOOLS), 1)
            continue
        add64(counts_at + 8 * tool, 1)
        store64(mine_at + 8 * n_mine, tool << 32 | f)
        n_mine += 1
    at = 0
    for tool in range(TOOLS):
        store64(ends_at + 8 * tool, at)
        n = load64(counts_at + 8 * tool)
        if n > 0:
            store64(found, tool)
            store64(found + 8, at)
            store64(found + 16, n)
            found += FOUND_BYTES
            n_found += 1
        at += n
    for k in range(n_mine):
        entry = load64(mine_at + 8 * k)
        end = ends_at + 8 * (entry >> 32)
        store32(rows_at + 4 * load64(end), entry)
        add64(end, 1)
    return n_found


@kernel
def fill_vectors(job: int, first: int, n: int) -> None:
    """Point the iovecs at the `n` frames from row `first` on."""
    rows_at, skip, iovec = load64(job + _ROWS_AT), load64(job + _SKIP), load64(job + _VECTORS_AT) + _IOVECS
    frames_at, headers_at, data_at = load64(job + _FRAMES_AT), load64(job + _HEADERS), load64(job + _DATA)
    for k in range(first, first + n):
        frame = frames_at + load32(rows_at + 4 * k) * _FRAME_BYTES
        store64(iovec, headers_at + load32(frame + _HEADER_AT) + skip)
        store64(iovec + 8, load16(frame + _HEADER_LEN) - skip)
        store64(iovec + 16, data_at + load32(frame + _DATA_AT))
        store64(iovec + 24, load32(frame + _DATA_LEN))
        iovec += 2 * IOVEC_BYTES


@kernel
def send_frames(job: int) -> int:
    """Hand the rows from `done` on to the socket until all are delivered or counted (0), or until the caller must decide (an errno).

    sendmmsg stops at the first frame that is refused; the number it returns hides why, and the next call says it or goes on (sendmmsg(2)).

    | errno for the first frame | then |
    |---|---|
    | EINTR | again |
    | EAGAIN, ENOBUFS, ENOMEM | returned: the caller waits or drops |
    | EMSGSIZE, twice | that frame is counted and skipped |
    | another, twice | the same; returned after GIVE_UP_AFTER in a row: it is not the frame's fault |

    Twice, because a socket that is connected hands out what ICMP said about an *earlier* frame at the next send, instead of sending
    (sock_alloc_send_pskb takes sk_err first, net/core/sock.c). The frame in hand is then sent by the second call, and nothing is lost
    but a system call; it is counted in unheard_reports. A short count which the next call does not explain was such a report too.
    """
    fd, vectors_at, skip = load64(job + _FD), load64(job + _VECTORS_AT), load64(job + _SKIP)
    progress_at, progress = load64(job + _PROGRESS_AT), load64(job + _PROGRESS)
    counters, n_rows, done = load64(job + _COUNTERS_AT), load64(job + _N_ROWS), load64(job + _DONE)
    stopped = 0  # the last call stopped before its end, and nothing has said why yet
    refused = 0  # the last call refused the first frame
    failures = load64(job + _FAILURES)
    answer = 0
    while done < n_rows and answer == 0:
        n = min(n_rows - done, VECTORS)
        fill_vectors(job, done, n)
        store64(progress_at, max(load64(progress_at), progress + done + n))  # a block done again may end even earlier
        sent = int(sendmmsg(fd, vectors_at, n, _FLAGS))
        reason = load32(errno_location())  # before anything else can change it
        if sent > 0:
            n_bytes = sent * skip
            for k in range(sent):
                n_bytes += load32(vectors_at + k * MMSGHDR_BYTES + _MSG_LEN)
            add64(counters + 8 * _DELIVERED_FRAMES, sent)
            add64(counters + 8 * _DELIVERED_BYTES, n_bytes)
            if stopped or refused:
                add64(counters + 8 * _UNHEARD, 1)
            stopped = 1 if sent < n else 0
            refused = failures = 0
            done += sent
        elif reason == _EINTR:
            continue
        elif reason in _FULL:
            answer = reason
        elif refused == 0:
            refused = 1
        else:
            counter = load64(load64(job + _REASONS_AT) + 8 * reason) if reason < N_REASONS else _OTHER
            add64(counters + 8 * counter, 1)
            done += 1
            stopped = refused = 0
            if reason != _EMSGSIZE:
                failures += 1
                if failures >= GIVE_UP_AFTER:
                    answer = reason
                    failures = 0
    store64(job + _DONE, done)
    store64(job + _FAILURES, failures)
    return answer
