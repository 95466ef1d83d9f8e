"""SIGTERM, SIGINT and SIGHUP as values that the supervisor's loop looks at, and a descriptor that wakes it."""

from __future__ import annotations

import contextlib
import signal
import socket
from types import FrameType, TracebackType
from typing import Any

_STOP = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Catches them from `with` on; what was there before is put back. Main thread only."""

    def __init__(self) -> None:
        self.stops = 0  # SIGTERM or SIGINT: the first drains, the second ends the drain
        self.reload = False
        self.last = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (*_STOP, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._woken.close()
        self._waker.close()

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reload = True
        else:
            self.stops += 1
            self.last = number

    def fileno(self) -> int:
        return self._woken.fileno()

    def clear(self) -> None:
        """Take the wake-up back; the values stay."""
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
