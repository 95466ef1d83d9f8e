"""One supervisor a name: a lock that dies with its holder. It lies beside the pipeline's directory, which comes and goes meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from broker.core.errors import TapmeshError
from broker.core.shm import pipeline_directory


class AlreadyRunningError(TapmeshError):
    """Another supervisor holds the name."""


def lock_path(name: str) -> Path:
    directory = pipeline_directory(name)
    return directory.with_name(f"{directory.name}.lock")


@contextlib.contextmanager
def hold(name: str) -> Iterator[None]:
    """Hold the name, or AlreadyRunningError with the pid of who does. The file is removed while the lock is still held."""
    path = lock_path(name)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise TapmeshError(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise AlreadyRunningError(
                f"a broker named {name!r} is running already (pid {holder}); stop it, or choose another --name"
            ) from None
        if _still_there(path, fd):
            break
        os.close(fd)  # its holder removed it between our open and our lock
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _still_there(path: Path, fd: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False
