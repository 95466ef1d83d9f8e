"""Which frames of a block leave in one call: runs of equal length to one socket, without ever turning round two frames of a flow.

A flow has one slot of FLOWS, and one socket. Runs are numbered as they begin, and those of a socket are sent in that order. A frame joins
the open run of its length only if no frame of its slot is in a run with a higher number; otherwise it begins a run of its own, which is the
open one of its length from then on. So the numbers of the runs in which a flow's frames lie never fall, within a run they keep the order of
the block, and other flows may overtake.

udp(7): all datagrams of a run have the length of the first, the last may be shorter: nothing is gained by that here, since a shorter one
is a run that others may join.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.jit import kernel
from stages.memory import add64, load16, load32, load64, store32, store64
from stages.send import kernels
from stages.send.kernels import JOB, RUN, offset_of

SOCKETS = 8  # at most: measured against one, IMIX costs a third more, with 16 twice as much
FLOWS = 4096  # fewer: more flows share a slot, and runs are shorter; more: no longer, and more of the cache is used
LENGTHS = 512  # open runs, by socket and length; where two meet, the later one stays open
MOST_FRAMES = 64  # UDP_MAX_SEGMENTS, net/ipv4/udp.c: 64 in all kernels that have it
MOST_BYTES = 65_487  # RFC 8200 payload length, less what IPv6 and UDP headers take

SORTING = np.dtype(
    [
        ("base", "<i8"),  # number of the block's first run: they are never used again, so nothing has to be cleared
        ("last", "<i8", (FLOWS,)),  # the highest run of each slot
        ("open", "<i8", (LENGTHS,)),
        ("n_runs", "<i8", (SOCKETS,)),
        ("n_frames", "<i8", (SOCKETS,)),
    ]
)
_BEGUN = np.dtype([("socket", "<i8"), ("segment_len", "<i8"), ("n_frames", "<i8"), ("at", "<i8")])

_BASE, _LAST, _OPEN, _N_RUNS, _N_FRAMES = (offset_of(SORTING, f) for f in SORTING.names or ())
_SOCKET, _SEGMENT_LEN, _COUNT, _AT = (offset_of(_BEGUN, f) for f in _BEGUN.names or ())
_BEGUN_BYTES, _RUN_BYTES = _BEGUN.itemsize, RUN.itemsize
_ROWS_AT, _N_ROWS, _FRAMES_AT, _SKIP = (offset_of(JOB, f) for f in ("rows_at", "n_rows", "frames_at", "skip"))
_RUN_FD, _RUN_END, _RUN_SEGMENT_LEN = (offset_of(RUN, f) for f in ("fd", "end", "segment_len"))
_FLOW_SHIFT, _SOCKET_SHIFT = 2, 11  # the bits of a slot hold those of the socket: one slot, one socket


@kernel
def group_frames(
    job: int, sorting: int, begun_at: int, of_at: int, fds_at: int, n_sockets: int, longest: int, order_at: int, runs_at: int
) -> None:
    """Put the job's rows into runs.

    `n_sockets`: a power of two; the frames of a flow go to socket ``share >> 11 & n_sockets - 1``. `longest`: the longest datagram that may
    be part of a run.

    | written | dtype[shape] | |
    |---|---|---|
    | order | uint32[n_rows] | the rows, run after run |
    | runs | RUN[n_rows] | socket after socket |
    | begun, of | _BEGUN[n_rows], uint32[n_rows] | scratch: the runs as they begin, the run of each row |
    """
    rows_at, n_rows = load64(job + _ROWS_AT), load64(job + _N_ROWS)
    frames_at, skip = load64(job + _FRAMES_AT), load64(job + _SKIP)
    base = load64(sorting + _BASE)
    n_runs = 0
    for s in range(n_sockets):
        store64(sorting + _N_RUNS + 8 * s, 0)
        store64(sorting + _N_FRAMES + 8 * s, 0)
    for k in range(n_rows):
        frame = frames_at + load32(rows_at + 4 * k) * kernels.FRAME_BYTES
        length = load16(frame + kernels.FRAME_HEADER_LEN) - skip + load32(frame + kernels.FRAME_DATA_LEN)
        share = load32(frame + kernels.FRAME_SHARE)
        s = share >> _SOCKET_SHIFT & n_sockets - 1
        last_at = sorting + _LAST + 8 * (share >> _FLOW_SHIFT & FLOWS - 1)
        open_at = sorting + _OPEN + 8 * ((length ^ s << 5) & LENGTHS - 1)
        number = load64(open_at)
        run = begun_at + (number - base) * _BEGUN_BYTES
        joins = number >= base and number >= load64(last_at) and length <= longest
        if joins:
            n = load64(run + _COUNT) + 1
            alike = load64(run + _SEGMENT_LEN) == length and load64(run + _SOCKET) == s
            joins = alike and n <= MOST_FRAMES and n * length <= MOST_BYTES
        if joins:
            store64(run + _COUNT, n)
        else:
            number = base + n_runs
            run = begun_at + n_runs * _BEGUN_BYTES
            n_runs += 1
            store64(run + _SOCKET, s)
            store64(run + _SEGMENT_LEN, length)
            store64(run + _COUNT, 1)
            store64(open_at, number)
            add64(sorting + _N_RUNS + 8 * s, 1)
        store64(last_at, number)
        store32(of_at + 4 * k, number - base)
        add64(sorting + _N_FRAMES + 8 * s, 1)
    store64(sorting + _BASE, base + n_runs)
    _place(sorting, begun_at, n_runs, fds_at, n_sockets, runs_at)
    for k in range(n_rows):
        at = begun_at + load32(of_at + 4 * k) * _BEGUN_BYTES + _AT
        store32(order_at + 4 * load64(at), load32(rows_at + 4 * k))
        add64(at, 1)


@kernel
def _place(sorting: int, begun_at: int, n_runs: int, fds_at: int, n_sockets: int, runs_at: int) -> None:
    """Socket after socket, the runs of each as they began: where each one's rows lie in the order."""
    first_run, first_row = 0, 0
    for s in range(n_sockets):
        runs, rows = load64(sorting + _N_RUNS + 8 * s), load64(sorting + _N_FRAMES + 8 * s)
        store64(sorting + _N_RUNS + 8 * s, first_run)
        store64(sorting + _N_FRAMES + 8 * s, first_row)
        first_run += runs
        first_row += rows
    for r in range(n_runs):
        begun = begun_at + r * _BEGUN_BYTES
        s = load64(begun + _SOCKET)
        run = runs_at + load64(sorting + _N_RUNS + 8 * s) * _RUN_BYTES
        at = load64(sorting + _N_FRAMES + 8 * s)
        end = at + load64(begun + _COUNT)
        store64(begun + _AT, at)
        store64(run + _RUN_FD, load64(fds_at + 8 * s))
        store64(run + _RUN_END, end)
        store64(run + _RUN_SEGMENT_LEN, load64(begun + _SEGMENT_LEN))
        add64(sorting + _N_RUNS + 8 * s, 1)
        store64(sorting + _N_FRAMES + 8 * s, end)


class Runs:
    """Memory for the runs of a block, which the tools of a worker use in turn."""

    def __init__(self, max_frames: int) -> None:
        self._sorting = np.zeros(1, SORTING)
        self._sorting["base"] = 1
        self._begun = np.zeros(max_frames, _BEGUN)
        self._of = np.zeros(max_frames, np.uint32)
        self.order = np.zeros(max_frames, np.uint32)
        self.runs = np.zeros(max_frames, RUN)
        self.arrays: tuple[NDArray[Any], ...] = (self._sorting, self._begun, self._of, self.order, self.runs)
        self._at = tuple(int(array.ctypes.data) for array in self.arrays)

    def group(self, job: NDArray[Any], job_at: int, fds_at: int, n_sockets: int, longest: int) -> None:
        """The job's rows become runs: it says so then."""
        sorting_at, begun_at, of_at, order_at, runs_at = self._at
        group_frames(job_at, sorting_at, begun_at, of_at, fds_at, n_sockets, longest, order_at, runs_at)
        job["rows_at"], job["runs_at"], job["run"] = order_at, runs_at, 0
