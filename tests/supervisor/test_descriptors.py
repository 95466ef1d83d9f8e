"""Limits of open files: raised as far as we may, refused in words where they are too low, and never a worker that dies again and again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.tapmesh import COMMAND, numbered, unique_name
from tests.packets import pcap


def write(directory: Path, n_tools: int) -> Path:
    (directory / "in.pcap").write_bytes(pcap(numbered(20)))
    names = [f"t{n}" for n in range(n_tools)]
    tools = "".join(f"  {name}: {{kind: pcap, file: {directory}/{name}.pcap}}\n" for name in names)
    config = directory / "c.yaml"
    config.write_text(
        f"inputs:\n  span: {{kind: pcap, file: {directory}/in.pcap}}\ntools:\n{tools}"
        f"maps:\n  - {{name: all, rules: [pass: udp], to: [{', '.join(names)}]}}\n"
    )
    return config


def run(limit: str, config: Path) -> subprocess.CompletedProcess[str]:
    words = ["prlimit", f"--nofile={limit}", *COMMAND, "run", "--config", str(config), "--name", unique_name()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("limit", "n_tools"), [("64:64", 16), ("256:256", 64), ("64:4096", 64)])
def test_what_the_limit_allows_is_delivered(tmp_path: Path, limit: str, n_tools: int) -> None:
    done = run(limit, write(tmp_path, n_tools))
    assert (done.returncode, "worker_died" in done.stderr) == (0, False), done.stderr
    assert {(tmp_path / f"t{n}.pcap").stat().st_size for n in range(n_tools)} == {(tmp_path / "in.pcap").stat().st_size}


def test_a_limit_that_is_too_low_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    done = run("64:64", write(tmp_path, 64))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "a process may have 64 files open, the pipeline needs 160 (64 tools, 4 workers): "
        "raise the limit (systemd: LimitNOFILE=1024; a shell: ulimit -Hn), or have fewer tools"
    )
    assert "worker_died" not in done.stderr
