"""structlog as JSON lines on stderr: one line per change of state, none per packet; context is bound once."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import MutableMapping
from typing import Any

import structlog

EVENTS = {
    "worker_started": "a worker has opened its stage and begins",
    "worker_stopped": "a worker has drained and leaves",
    "worker_refused": "a worker cannot work as it is told and will not be started again",
    "generation_loaded": "a worker handles blocks by another generation from here on",
    "source_finished": "the source has ended; all of it is published",
}
"""Events of the core; the other modules list theirs where they log them."""


PATIENCE_MS = 100
"""How long a line waits for a reader that is slow. After one was in vain lines are lost at once until the reader goes on."""


class _Stderr:
    """Writes lines to standard error and survives its end: nobody must stop because whoever reads the log has died or sleeps. Lines that
    find no room are lost, and the next one says how many (`lines_lost`)."""

    def __init__(self) -> None:
        self.lost = 0
        self._cut = False  # the last line was begun and not ended

    def msg(self, line: str) -> None:
        left = (b"\n" if self._cut else b"") + line.encode(errors="replace") + b"\n"
        patience_ms = 0 if self.lost else PATIENCE_MS
        poller = select.poll()
        poller.register(2, select.POLLOUT)
        begun = False
        try:
            while left:
                if not poller.poll(patience_ms):
                    self._lose(begun=begun)
                    return
                # A pipe that is writable has room for so much; more could block.
                left = left[os.write(2, left[: select.PIPE_BUF]) :]
                begun = True
        except OSError:  # a disk that is full, a reader that is gone
            self._lose(begun=begun)
            return
        self.lost, self._cut = 0, False

    def _lose(self, *, begun: bool) -> None:
        self.lost += 1
        self._cut = self._cut or begun

    debug = info = warning = error = critical = msg

    def tell_lost(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if self.lost:
            event["lines_lost"] = self.lost
        return event


_stderr = _Stderr()


def _occupy() -> None:
    """A process that was started without standard error must not log into the first file that it opens, which would get number 2."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return


LEVEL = "TAPMESH_LOG_LEVEL"
"""debug, info, warning or error: the least that is logged, by the processes that we start too."""


def configure(*, json: bool = True, level: int | None = None) -> None:
    """Once a process. JSON for machines, key=value for a person at a terminal. `level`: of `logging`, default as in LEVEL, else info."""
    if level is None:
        level = logging.getLevelNamesMapping().get(os.environ.get(LEVEL, "").upper(), logging.INFO)
    _occupy()
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _stderr.tell_lost,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _stderr,
        cache_logger_on_first_use=False,
    )


def get(**context: Any) -> Any:
    return structlog.get_logger().bind(**context)
