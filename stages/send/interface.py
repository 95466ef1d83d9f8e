"""Bare frames out of a network interface (packet(7)): raw mirroring. Needs CAP_NET_RAW.

A frame leaves as it was captured, VLAN tags and source address included. It is the wire behind
the interface that has to be meant for that: a switch that gets these frames learns their addresses.

Frames longer than the interface's MTU (and Ethernet header, and a VLAN tag) are counted in dropped_too_big; shorter than an Ethernet
header in dropped_other. With `qdisc_bypass` they go to the driver past the queueing discipline: faster, but what the driver's queue cannot
take is dropped at once (dropped_full), and ``tc`` neither shapes nor counts them.

| state | becomes | when |
|---|---|---|
| open | waiting | the queue is full: at most PATIENCE_NS a block, and none at all in the blocks after one that was in vain |
| waiting | open | it has room again |
| open | down | GIVE_UP_AFTER frames in a row were refused: the interface is down or gone (dropped_unreachable, else dropped_tool_down) |
| down | open | it is there and up (`Retry` says when to look); it may be another of the same name |
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import time
from typing import Any

from broker.core.batch import Batch
from broker.core.model import Tool
from broker.core.stage import Context
from stages.send import kernels
from stages.send.egress import FULL, OPENING, SENDING, Notices, Retry, Scratch

PATIENCE_NS = 2_000_000
SEND_BUFFER_BYTES = 4 * 1024 * 1024

# linux/if_packet.h, asm-generic/socket.h, linux/sockios.h: names that Python lacks
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_SO_SNDBUFFORCE = 32
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


def open_interface(name: str, *, qdisc_bypass: bool) -> socket.socket:
    """A packet socket that sends on `name` and receives nothing. OSError, as the kernel puts it; ENETDOWN when the interface is down."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        if qdisc_bypass:
            opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        opened.bind((name, 0))  # protocol 0: no frame comes in
        answer = fcntl.ioctl(opened, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
        if not struct.unpack_from("H", answer, 16)[0] & _IFF_UP:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
    except OSError:
        opened.close()
        raise
    return opened


class InterfaceEgress:
    """One tool behind an interface."""

    repeats = True

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any) -> None:
        self.tool = tool
        self._counters = context.counters[tool.slot :]
        self._counters_at = context.counters_at + 8 * tool.slot
        self._scratch = scratch
        self._notices = Notices(log, tool)
        self._retry = Retry()
        self._socket: socket.socket | None = None
        self._down = 0  # the counter of frames that come while it is not open
        self._patience_ns = PATIENCE_NS
        self._failures = 0
        self._open()

    def _open(self) -> bool:
        try:
            self._socket = open_interface(self.tool.interface, qdisc_bypass=self.tool.qdisc_bypass)
        except OSError as error:
            self._fail(error.errno or 0, OPENING, "tool_down")
            return False
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLOUT)
        self._notices.info("tool_opened", interface=self.tool.interface)
        return True

    def _fail(self, number: int, reasons: Any, event: str) -> None:
        self._down = int(reasons[number]) if 0 <= number < kernels.N_REASONS else int(reasons[0])
        self.close()
        self._retry.failed()
        name = errno.errorcode.get(number, str(number))
        self._notices.warn(event, os.strerror(number), interface=self.tool.interface, errno=name)

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        if self._socket is None and not (self._retry.due() and self._open()):
            self._counters[self._down] += n_rows
            return
        assert self._socket is not None
        scratch = self._scratch
        scratch.job[0] = (
            self._socket.fileno(), 0, self._counters_at, scratch.reasons_at, scratch.vectors_at, scratch.progress_at, progress,
            rows_at, n_rows, 0, self._failures, batch.frames_at, batch.headers_at, batch.data_at,
        )  # fmt: skip
        self._hand_over(n_rows)
        self._failures = int(scratch.job["failures"][0])

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
            # One call's worth, and then another try: what has drained meanwhile is used, and a stuck queue costs few calls.
            dropped = min(kernels.VECTORS, n_rows - done)
            self._counters[FULL] += dropped
            job["done"] = done + dropped
            self._patience_ns = 0
            self._notices.warn("tool_full", os.strerror(number), interface=self.tool.interface)
        if not was_full:
            self._patience_ns = PATIENCE_NS
        if not job["failures"][0]:
            self._retry.worked()

    def _wait(self, number: int, limit_ns: int) -> None:
        if number == errno.EAGAIN:
            self._poller.poll(max(1, limit_ns // 1_000_000))
        else:  # a queue further down is full, or memory short: nothing announces the end of that
            time.sleep(min(limit_ns, 200_000) / 1e9)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
