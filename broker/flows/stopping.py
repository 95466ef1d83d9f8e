"""Sleeping in a process that is told to stop by a signal."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from typing import Any


class Stopping:
    """From its making SIGTERM and SIGINT no longer end the process but its sleep. In the main thread only."""

    def __init__(self) -> None:
        self.asked = False
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload is the supervisor's
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the supervisor holds it back from who is only starting

    def _ask(self, _number: int, _frame: Any) -> None:
        self.asked = True

    def sleep(self, seconds: float, interests: Iterable[tuple[int, int]] = ()) -> None:
        """Until told to stop, or one of `interests` (descriptor, events of `select.poll`) is ready, or the time is over."""
        poller = select.poll()
        poller.register(self._woken, select.POLLIN)
        for fd, events in interests:
            poller.register(fd, events)
        for fd, _ in poller.poll(max(0, int(seconds * 1000))):
            if fd == self._woken:
                os.read(self._woken, 64)
