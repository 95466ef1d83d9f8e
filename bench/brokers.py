"""The sides of the live bench: ours, and peers that do the same between b0 and b1 of the same wires.

All pass IPv4 of 10.0.0.0/8, tagged or not, by the last of 100 rules; none of the others matches. That is what the plain C broker of
shared/peers/scripts knows to do; it is compiled from there, and absent where that folder or a compiler is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import programs
from bench.rulesets import SHARED
from bench.wires import REMOTE, SOURCE, Wires
from broker.core import layout
from broker.core.errors import PipelineError
from broker.core.metrics import index
from broker.core.shm import Pipeline, open_pipeline

N_RULES = 100
NET = "10.0.0.0/8"
VNI = 42
START_S = 300.0  # the kernels may have to be compiled first
C_SOURCE = SHARED / "peers" / "scripts" / "cbroker.c"
_RUNNING = layout.STATE_RUNNING


@dataclass
class Running:
    """A broker that is up. `stages`: what it says of itself, counted from its start."""

    pids: Callable[[], list[int]] = list
    stages: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Side:
    """`start` is given the wires and a directory; `absent` says why it cannot run here."""

    name: str
    start: Callable[[Wires, Path], AbstractContextManager[Running]]
    absent: str = ""
    rate: float = 0.0  # packets per second; 0: as the others


def other_hosts(n: int = N_RULES - 2) -> list[tuple[str, int]]:
    """Hosts and ports of the rules that match nothing."""
    return [(f"100.64.{i // 250}.{i % 250 + 1}", 1000 + i) for i in range(n)]


def pinned(words: Sequence[str]) -> list[str]:
    """On a core that the generator does not have, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[1]), *words] if len(cores) > 1 else list(words)


@contextlib.contextmanager
def background(command: Sequence[str], *, until: str = "ready") -> Iterator[Running]:
    """A program that says `until` when it is up; ended by SIGTERM."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            end = time.monotonic() + START_S
            while until.encode() not in said:
                piece = os.read(process.stdout.fileno(), 4096) if selector.select(end - time.monotonic()) else b""
                if not piece:
                    raise RuntimeError(f"{' '.join(command)[:200]}: did not start: {said.decode(errors='replace')[-1000:]}")
                said += piece
        yield Running(lambda: programs.family(process.pid))
    finally:
        process.terminate()
        process.wait(programs.STOP_S)
        process.stdout.close()


@contextlib.contextmanager
def nothing(wires: Wires, _directory: Path) -> Iterator[Running]:
    """Frames end at b0: what the generator takes alone."""
    wires.drop_at_ingress()
    yield Running()


def c_broker(mode: str, *options: str) -> Callable[[Wires, Path], AbstractContextManager[Running]]:
    @contextlib.contextmanager
    def start(wires: Wires, directory: Path) -> Iterator[Running]:
        program = directory / "cbroker"
        if not program.exists():
            programs.run(["cc", "-O3", "-march=native", "-w", "-o", str(program), str(C_SOURCE)])
        wires.drop_at_ingress()
        command = [str(program), "-i", "b0", "-o", "b1", "-m", mode, "-N", str(N_RULES), "-d", REMOTE, *options]
        with background(pinned(wires.command(wires.b, command))) as running:
            yield running

    return start


def python_broker(kind: str) -> Callable[[Wires, Path], AbstractContextManager[Running]]:
    @contextlib.contextmanager
    def start(wires: Wires, _directory: Path) -> Iterator[Running]:
        wires.drop_at_ingress()
        command = [sys.executable, "-m", "bench.pybroker", kind, "b0", REMOTE, json.dumps(other_hosts())]
        with background(pinned(wires.command(wires.b, command))) as running:
            yield running

    return start


@contextlib.contextmanager
def mirred(wires: Wires, directory: Path) -> Iterator[Running]:
    """The kernel alone: u32 filters at b0's ingress, redirected into a vxlan device."""
    ends = ("remote", REMOTE, "local", SOURCE, "dstport", "4789", "dev", "b1", "nolearning", "noudpcsum")
    wires.ip("link", "add", "vx0", "type", "vxlan", "id", str(VNI), *ends)
    wires.ip("link", "set", "vx0", "mtu", "1900", "up")
    wires.drop_at_ingress()
    matches = [f"ip src {host}/32" for host, _ in other_hosts()] + [f"ip src {NET}"]
    batch = directory / "tc.batch"
    batch.write_text(
        "".join(
            f"filter add dev b0 ingress protocol {protocol} pref {pref} u32 match {match} action mirred egress redirect dev vx0\n"
            for pref, protocol in ((10, "ip"), (11, "802.1Q"))
            for match in matches
        )
    )
    wires.tc("-b", str(batch))
    yield Running()


def ours(tunnel: str, backend: str) -> Callable[[Wires, Path], AbstractContextManager[Running]]:
    """The broker with one worker of each stage and one tool."""

    @contextlib.contextmanager
    def start(wires: Wires, directory: Path) -> Iterator[Running]:
        wires.drop_at_ingress()
        config = directory / "live.yaml"
        config.write_text(agent_config(tunnel, backend))
        with programs.agent(config, pinned(wires.command(wires.b, []))) as process:
            pipeline = when_up(process)
            yield Running(lambda: programs.family(process.pid), lambda: _stages(pipeline))

    return start


def agent_config(tunnel: str, backend: str = "auto") -> str:
    """Of an agent with one tool."""
    rules = [f"host {host} and port {port}" for host, port in other_hosts()] + [f"net {NET}", f"vlan and net {NET}"]
    lines = [
        "node: bench",
        "inputs: {span: {kind: afpacket, interface: b0}}",
        f"tools: {{out: {{tunnel: {{{tunnel}, remote: {REMOTE}}}, backend: {backend}}}}}",
        "maps:",
        "  - name: selected",
        "    rules:",
        *(f'      - pass: "{rule}"' for rule in rules),
        "    to: [out]",
    ]
    return "\n".join(lines) + "\n"


def when_up(process: subprocess.Popen[bytes]) -> Pipeline:
    """Of the agent, once every worker runs."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(PipelineError, OSError):
            pipeline = open_pipeline(programs.agent_name())
            while time.monotonic() < end and process.poll() is None:
                if all(bool((lane.workers["state"] == _RUNNING).all()) for lane in pipeline.lanes):
                    return pipeline
                time.sleep(0.02)
        time.sleep(0.02)
    raise RuntimeError(f"the agent is not up after {START_S} s")


def _stages(pipeline: Pipeline) -> dict[str, Any]:
    """Of each stage: CPU time of its process, time in steps, blocks, sleeps and rings."""
    memory = pipeline.lanes[0]
    found = {}
    for i, (kind, _) in enumerate(memory.geometry.workers):
        live, row = memory.live[i], memory.workers[i]
        counted = {name: int(live[index("", name)]) for name in ("busy_ns", "parks", "bells")}
        found[kind] = {"cpu_ns": programs.cpu_ns([int(row["pid"])]), "blocks": int(row["cursor"]), **counted}
    return found


def missing(*, modules: Sequence[str] = (), commands: Sequence[str] = (), files: Sequence[Path] = ()) -> str:
    """Why a side is absent, in words; empty when nothing is missing."""
    absent = [f"the Python package {name}" for name in modules if importlib.util.find_spec(name) is None]
    absent += [f"the command {name}" for name in commands if shutil.which(name) is None]
    absent += [str(path) for path in files if not path.exists()]
    return f"missing: {', '.join(absent)}" if absent else ""
