"""The real command in real processes, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from broker.core import layout
from broker.core.layout import PATH
from broker.core.shm import Pipeline, open_pipeline, pipeline_directory
from broker.supervisor import prepare
from broker.supervisor.numbers import numbers_path
from broker.supervisor.processes import find
from tests.packets import udp_frame
from tests.waiting import until

COMMAND = (sys.executable, "-I", "-m", "broker.cli.main")
_numbers = itertools.count()


def unique_name() -> str:
    return f"test-{os.getpid()}-{next(_numbers)}"


def tapmesh(*arguments: object, timeout_s: float = 120.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False, **options)


def numbered(n: int, *, port: int = 1000, size: int = 100) -> list[bytes]:
    """Frames that carry their number."""
    return [udp_frame("10.0.0.1", 4000 + i % 50, "10.0.0.2", port, i.to_bytes(4, "big") + bytes(size)) for i in range(n)]


@dataclass
class Broker:
    """A `tapmesh run` or `replay` that is going on."""

    name: str
    process: subprocess.Popen[str]
    log_path: Path
    pipelines: list[Pipeline] = field(default_factory=list)

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def stderr(self) -> str:
        return self.log_path.read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]

    def pipeline(self) -> Pipeline:
        if not self.pipelines:
            until(lambda: (pipeline_directory(self.name) / "control").exists() or self.process.poll() is not None, "the pipeline")
            self.pipelines.append(open_pipeline(self.name))
        return self.pipelines[0]

    def row(self, kind: str, worker: int = 0, lane: int = 0) -> Any:
        memory = self.pipeline().lanes[lane]
        return memory.workers[memory.geometry.row(kind, worker)]

    def cursor(self, kind: str, worker: int = 0) -> int:
        return int(self.row(kind, worker)["cursor"])

    def up(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"it has ended with {self.process.returncode}: {self.stderr}")
        running = (layout.STATE_RUNNING, layout.STATE_FINISHED)
        return all(bool(np.isin(lane.workers["state"], running).all()) for lane in self.pipeline().lanes)

    def wait_up(self) -> Broker:
        until(self.up, "all workers to be up")
        return self

    def pids(self) -> dict[tuple[str, int], int]:
        return {key: int(self.pipeline().lanes[0].workers[i]["pid"]) for i, key in enumerate(self.pipeline().lanes[0].geometry.workers)}

    def wait_again(self, kind: str, old_pid: int, worker: int = 0, lane: int = 0) -> None:
        def again() -> bool:
            row = self.row(kind, worker, lane)
            return int(row["pid"]) != old_pid and int(row["state"]) in (layout.STATE_RUNNING, layout.STATE_FINISHED)

        until(again, f"{kind} to come back")

    def kill(self, kind: str, worker: int = 0, number: int = signal.SIGKILL, lane: int = 0) -> int:
        pid = int(self.row(kind, worker, lane)["pid"])
        os.kill(pid, number)
        return pid

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def ledger(self) -> dict[str, Any]:
        """The last one, from the log."""
        (closed,) = self.events("ledger_closed")[-1:]
        return dict(closed)


@contextlib.contextmanager
def started(
    arguments: Sequence[object], name: str, directory: Path, *, level: str = "info", command: Sequence[str] = COMMAND
) -> Iterator[Broker]:
    """A broker; afterwards nothing of it is left, whatever the test did."""
    log_path = directory / f"{name}-{next(_numbers)}.log"
    environment = {**os.environ, "TAPMESH_LOG_LEVEL": level}
    with log_path.open("w") as log, (directory / f"{name}.out").open("a") as out:
        process = subprocess.Popen([*command, *map(str, arguments)], stdout=out, stderr=log, text=True, env=environment)
    name = name or f"replay-{process.pid}"
    try:
        yield Broker(name, process, log_path)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        prepare.clear(name)
        pipeline_directory(name).with_name(f"tapmesh-{name}.lock").unlink(missing_ok=True)
        numbers_path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def running(config: Path, directory: Path, name: str = "", *more: object) -> Iterator[Broker]:
    """`tapmesh run`."""
    name = name or unique_name()
    with started(["run", "--config", config, "--name", name, *more], name, directory) as broker:
        yield broker


@contextlib.contextmanager
def replaying(arguments: Sequence[object], directory: Path) -> Iterator[Broker]:
    """`tapmesh replay`; its pipeline is named by its pid."""
    with started(["replay", *arguments], "", directory) as broker:
        yield broker


def nothing_left(name: str) -> bool:
    """No process, no file in shared memory."""
    directory = pipeline_directory(name)
    return not find(name) and not directory.exists() and not directory.with_name(f"{directory.name}.lock").exists()


def write_config(
    path: Path, source: Path, *, to: Path, more: str = "", pace: object = "max", expression: str = "udp", stages: str = ""
) -> Path:
    """One input, one file tool, one map."""
    path.write_text(
        f"""node: test
inputs:
  span: {{kind: pcap, file: {source}, pace: {pace}}}
tools:
  recorder: {{kind: pcap, file: {to}}}
maps:
  - name: one
    rules: [pass: "{expression}"]
    to: [recorder]
stages: {{{stages or ", ".join(f"{kind}: 1" for kind in PATH)}}}
{more}"""
    )
    return path


class Feed:
    """A named pipe that capture reads: the test decides what comes and when it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._fd = -1

    def write(self, data: bytes) -> None:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR)  # so that opening waits for nobody
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, 1 << 20)  # and writing neither
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def end(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
