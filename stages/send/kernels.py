"""Sort a block's frames by tool, hand them to a socket.

Frames are checked once, by `sort_frames`, before anything follows the offsets in them.

JOB is private memory, a row for the socket in hand. A *message* is what the kernel is handed at once: one frame, or a run of them that
it cuts into datagrams again (`runs`). Its memory is MESSAGES (bits/socket.h, bits/uio.h, udp(7)):

| part | of each message |
|---|---|
| ``mmsghdr[64]`` | |
| ``cmsghdr[64]`` | UDP_SEGMENT and the length of a segment |
| ``int64[64]`` | how many frames it has |
| ``iovec[576]`` | of each frame: outer header, window of the packet; before them, in a message of one frame, its lead |
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
from stages.memory import add64, load16, load32, load64, store16, store32, store64
from stages.send.libc import errno_location, sendmmsg

JOB = np.dtype(
    [
        (name, "<i8")
        for name in (
            "fd",
            "skip",  # bytes of the outer header that the kernel writes itself
            "counters_at",  # of the tool's slot 0 counter: counters + 8 * slot
            "reasons_at",  # int64[N_REASONS]: errno -> index of a counter
            "messages_at",
            "progress_at",  # shared
            "progress",  # what is stored there before the first of `rows` is handed over
            "rows_at",  # uint32[n_rows]: positions in FRAME
            "n_rows",
            "done",  # how many of them are delivered or counted
            "failures",  # refusals in a row that were not about the one frame; goes on from block to block
            "frames_at",
            "headers_at",
            "data_at",
            "lead_at",  # what each frame begins with that is not in the block: an Ethernet header
            "lead_len",
            "runs_at",  # RUN[]: which rows are one message; 0: each is one by itself
            "run",  # the first of them that is not done
            "alone",  # rows below this one go one by one: their run was refused
            "refusal",  # why: the errno of the last run that was refused, 0: none
        )
    ]
)
RUN = np.dtype([("fd", "<i8"), ("end", "<i8"), ("segment_len", "<i8")])
"""Rows from the end of the run before up to `end`, to one socket; each `segment_len` bytes, the last at most."""
MESSAGES = 64  # a call: more are no faster
MOST_IOVECS = 576  # a call: a few long runs
N_REASONS = 256  # errnos; Linux has fewer
MMSGHDR_BYTES, IOVEC_BYTES, CMSG_BYTES = 64, 16, 24
MESSAGES_BYTES = MESSAGES * (MMSGHDR_BYTES + CMSG_BYTES + 8) + MOST_IOVECS * IOVEC_BYTES
GIVE_UP_AFTER = 16


def offset_of(dtype: np.dtype[Any], field: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[field][1])


_N_PACKETS, _N_FRAMES = (offset_of(layout.BLOCK, f) for f in ("n_packets", "n_frames"))
FRAME_BYTES = layout.FRAME.itemsize
_PACKET, _TOOL, FRAME_HEADER_LEN, _HEADER_AT, _DATA_AT, FRAME_DATA_LEN, FRAME_SHARE = (
    offset_of(layout.FRAME, f) for f in ("packet", "tool", "header_len", "header_at", "data_at", "data_len", "share")
)
_JOB = tuple(offset_of(JOB, f) for f in JOB.names or ())
_FD, _SKIP, _COUNTERS_AT, _REASONS_AT, _MESSAGES_AT, _PROGRESS_AT, _PROGRESS = _JOB[:7]
_ROWS_AT, _N_ROWS, _DONE, _FAILURES, _FRAMES_AT, _HEADERS, _DATA = _JOB[7:14]
_LEAD_AT, _LEAD_LEN, _RUNS_AT, _RUN, _ALONE, _REFUSAL = _JOB[14:]
_RUN_BYTES = RUN.itemsize
_RUN_FD, _RUN_END, _RUN_SEGMENT_LEN = (offset_of(RUN, f) for f in ("fd", "end", "segment_len"))

_DAMAGED, _DELIVERED_FRAMES, _DELIVERED_BYTES, _UNHEARD, _OTHER = (
    index("send", name) for name in ("dropped_damaged_frame", "delivered_frames", "delivered_bytes", "unheard_reports", "dropped_other")
)

_BATCH_BLOCK, _BATCH_FRAMES, _BATCH_MAX_PACKETS, _BATCH_MAX_FRAMES, _BATCH_HEADER_BYTES, _BATCH_WINDOW_BYTES = (
    offset_of(BATCH, f) for f in ("block_at", "frames_at", "max_packets", "max_frames", "header_bytes", "window_bytes")
)

_CONTROLS = MESSAGES * MMSGHDR_BYTES
_N_FRAMES_OF = _CONTROLS + MESSAGES * CMSG_BYTES
_IOVECS = _N_FRAMES_OF + MESSAGES * 8
_MSG_IOV, _MSG_IOVLEN, _MSG_CONTROL, _MSG_CONTROLLEN = 16, 24, 32, 40
_MSG_LEN = 56  # in mmsghdr, after msghdr
_CMSG_DATA = 16
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
        frame = frames_at + f * FRAME_BYTES
        if n_workers > 1 and load32(frame + FRAME_SHARE) % n_workers != worker:
            continue
        tool = load16(frame + _TOOL)
        headers_end = load32(frame + _HEADER_AT) + load16(frame + FRAME_HEADER_LEN)
        data_end = load32(frame + _DATA_AT) + load32(frame + FRAME_DATA_LEN)
        too_long = load32(frame + FRAME_DATA_LEN) > MAX_FRAME_BYTES
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
def fill_messages(job: int, first: int) -> int:
    """Messages of the frames from row `first` on, which all go to `fd`: as many as a call takes. Returns how many frames these are; the
    number of each message stands in its place, and 0 behind the last."""
    rows_at, skip, messages = load64(job + _ROWS_AT), load64(job + _SKIP), load64(job + _MESSAGES_AT)
    frames_at, headers_at, data_at = load64(job + _FRAMES_AT), load64(job + _HEADERS), load64(job + _DATA)
    lead_at, lead_len = load64(job + _LEAD_AT), load64(job + _LEAD_LEN)
    runs_at, alone, n_rows, fd = load64(job + _RUNS_AT), load64(job + _ALONE), load64(job + _N_ROWS), load64(job + _FD)
    run = runs_at + load64(job + _RUN) * _RUN_BYTES
    iovec, last_iovec = messages + _IOVECS, messages + _IOVECS + MOST_IOVECS * IOVEC_BYTES
    row, m = first, 0
    while m < MESSAGES and row < n_rows:
        n = 1
        if runs_at:
            if load64(run + _RUN_FD) != fd:
                break
            if row >= alone:
                n = load64(run + _RUN_END) - row
        if iovec + (2 * n + 1) * IOVEC_BYTES > last_iovec:
            break
        message = messages + m * MMSGHDR_BYTES
        control = messages + _CONTROLS + m * CMSG_BYTES
        store64(message + _MSG_IOV, iovec)
        store64(message + _MSG_CONTROL, control if n > 1 else 0)
        store64(message + _MSG_CONTROLLEN, CMSG_BYTES if n > 1 else 0)
        store64(messages + _N_FRAMES_OF + 8 * m, n)
        n_iovecs = 2 * n
        if n > 1:
            store16(control + _CMSG_DATA, load64(run + _RUN_SEGMENT_LEN))
        elif lead_len:
            store64(iovec, lead_at)
            store64(iovec + 8, lead_len)
            iovec += IOVEC_BYTES
            n_iovecs = 3
        store64(message + _MSG_IOVLEN, n_iovecs)
        for k in range(row, row + n):
            frame = frames_at + load32(rows_at + 4 * k) * FRAME_BYTES
            store64(iovec, headers_at + load32(frame + _HEADER_AT) + skip)
            store64(iovec + 8, load16(frame + FRAME_HEADER_LEN) - skip)
            store64(iovec + 16, data_at + load32(frame + _DATA_AT))
            store64(iovec + 24, load32(frame + FRAME_DATA_LEN))
            iovec += 2 * IOVEC_BYTES
        row += n
        m += 1
        if runs_at and row >= load64(run + _RUN_END):
            run += _RUN_BYTES
    if m < MESSAGES:
        store64(messages + _N_FRAMES_OF + 8 * m, 0)
    return row - first


@kernel
def longest_frame(rows_at: int, n_rows: int, frames_at: int) -> int:
    """Bytes, outer header and all."""
    longest = 0
    for k in range(n_rows):
        frame = frames_at + load32(rows_at + 4 * k) * FRAME_BYTES
        longest = max(longest, load16(frame + FRAME_HEADER_LEN) + load32(frame + FRAME_DATA_LEN))
    return longest


@kernel
def find_run(job: int, done: int) -> None:
    """The first run that is not done, and its socket."""
    runs_at, run = load64(job + _RUNS_AT), load64(job + _RUN)
    while load64(runs_at + run * _RUN_BYTES + _RUN_END) <= done:
        run += 1
    store64(job + _RUN, run)
    store64(job + _FD, load64(runs_at + run * _RUN_BYTES + _RUN_FD))


@kernel
def send_frames(job: int) -> int:
    """Hand the rows from `done` on to their socket until all are delivered or counted (0), or until the caller must decide (an errno).

    sendmmsg stops at the first message that is refused; what it returns hides why, and the next call says it or goes on (sendmmsg(2)).

    | errno for the first message | then |
    |---|---|
    | EINTR | again |
    | EAGAIN, ENOBUFS, ENOMEM | returned: the caller waits or drops |
    | another for a run, twice | its frames go one by one, so that each is judged by itself |
    | EMSGSIZE, twice | that frame is counted and skipped |
    | another, twice | the same; returned after GIVE_UP_AFTER in a row: it is not the frame's fault |

    Twice, because a socket that is connected hands out what ICMP said about an *earlier* frame at the next send, instead of sending
    (sock_alloc_send_pskb takes sk_err first, net/core/sock.c). The message in hand is then sent by the second call, and nothing is lost
    but a system call; it is counted in unheard_reports. A short count which the next call does not explain was such a report too.
    """
    messages_at, skip, runs_at = load64(job + _MESSAGES_AT), load64(job + _SKIP), load64(job + _RUNS_AT)
    lead_len = load64(job + _LEAD_LEN)
    progress_at, progress = load64(job + _PROGRESS_AT), load64(job + _PROGRESS)
    counters, n_rows, done = load64(job + _COUNTERS_AT), load64(job + _N_ROWS), load64(job + _DONE)
    counts_at = messages_at + _N_FRAMES_OF
    stopped = 0  # the last call stopped before its end, and nothing has said why yet
    refused = 0  # the last call refused the first message
    failures = load64(job + _FAILURES)
    answer = 0
    while done < n_rows and answer == 0:
        if runs_at:
            find_run(job, done)
        n = fill_messages(job, done)
        n_messages = 0
        while n_messages < MESSAGES and load64(counts_at + 8 * n_messages):
            n_messages += 1
        store64(progress_at, max(load64(progress_at), progress + done + n))  # a block done again may end even earlier
        sent = int(sendmmsg(load64(job + _FD), messages_at, n_messages, _FLAGS))
        reason = load32(errno_location())  # before anything else can change it
        if sent > 0:
            n_frames, n_bytes = 0, 0
            for m in range(sent):
                n_frames += load64(counts_at + 8 * m)
                n_bytes += load32(messages_at + m * MMSGHDR_BYTES + _MSG_LEN)
            add64(counters + 8 * _DELIVERED_FRAMES, n_frames)
            add64(counters + 8 * _DELIVERED_BYTES, n_bytes + n_frames * (skip - lead_len))
            if stopped or refused:
                add64(counters + 8 * _UNHEARD, 1)
            stopped = 1 if sent < n_messages else 0
            refused = failures = 0
            done += n_frames
        elif reason == _EINTR:
            continue
        elif reason in _FULL:
            answer = reason
        elif refused == 0:
            refused = 1
        elif load64(counts_at) > 1:
            store64(job + _ALONE, done + load64(counts_at))
            store64(job + _REFUSAL, reason)
            stopped = refused = 0
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
