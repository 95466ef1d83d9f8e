"""Kernels ready to run: taken from where they were compiled or, when they were not, compiled first by one throw-away process.

Compiling takes a minute of CPU and 100 MB more than running does; on the agent's one vCPU it must not happen in every stage at once,
and what it allocates must not stay.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from broker.core.errors import TapmeshError
from stages import ahead, build, cache
from stages.registry import KINDS, import_stages

_LOOK_S = 0.5


def warm(progress: Callable[[str], None], kinds: Iterable[str] = KINDS) -> None:
    """Have every kernel of these stages in this process. `progress` gets a line now and then while those of all stages are compiled.

    To be called before anything that imports a kernel: what is there then decides how this process gets all of them.
    """
    if ahead.choose()[0] == "jit" and not _is_compiled():
        made = cache.use()
        lock = os.open(made / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for(lock, progress)
            if not _is_compiled():
                _compile_apart(progress)
        finally:
            os.close(lock)
    from stages import atomics, jit  # noqa: F401 - the ring's kernels are kernels too

    import_stages(kinds)
    if jit.MODE == "jit":
        for _ in jit.compile_all():
            pass


def _is_compiled() -> bool:
    """Ahead, or else by numba."""
    return ahead.choose()[0] != "jit" or cache.complete(cache.use()).exists()


def _wait_for(lock: int, progress: Callable[[str], None]) -> None:
    """Who listens to `progress` takes us for stuck if nothing is heard while another process compiles."""
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process compiles the kernels")
            time.sleep(_LOOK_S)


def _compile_apart(progress: Callable[[str], None]) -> None:
    """Into the shared object; where that cannot be linked or used (a directory mounted noexec), by numba into its cache, once and for all:
    else every start would compile in vain."""
    status = _compile(progress, {})
    if status == 0 and _is_compiled():
        return
    if os.environ.get("TAPMESH_KERNELS") != "jit":
        progress(f"no shared object of kernels can be used here ({_why_not()}): numba compiles them for its cache")
        status = _compile(progress, {"TAPMESH_KERNELS": "jit"})
    if status != 0:
        raise TapmeshError(f"compiling the kernels failed with exit status {status}")


def _why_not() -> str:
    return "; ".join(ahead.find()[1]) or "the reason is above"


def _compile(progress: Callable[[str], None], environment: dict[str, str]) -> int:
    isolated = ["-I"] if sys.flags.isolated else []
    command = [sys.executable, *isolated, "-m", "stages", "compile"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stdout is not None
    for line in process.stdout:
        progress(line.rstrip())
    return process.wait()


def compile_here(out: Path | None, cpu: str) -> None:
    """What the throw-away process does, and `python -m stages compile`; `out`: a place of its own, else that of this machine.

    Without a linker numba's cache is filled instead: starts from there take longer, and numba has to stay.
    """

    def tell(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - read by `_compile_apart`

    if out is not None:
        build.build(out, cpu, tell)
        return
    if os.environ.get("TAPMESH_KERNELS") != "jit" and not ahead.is_checked():
        try:
            build.linker()
        except build.BuildError as error:
            tell(str(error))
        else:
            build.build(cache.use() / f"{ahead.NAME}.so", cpu, tell)
            return
    os.environ["TAPMESH_KERNELS"] = "jit"
    from stages import atomics, jit  # noqa: F401

    import_stages()
    for done, total, function, _ in jit.compile_all():
        tell(f"compiling kernels {done}/{total}: {function.__qualname__}")
    cache.complete(cache.use()).touch()
