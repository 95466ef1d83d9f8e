"""What is wrong with a source, in words, and how whoever started the broker gets to read it although the worker is another process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from broker.core.errors import TapmeshError

REPORT = "source-error"
"""A file in the pipeline's directory, a line for each source that could not be read to its end."""


class SourceError(TapmeshError):
    """`FILE: byte OFFSET: reason`; without an offset (a file that cannot be opened, an interface) `FILE: reason`."""

    def __init__(self, path: str, offset: int | None, reason: str) -> None:
        where = path if offset is None else f"{path}: byte {offset}"
        super().__init__(f"{where}: {reason}")
        self.path, self.offset, self.reason = path, offset, reason


class AbsentError(SourceError):
    """The interface is not there: it may come back."""


class DownError(AbsentError):
    """It is there, and down."""


def report(directory: Path, error: SourceError) -> None:
    """Append the error to the report, unless it stands there: a worker that resumes meets the same one again. Where shared memory is full
    only the log and `source_trouble` tell of it: no reason to play nothing more."""
    line = f"{error}\n".encode(errors="surrogateescape")
    with contextlib.suppress(OSError):
        fd = os.open(directory / REPORT, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "rb", closefd=False) as file:
                if line in file:
                    return
            os.write(fd, line)
        finally:
            os.close(fd)
