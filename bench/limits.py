"""One vCPU and so much memory: a control group of one's own, for what is started inside it.

| groups | where one is made | limits |
|---|---|---|
| version 2 | the nearest group above this process that hands cpu and memory on | memory.max, memory.swap.max, cpu.max |
| version 1 | below this process's own, for each of the two | memory.limit_in_bytes, cpu.cfs_quota_us |

systemd is not asked: it would make the same groups, and is not everywhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PERIOD_US = 100_000
_PATIENCE_S = 10.0


class LimitsError(RuntimeError):
    """Why no group can be made here, in words that begin with UNAVAILABLE."""


UNAVAILABLE = "control groups cannot be made here"


@dataclass(frozen=True)
class Limits:
    """`directories`: one for both controllers, or one each."""

    directories: tuple[Path, ...]
    homes: tuple[Path, ...]  # where this process was before

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What this process starts meanwhile is limited, and stays so. What it allocates meanwhile counts there too."""
        try:
            self._move(self.directories)
            yield
        finally:
            self._move(self.homes)

    def _move(self, directories: tuple[Path, ...]) -> None:
        for directory in directories:
            (directory / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        """The most memory that was ever in use in it; 0: this kernel does not say."""
        return self._first("memory.peak", "memory.max_usage_in_bytes")

    def pids(self) -> set[int]:
        return {int(pid) for pid in (self.directories[0] / "cgroup.procs").read_text().split()}

    def killed(self) -> int:
        """Processes that the kernel killed for want of memory."""
        for name in ("memory.events", "memory.oom_control"):
            for directory in self.directories:
                with contextlib.suppress(OSError):
                    return int(dict(line.split() for line in (directory / name).read_text().splitlines())["oom_kill"])
        return 0

    def _first(self, *names: str) -> int:
        for directory in self.directories:
            for name in names:
                with contextlib.suppress(OSError):
                    return int((directory / name).read_text())
        return 0


@contextlib.contextmanager
def limits(name: str, memory_bytes: int, *, cpus: float = 1.0) -> Iterator[Limits]:
    """A group that is gone afterwards, when all that was started in it has ended. LimitsError in words."""
    homes = _homes()
    made: list[Path] = []
    try:
        try:
            parents = homes if len(homes) > 1 else (_delegating(homes[0]),)
            for parent in parents:
                made.append(parent / name)
                made[-1].mkdir()
            _write(made, ("memory.max", "memory.limit_in_bytes"), str(memory_bytes))
            with contextlib.suppress(LimitsError):  # a kernel without swap has no such file
                _write(made, ("memory.swap.max", "memory.memsw.limit_in_bytes"), "0" if len(made) == 1 else str(memory_bytes))
            quota = str(int(cpus * PERIOD_US))
            _write(made, ("cpu.max", "cpu.cfs_quota_us"), f"{quota} {PERIOD_US}" if len(made) == 1 else quota)
        except OSError as error:
            raise LimitsError(f"{UNAVAILABLE}: {error.filename}: {error.strerror}") from None
        yield Limits(tuple(made), homes)
    finally:
        for directory in made:
            _remove(directory)


def unavailable() -> str:
    """Why no group can be made here; empty when one was made, and removed again."""
    try:
        with limits(f"tapmesh-try-{os.getpid()}", 1 << 30):
            return ""
    except LimitsError as error:
        return str(error)


def _write(directories: list[Path], names: tuple[str, ...], text: str) -> None:
    for directory in directories:
        for name in names:
            if (directory / name).exists():
                (directory / name).write_text(text)
                return
    raise LimitsError(f"{UNAVAILABLE}: none of {', '.join(names)} in {', '.join(map(str, directories))}")


def _remove(directory: Path) -> None:
    """A group is busy until the last process in it is really gone."""
    end = time.monotonic() + _PATIENCE_S
    while directory.exists():
        try:
            directory.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _homes() -> tuple[Path, ...]:
    """Where this process is: (the group of version 2,), or those of memory and cpu."""
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split()[:3]
        point = Path(fields.split()[4])
        if kind == "cgroup2":
            mounts.setdefault("", point)
        elif kind == "cgroup":
            mounts.update({name: point for name in options.split(",") if name in ("memory", "cpu")})
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own.update({name: path.lstrip("/") for name in controllers.split(",")})
    chosen = ("memory", "cpu") if {"memory", "cpu"} <= mounts.keys() else ("",)
    if chosen[0] not in mounts:
        raise LimitsError(f"{UNAVAILABLE}: no file system of them is mounted")
    found = [mounts[name] / own.get(name, "") for name in chosen]
    # Seen from inside a container the path may be that of the host.
    return tuple(path if path.is_dir() else mounts[name] for name, path in zip(chosen, found, strict=True))


def _delegating(home: Path) -> Path:
    """A group that has processes of its own hands nothing on, but for the first one."""
    for path in (home, *home.parents):
        handed_on = path / "cgroup.subtree_control"
        if not handed_on.exists():
            break
        if {"cpu", "memory"} <= set(handed_on.read_text().split()):
            return path
    raise LimitsError(f"{UNAVAILABLE}: no group above this process hands cpu and memory on")
