"""Frames handed to a socket a datagram each, whatever the socket is: what `sockets` and `interface` share.

| state | becomes | when |
|---|---|---|
| open | waiting | the socket is full: at most PATIENCE_NS a block, and none at all in the blocks after one that was in vain |
| waiting | open | it has room again |
| open | down | GIVE_UP_AFTER frames in a row were refused for reasons that are not theirs (`Retry` says when to open again) |
| down | open | opening worked |
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from typing import Any

from broker.core.batch import Batch
from broker.core.model import Tool
from broker.core.stage import Context
from stages.send import kernels
from stages.send.egress import FULL, OPENING, SENDING, Notices, Retry, Scratch

PATIENCE_NS = 2_000_000
SEND_BUFFER_BYTES = 4 * 1024 * 1024
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


class DatagramEgress:
    """One tool behind a socket. A kind of it says how the socket is opened, what `_skip` of each header the kernel writes, and what
    each frame begins with (`_lead_at`, `_lead_len`)."""

    repeats = True

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any, **where: str) -> None:
        """`where`: what notices say of the other end. The kind calls `_open` when it is ready for it."""
        self.tool = tool
        self._where = where
        self._skip = 0
        self._lead_at = self._lead_len = 0
        self._counters = context.counters[tool.slot :]
        self._counters_at = context.counters_at + 8 * tool.slot
        self._scratch = scratch
        self._notices = Notices(log, tool)
        self._retry = Retry()
        self._socket: socket.socket | None = None
        self._down = 0  # the counter of frames that come while it is not open
        self._patience_ns = PATIENCE_NS
        self._failures = 0

    def _open_socket(self) -> socket.socket:
        """OSError, as the kernel puts it."""
        raise TypeError("a kind of egress opens its own socket")

    def _opened(self, opened: socket.socket) -> None:
        """It is there: tell it."""
        del opened
        self._notices.info("tool_opened", **self._where)

    def _before_waiting(self) -> None:
        """What would keep a full socket from being waited for."""

    def _arrange(self, scratch: Scratch) -> None:
        """The job of a block is ready: which of its rows go together?"""

    def _handed_over(self, refusal: int) -> None:
        """A run was refused, and its frames went one by one. `refusal`: the errno."""

    def _open(self) -> bool:
        try:
            self._socket = self._open_socket()
        except OSError as error:
            self._fail(error.errno or 0, OPENING, "tool_down")
            return False
        self._opened(self._socket)
        return True

    def _fail(self, number: int, reasons: Any, event: str) -> None:
        self._down = int(reasons[number]) if 0 <= number < kernels.N_REASONS else int(reasons[0])
        self._shut()
        self._retry.failed()
        self._notices.warn(event, os.strerror(number), **self._where, errno=errno.errorcode.get(number, str(number)))

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        if self._socket is None and not (self._retry.due() and self._open()):
            self._counters[self._down] += n_rows
            return
        assert self._socket is not None
        scratch = self._scratch
        scratch.job[0] = (
            self._socket.fileno(), self._skip, self._counters_at, scratch.reasons_at, scratch.messages_at, scratch.progress_at, progress,
            rows_at, n_rows, 0, self._failures, batch.frames_at, batch.headers_at, batch.data_at, self._lead_at, self._lead_len, 0, 0, 0, 0,
        )  # fmt: skip
        self._arrange(scratch)
        self._hand_over(n_rows)
        self._failures = int(scratch.job["failures"][0])
        if refusal := int(scratch.job["refusal"][0]):
            self._handed_over(refusal)

    def _hand_over(self, n_rows: int) -> None:
        job, job_at = self._scratch.job, self._scratch.job_at
        was_full = False
        until = 0
        while number := kernels.send_frames(job_at):
            done = int(job["done"][0])
            if number not in _FULL:
                self._fail(number, SENDING, "tool_refused")
                self._counters[self._down] += n_rows - done
                return
            now = time.monotonic_ns()
            until = until or now + self._patience_ns
            was_full = True
            if now < until:
                self._wait(number, until - now)
                continue
            # One call's worth, and then another try: what has drained meanwhile is used, and a dead socket costs few calls.
            dropped = min(kernels.MESSAGES, n_rows - done)
            self._counters[FULL] += dropped
            job["done"] = done + dropped
            self._patience_ns = 0
            self._notices.warn("tool_full", os.strerror(number), **self._where)
        if not was_full:
            self._patience_ns = PATIENCE_NS
        if not job["failures"][0]:
            self._retry.worked()

    def _wait(self, number: int, limit_ns: int) -> None:
        self._before_waiting()
        if number == errno.EAGAIN:
            poller = select.poll()
            poller.register(int(self._scratch.job["fd"][0]), select.POLLOUT)
            poller.poll(max(1, limit_ns // 1_000_000))
        else:  # a queue further down is full, or memory short: nothing announces the end of that
            time.sleep(min(limit_ns, 200_000) / 1e9)

    def close(self) -> None:
        self._shut()

    def _shut(self) -> None:
        """Close the socket, for now: it may be opened again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
