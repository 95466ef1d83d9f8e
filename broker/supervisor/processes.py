"""What the kernel knows of processes: are they there, are they ours, what have they cost."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

_CPUCLOCK_SCHED = 2  # kernel include/linux/posix-timers.h; clock_getcpuclockid(3) makes ids of other processes' clocks the same way


class Process:
    """A process that may not be our child, held by a pidfd: its number cannot come to mean another one."""

    def __init__(self, pid: int) -> None:
        """One that has ended and been reaped already is held too: as not alive."""
        self.pid = pid
        self._cpu_ns = 0
        try:
            self.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.fd = -1

    def fileno(self) -> int:
        return self.fd

    def alive(self) -> bool:
        """False from its end on, reaped or not."""
        return not self.wait(0)

    def send(self, number: int) -> None:
        if self.fd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, number)

    def wait(self, timeout_s: float) -> bool:
        """Until it has ended, at most `timeout_s`. True: it has."""
        if self.fd < 0:
            return True
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def cpu_ns(self) -> int:
        """User and system time of all its threads so far; the last known value once it has ended."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                self._cpu_ns = time.clock_gettime_ns((~self.pid << 3) | _CPUCLOCK_SCHED)
        return self._cpu_ns

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def belongs(pid: int, name: str, module: str = "stages") -> bool:
    """Is it a process of pipeline `name`, by its command line, and not a zombie? `module`: what it runs; by default the data path."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    wanted = [b"--pipeline", os.fsencode(name)]
    return module.encode() in words and any(words[i : i + 2] == wanted for i in range(len(words)))


def find(name: str, module: str = "stages") -> dict[int, str]:
    """pid -> command word (`host`, `capture` ...) of every living process of pipeline `name` that runs `module`."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and belongs(int(entry.name), name, module):
            try:
                words = Path(f"/proc/{entry.name}/cmdline").read_bytes().split(b"\0")
                found[int(entry.name)] = words[words.index(module.encode()) + 1].decode(errors="replace")
            except (OSError, ValueError, IndexError):
                continue
    return found


def attach(pid: int, name: str, module: str = "stages") -> Process | None:
    """Hold process `pid` if it is one of pipeline `name` that runs `module`."""
    if pid <= 0:
        return None
    process = Process(pid)
    if process.alive() and belongs(pid, name, module):
        return process
    process.close()
    return None


def parent(pid: int) -> int:
    """The process that will be told of its end; 0: it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def age_s(pid: int) -> float:
    """Seconds since a process started, by the kernel's clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[19])  # starttime, field 22 of proc(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
