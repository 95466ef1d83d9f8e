"""Another version of tapmesh under the same name: drained by its own processes and never misread, on the way there and on the way back.

The other version is a copy of this one with another layout, installed in a virtual environment of its own. Its kernels run as plain Python:
compiling them anew would take longer than all else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.core.layout import LAYOUT_VERSION
from broker.supervisor.processes import find
from tests.again import ROOT
from tests.cli.tapmesh import nothing_left, numbered, running, tapmesh, unique_name, write_config
from tests.packets import pcap, read_pcap
from tests.waiting import until

N = 30_000
FRAMES = numbered(N, size=20)
_numbers = itertools.count()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The python of the other version."""
    home = tmp_path / "other"
    for package in ("broker", "stages"):
        shutil.copytree(ROOT / package, home / "code" / package, ignore=shutil.ignore_patterns("__pycache__", "kernels.so"))
    for path, old, new in (
        ("broker/core/layout.py", f"LAYOUT_VERSION = {LAYOUT_VERSION}\n", f"LAYOUT_VERSION = {LAYOUT_VERSION + 1}\n"),
        ("broker/core/layout.py", '    ("n_lanes", "<i8"),\n', '    ("new_field", "<i8"),\n    ("n_lanes", "<i8"),\n'),
        ("broker/core/layout.py", '    ("stop_at", "<i8"),\n', ""),
        ("broker/core/layout.py", '    ("heartbeat_ns", "<i8"),', '    ("new_field", "<i8"),\n    ("heartbeat_ns", "<i8"),'),
        ("stages/memory/plain.py", "raise OutOfBoundsError(", "return  # ("),  # plain kernels may touch what tests allow, and nobody allows
    ):
        text = (home / "code" / path).read_text()
        assert text.count(old) == 1
        (home / "code" / path).write_text(text.replace(old, new))
    venv.create(home / "venv", with_pip=False)
    (site,) = (home / "venv").glob("lib/python3*/site-packages")
    (site / "other.pth").write_text(f"{home / 'code'}\n{sysconfig.get_paths()['purelib']}\n")
    return home / "venv" / "bin" / "python"


@dataclass
class Other:
    """`tapmesh run` of the other version."""

    process: subprocess.Popen[bytes]
    log: Path

    def up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return '"pipeline_up"' in self.log.read_text()

    def stopped(self) -> set[str]:
        """Of which stages workers have ended because they were asked to, with all done."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return {line["stage"] for line in lines if line["event"] == "worker_stopped"}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running_other(python: Path, config: Path, name: str) -> Iterator[Other]:
    log = config.with_name(f"other-{next(_numbers)}.log")
    command = [python, "-I", "-m", "broker.cli.main", "run", "--config", config, "--name", name]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})
    try:
        yield Other(process, log)
    finally:
        process.kill()
        process.wait()
        for pid in find(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(FRAMES))
    return path


def test_what_another_version_has_left_running_drains_itself_and_is_started_anew_and_so_on_the_way_back(
    tmp_path: Path, source: Path, other: Path
) -> None:
    name = unique_name()
    before, ours_got, after = (tmp_path / f"{part}.pcap" for part in ("before", "ours", "after"))
    config = write_config(tmp_path / "c.yaml", source, to=before, pace=500)
    with running_other(other, config, name) as theirs:
        until(theirs.up, "the other version to be up")
        until(lambda: before.stat().st_size > 10_000, "it to deliver")
        theirs.kill()

        told = f"layout version {LAYOUT_VERSION + 1}, here {LAYOUT_VERSION}: another version of tapmesh runs it"
        pids = find(name)
        refused = tapmesh("status", "--name", name)
        assert (refused.returncode, told in refused.stderr) == (1, True)
        refused = tapmesh("run", "--config", config, "--name", name, "--external-stages")
        assert (refused.returncode, told in refused.stderr) == (1, True)
        assert "stop those stages first" in refused.stderr
        assert find(name) == pids

        write_config(config, source, to=ours_got, pace=2000)
        with running(config, tmp_path, name) as ours:
            until(lambda: ours.events("pipeline_up"), "this version to be up")
            assert [event["killed"] for event in ours.events("foreign_drained")] == [[]]
            assert not ours.events("pipeline_adopted")
            assert theirs.stopped() == {"capture", "filter", "encapsulate", "send"}
            until(lambda: ours.cursor("send") > 0, "this version to deliver")
            ours.process.kill()
            ours.process.wait()

            write_config(config, source, to=after, pace=500)
            with running_other(other, config, name) as again:
                until(again.up, "the other version to be up again")
                assert '"foreign_drained"' in again.log.read_text()
                assert {line["stage"] for line in ours.events("worker_stopped")} == {"capture", "filter", "encapsulate", "send"}
                again.process.send_signal(signal.SIGTERM)
                assert again.process.wait(60) == 0
                assert '"balanced": true' in again.log.read_text()
    assert nothing_left(name)
    for path in (before, ours_got, after):
        got = [frame for _, frame in read_pcap(path.read_bytes())[1]]
        assert got == FRAMES[: len(got)]
        assert len(got) > 0
