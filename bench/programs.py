"""Running what is measured: peers with their CPU time, and an agent in the background."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TAPMESH = (sys.executable, "-I", "-m", "broker.cli.main")
_TICKS = os.sysconf("SC_CLK_TCK")
STOP_S = 30.0


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float  # user and system, of the process and of all it has waited for


def run(command: Sequence[str]) -> Cost:
    """Run to its end; RuntimeError with what it said when it fails."""
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(
                f"{' '.join(command)[:200]}: exit status {process.returncode}: {said.read().decode(errors='replace')[-2000:]}"
            )
    return Cost(wall_s, usage.ru_utime + usage.ru_stime)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory: a disk would be measured otherwise. TMPDIR chooses another."""
    where = None if "TMPDIR" in os.environ else "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="bench-", dir=where) as directory:
        yield Path(directory)


def touch_memory(directory: Path, n_bytes: int) -> None:
    """Have the machine give us pages, by a file that is written and removed. A guest that touches memory for the first time pays for it
    several times over, whichever program happens to do it; measured right after this, neither does."""
    path = directory / "touched"
    chunk = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(0, n_bytes, len(chunk)):
            file.write(chunk)
    path.unlink()


@contextlib.contextmanager
def sink() -> Iterator[socket.socket]:
    """A UDP socket on loopback that somebody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        receiver.bind(("127.0.0.1", 0))
        yield receiver


def drain(receiver: socket.socket, timeout_s: float) -> int:
    """Datagrams that are there, after waiting for the first."""
    if not select.select([receiver], [], [], timeout_s)[0]:
        return 0
    n = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            receiver.recv(65_536, socket.MSG_DONTWAIT)
            n += 1
    return n


def agent_name() -> str:
    """Of its pipeline."""
    return f"bench-{os.getpid()}"


@contextlib.contextmanager
def agent(config: Path, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """`tapmesh run` in the background, stopped as an operator would at the end. `prefix`: a command that becomes the one behind it."""
    command = [*prefix, *TAPMESH, "run", "--config", str(config), "--name", agent_name()]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise RuntimeError(f"the agent did not stop within {STOP_S} s") from None
            if process.returncode not in (0, 143):
                said.seek(0)
                raise RuntimeError(f"the agent ended with {process.returncode}: {said.read().decode(errors='replace')[-2000:]}")


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU time, user and system, of all threads of these processes so far; what softirqs do in their time is in it."""
    total = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(path.read_text().split()[0])
    return total


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def config_text(capture: Path, tool: str, rules: Sequence[str], *, pace: str = "max") -> str:
    """One input, one map of pass rules, one tool."""
    lines = [
        "node: bench",
        "inputs:",
        f'  mirror: {{kind: pcap, files: ["{capture}"], pace: {pace}}}',
        "tools:",
        f"  out: {tool}",
        "maps:",
        "  - name: selected",
        "    rules:",
        *(f'      - pass: "{rule}"' for rule in rules),
        "    to: [out]",
    ]
    return "\n".join(lines) + "\n"
