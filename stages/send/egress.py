"""What the backends of `send` share: their shape, which counter an errno goes to, when to try again, and telling the operator.

To add a backend: a class with the shape of `Egress`, and its case in `stage.make_egress`.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from broker.core.batch import Batch
from broker.core.layout import SLACK
from broker.core.metrics import index
from broker.core.model import Tool
from broker.core.stage import Context
from stages.send import kernels
from stages.send.rules import Rules
from stages.send.runs import Runs

BUFFER_BYTES = 1024 * 1024
FIRST_DELAY_NS, LONGEST_DELAY_NS = 100_000_000, 500_000_000
SAME_NOTICE_NS = 10_000_000_000
UDP_SEGMENT = 103  # linux/udp.h

FULL, TOO_BIG, UNREACHABLE, NO_LISTENER, FORBIDDEN, DISK, TOOL_DOWN, OTHER = (
    index("send", f"dropped_{name}")
    for name in ("full", "too_big", "unreachable", "no_listener", "forbidden", "disk", "tool_down", "other")
)
DELIVERED_FRAMES, DELIVERED_BYTES = index("send", "delivered_frames"), index("send", "delivered_bytes")
UNHEARD = index("send", "unheard_reports")
READER_MISSED, READER_LOST = index("send", "reader_missed_frames"), index("send", "reader_lost_frames")
FILE_BYTES, FILE_INODE = index("send", "file_bytes"), index("send", "file_inode")
FILE_BEGUN, FILE_NEXT = index("send", "file_begun_ns"), index("send", "file_next_ns")

_REASONS: dict[int, tuple[int, ...]] = {
    FULL: (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM),
    TOO_BIG: (errno.EMSGSIZE,),
    # ICMP codes that are final, and what routing says, as Linux maps them (icmp_err_convert, net/ipv4/icmp.c)
    UNREACHABLE: (
        errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENONET, errno.EADDRNOTAVAIL, errno.ENODEV,
    ),
    NO_LISTENER: (errno.ECONNREFUSED, errno.ENOPROTOOPT),  # port and protocol unreachable
    FORBIDDEN: (errno.EPERM, errno.EACCES),
    TOOL_DOWN: (errno.EPIPE, errno.ENXIO),  # nobody reads the pipe
    DISK: (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG),
}  # fmt: skip


def reasons(default: int) -> NDArray[np.int64]:
    """int64[N_REASONS]: the counter to which each errno goes."""
    table = np.full(kernels.N_REASONS, default, np.int64)
    for counter, numbers in _REASONS.items():
        table[list(numbers)] = counter
    return table


SENDING, OPENING = reasons(OTHER), reasons(TOOL_DOWN)


class Egress(Protocol):
    """Where one tool's frames go. What cannot be delivered is counted; nothing raises and nothing blocks for longer than a few ms."""

    tool: Tool

    @property
    def repeats(self) -> bool:
        """After a crash the frames of the block in hand are delivered again (a socket), or are taken back first (a file)."""
        ...

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        """Deliver or count the frames `rows` (uint32[n_rows], positions in FRAME). Before handing over a part, `progress` plus the number
        of rows up to the end of that part is stored for whoever comes after a crash."""
        ...

    def close(self) -> None: ...


class Scratch:
    """Private memory that the egresses of a worker use in turn."""

    def __init__(self, context: Context) -> None:
        self.job = np.zeros(1, kernels.JOB)
        self.job_at = int(self.job.ctypes.data)
        self.messages = _messages()
        self.buffer = np.empty(BUFFER_BYTES + SLACK, np.uint8)
        self.buffer_at = int(self.buffer.ctypes.data)
        self.ends = np.zeros(context.geometry.max_frames, np.int64)
        self.ends_at = int(self.ends.ctypes.data)
        self.lens = np.zeros(context.geometry.max_frames, np.int64)
        self.lens_at = int(self.lens.ctypes.data)
        self.messages_at = int(self.messages.ctypes.data)
        self.runs = Runs(context.geometry.max_frames)
        self.rules = Rules()
        self.reasons_at = int(SENDING.ctypes.data)
        self.progress_at = context.progress_at


def _messages() -> NDArray[np.uint8]:
    """`kernels.MESSAGES`; what differs from call to call is filled then."""
    memory = np.zeros(kernels.MESSAGES_BYTES, np.uint8)
    controls = memory[kernels.MESSAGES * kernels.MMSGHDR_BYTES :][: kernels.MESSAGES * kernels.CMSG_BYTES]
    controls.reshape(kernels.MESSAGES, -1)[:, :16] = np.frombuffer(struct.pack("qii", 16 + 2, socket.SOL_UDP, UDP_SEGMENT), np.uint8)
    return memory


class Retry:
    """When to try again: after 0.1 s, then after twice as long each time, up to 0.5 s: what is well again is used again within a second."""

    def __init__(self) -> None:
        self._delay_ns = FIRST_DELAY_NS
        self._due_ns = 0

    def due(self) -> bool:
        return time.monotonic_ns() >= self._due_ns

    def failed(self) -> None:
        self._due_ns = time.monotonic_ns() + self._delay_ns
        self._delay_ns = min(2 * self._delay_ns, LONGEST_DELAY_NS)

    def worked(self) -> None:
        self._delay_ns = FIRST_DELAY_NS


class Notices:
    """Log lines of one tool: the same event is told at most every ten seconds, with how often it came in between.

    Events: tool_opened, backend_chosen, tool_one_port, tool_not_segmented, tool_by_ip, tool_down, tool_full, tool_refused, tool_unheard,
    file_failed, file_started_anew, file_finished, file_not_removed, reader_joined, reader_left, reader_refused.
    """

    def __init__(self, log: Any, tool: Tool) -> None:
        self._log = log.bind(tool=tool.name)
        self._told: dict[tuple[str, str], tuple[int, int]] = {}

    def info(self, event: str, **words: Any) -> None:
        self._log.info(event, **words)

    def warn(self, event: str, reason: str, **words: Any) -> None:
        now = time.monotonic_ns()
        at, silent = self._told.get((event, reason), (0, 0))
        if at and now - at < SAME_NOTICE_NS:
            self._told[event, reason] = at, silent + 1
            return
        self._told[event, reason] = now, 0
        self._log.warning(event, reason=reason, **words, **({"repeated": silent} if silent else {}))
