"""structlog as JSON lines on stderr: one line per change of state, none per packet; context is bound once."""

from __future__ import annotations

import contextlib
import logging
import os
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


class _Stderr:
    """Writes lines to standard error and survives its end: a worker must not die because whoever read its log has died."""

    def __init__(self, *_: Any) -> None:
        pass

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, line.encode(errors="replace") + b"\n")

    debug = info = warning = error = critical = msg


LEVEL = "TAPMESH_LOG_LEVEL"
"""debug, info, warning or error: the least that is logged, by the processes that we start too."""


def configure(*, json: bool = True, level: int | None = None) -> None:
    """Once a process. JSON for machines, key=value for a person at a terminal. `level`: of `logging`, default as in LEVEL, else info."""
    if level is None:
        level = logging.getLevelNamesMapping().get(os.environ.get(LEVEL, "").upper(), logging.INFO)
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )


def get(**context: Any) -> Any:
    return structlog.get_logger().bind(**context)
