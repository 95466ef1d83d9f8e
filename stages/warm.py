"""Kernels ready to run: loaded from the cache or, when that is cold, compiled first by one throw-away process.

Compiling takes half a minute of CPU and 100 MB more than running does; on the agent's one vCPU it must not happen in every stage at once,
and what it allocates must not stay.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from broker.core.errors import TapmeshError
from stages import cache
from stages.registry import KINDS, import_stages

_LOOK_S = 0.5


def warm(progress: Callable[[str], None], kinds: Iterable[str] = KINDS) -> None:
    """Have every kernel of these stages in this process. `progress` gets a line now and then while those of all stages are compiled."""
    from stages import atomics, jit  # noqa: F401 - the ring's kernels are kernels too

    if jit.PLAIN:
        return
    complete = cache.complete(jit.CACHE_DIRECTORY)
    if not complete.exists():
        lock = os.open(jit.CACHE_DIRECTORY / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for(lock, progress)
            if not complete.exists():
                _compile_apart(progress)
                complete.touch()
        finally:
            os.close(lock)
    import_stages(kinds)
    for _ in jit.warm_all():
        pass


def _wait_for(lock: int, progress: Callable[[str], None]) -> None:
    """Who listens to `progress` takes us for stuck if nothing is heard while another process compiles."""
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process compiles the kernels")
            time.sleep(_LOOK_S)


def _compile_apart(progress: Callable[[str], None]) -> None:
    isolated = ["-I"] if sys.flags.isolated else []
    process = subprocess.Popen([sys.executable, *isolated, "-m", "stages", "compile"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        progress(line.rstrip())
    if process.wait() != 0:
        raise TapmeshError(f"compiling the kernels failed with exit status {process.returncode}")


def compile_here() -> None:
    """What the throw-away process does."""
    from stages import atomics, jit  # noqa: F401

    import_stages()
    for done, total, name in jit.warm_all():
        print(f"compiling kernels {done}/{total}: {name}", flush=True)  # noqa: T201 - read by `_compile_apart`
