"""Processes that are stopped for longer than their heartbeat and go on: never two of one worker, nobody killed in a storm, nothing lost but
what the kernel has counted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.core import layout
from broker.core.errors import EXIT_RUNNING
from broker.supervisor.companions import MODULE as COMPANIONS
from broker.supervisor.plan import HEARTBEAT_NS
from broker.supervisor.processes import find
from tests.cli.tapmesh import numbered, running, write_config
from tests.endurance.live import Run, check, loaded
from tests.live.test_privileges import openers
from tests.live.test_veth import Wires, wires  # noqa: F401 - a fixture
from tests.netns import needs_root
from tests.packets import pcap, read_pcap
from tests.waiting import until

PAUSE_S = HEARTBEAT_NS / 1e9 + 0.5


def for_a_while() -> None:
    begun = time.monotonic()
    until(lambda: time.monotonic() - begun > PAUSE_S, "longer than the patience")


def everybody(run: Run) -> list[int]:
    return [run.broker.process.pid, *openers(run.name), *find(run.name), *find(run.name, COMPANIONS)]


@pytest.mark.root
@needs_root
def test_pauses_of_a_live_pipeline(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    with loaded(wires, tmp_path / "run", print) as run:
        run.goes_on()
        before = everybody(run)
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        for_a_while()
        for pid in before:  # the supervisor first: nobody has beaten yet when it looks
            os.kill(pid, signal.SIGCONT)
        until(lambda: run.broker.events("supervisor_paused"), "the supervisor to notice its pause")
        run.goes_on()
        assert everybody(run) == before
        assert not run.broker.events("worker_killed")

        workers = run.broker.pids()
        for pid in workers.values():
            os.kill(pid, signal.SIGSTOP)
        for (kind, worker), pid in workers.items():
            run.broker.wait_again(kind, pid, worker)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            assert not Path(f"/proc/{pid}/fd").exists() or not os.listdir(f"/proc/{pid}/fd"), "two of one worker"
        run.goes_on()
        assert len(run.broker.events("worker_killed")) == len(workers)

        host = run.host()
        os.kill(host, signal.SIGSTOP)
        old = run.broker.kill("filter")
        run.broker.wait_again("filter", old)
        assert run.host() != host
        run.goes_on()
        check(run)


def test_a_stopped_worker_keeps_its_place_whatever_becomes_of_the_files_beside_it(tmp_path: Path) -> None:
    """Where nobody kills it: another one of it is refused until it has gone, and it goes on as if nothing had been."""
    frames = numbered(20_000)
    source, target = tmp_path / "in.pcap", tmp_path / "out.pcap"
    source.write_bytes(pcap(frames))
    config = write_config(tmp_path / "c.yaml", source, to=target, pace=5000)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(running(config, tmp_path, "", "--external-stages"))
        first = {kind: stack.enter_context(external(broker.name, kind)) for kind in ("send", "encapsulate", "filter", "capture")}
        broker.wait_up()
        until(lambda: broker.cursor("send") > 1, "blocks to be sent")
        for kind in ("send", "filter"):
            first[kind].send_signal(signal.SIGSTOP)
        for_a_while()
        for path in broker.pipeline().directory.glob("*.lock"):
            path.unlink()
        for kind in ("send", "filter"):
            with external(broker.name, kind) as second:
                assert second.wait(60) == EXIT_RUNNING
        for kind in ("send", "filter"):
            assert int(broker.row(kind)["pid"]) == first[kind].pid
            first[kind].send_signal(signal.SIGCONT)
        until(lambda: broker.row("capture")["state"] == layout.STATE_FINISHED, "the file to end")
        until(lambda: broker.cursor("send") == broker.cursor("capture"), "all to be sent")
        broker.process.send_signal(signal.SIGTERM)
        for kind in ("capture", "filter", "encapsulate", "send"):
            first[kind].terminate()
            assert first[kind].wait(60) == 0
        assert broker.process.wait(60) == 0, broker.stderr
        assert broker.ledger()["balanced"]
    assert [frame for _, frame in read_pcap(target.read_bytes())[1]] == frames


@contextlib.contextmanager
def external(name: str, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as others start it."""
    process = subprocess.Popen([sys.executable, "-I", "-m", "stages", kind, "--pipeline", name])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
