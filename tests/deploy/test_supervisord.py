"""The programs of deploy/supervisord under the real supervisord: a stage killed in mid-traffic costs nothing, and a stop leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packets import pcap, read_pcap, udp_frame
from tests.waiting import until

PROGRAMS = Path(__file__).resolve().parents[2] / "deploy" / "supervisord" / "tapmesh.conf"
FRAMES = [udp_frame("10.0.0.1", 1 + n % 60_000, "10.0.0.2", 5000, n.to_bytes(4, "big")) for n in range(12_000)]
PACE = 3_000  # packets per second: long enough to be caught in the middle

SUPERVISORD = """
[supervisord]
nodaemon=true
{user}logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid
childlogdir={directory}
[unix_http_server]
file={directory}/s
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{directory}/s
[include]
files={directory}/tapmesh.conf
"""

CONFIG = """
node: test
inputs:
  file: {{kind: pcap, files: ["{directory}/in.pcap"], pace: {pace}}}
tools:
  out: {{kind: pcap, file: "{directory}/out.pcap"}}
maps:
  - name: everything
    rules:
      - pass: "udp"
    to: [out]
"""


class Supervisord:
    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self.out = directory / "out.pcap"
        self.memory = Path(os.environ.get("TAPMESH_SHM", "/dev/shm")) / f"tapmesh-{name}"
        (directory / "in.pcap").write_bytes(pcap(FRAMES))
        (directory / "tapmesh.yaml").write_text(CONFIG.format(directory=directory, pace=PACE))
        user = "user=root\n" if os.geteuid() == 0 else ""
        (directory / "supervisord.conf").write_text(SUPERVISORD.format(directory=directory, user=user))
        (directory / "tapmesh.conf").write_text(self.programs())
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(directory / "supervisord.conf")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def programs(self) -> str:
        """The file as it is, with the paths and the name of this test."""
        text = PROGRAMS.read_text()
        for theirs, ours in {
            "/opt/tapmesh/bin/tapmesh ": f"{sys.executable} -I -m broker.cli.main ",
            "/opt/tapmesh/bin/python ": f"{sys.executable} ",
            "/etc/tapmesh/tapmesh.yaml": f"{self.directory}/tapmesh.yaml",
            "--name tapmesh": f"--name {self.name}",
            "--pipeline tapmesh": f"--pipeline {self.name}",
        }.items():
            assert theirs in text
            text = text.replace(theirs, ours)
        return text

    def control(self, *words: str) -> str:
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.directory / "supervisord.conf"), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def running(self) -> dict[str, int]:
        """Program: pid."""
        return {name: int(pid) for name, pid in re.findall(r"^\S*?(tapmesh-[a-z]+)\S*\s+RUNNING\s+pid (\d+)", self.control("status"), re.M)}

    def n_delivered(self) -> int:
        try:
            data = self.out.read_bytes()
        except FileNotFoundError:
            return 0
        at, n = 24, 0
        while at + 16 <= len(data) and (end := at + 16 + int.from_bytes(data[at + 8 : at + 12], "little")) <= len(data):
            at, n = end, n + 1
        return n

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("*.log")))

    def of_this_pipeline(self) -> list[str]:
        """Command lines of processes that name it."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode().split("\0")
            except OSError:
                continue
            if self.name in words:
                found.append(" ".join(words))
        return found


@pytest.fixture
def supervisord(tmp_path: Path) -> Iterator[Supervisord]:
    made = Supervisord(tmp_path, f"sv{os.getpid()}")
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.wait(60)


def test_each_stage_is_a_program_and_a_kill_in_mid_traffic_loses_nothing(supervisord: Supervisord) -> None:
    until(lambda: supervisord.n_delivered() > 500, "the first frames", 120)
    before = supervisord.running()
    assert set(before) == {"tapmesh-control", "tapmesh-capture", "tapmesh-filter", "tapmesh-encapsulate", "tapmesh-send"}
    os.kill(before["tapmesh-filter"], signal.SIGKILL)
    at_kill = supervisord.n_delivered()
    assert at_kill < len(FRAMES), "it was over before it could be killed"
    until(lambda: supervisord.n_delivered() >= len(FRAMES), "all frames", 60)
    after = supervisord.running()
    assert after.pop("tapmesh-filter") != before.pop("tapmesh-filter"), "supervisord has started it again"
    assert after == before, "nobody else was touched, and what has played its file waits to be stopped"

    supervisord.control("shutdown")
    until(lambda: supervisord.process.poll() is not None, "supervisord to end", 60)
    assert [frame for _, frame in read_pcap(supervisord.out.read_bytes())[1]] == FRAMES
    stopped = re.findall(r"stopped: tapmesh-([a-z]+)\S* \(exit status 0\)", (supervisord.directory / "supervisord.log").read_text())
    assert stopped == ["capture", "filter", "encapsulate", "send", "control"], supervisord.log()
    assert not supervisord.memory.exists()
    assert supervisord.of_this_pipeline() == []
