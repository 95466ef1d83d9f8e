"""The sides of `bench.peers`: who is given the same capture, on one core, and what of its CPU time counts.

| side | what counts, per packet |
|---|---|
| ours | user and system time of all workers, from when every one is up to the end of the traffic |
| one process | the same stages by `bench.alone`: from the first block to the last |
| tcpdump, C | the whole process less what it takes for an empty capture |
| dpkt, scapy | the loop; they get the first packets only |

All but tcpdump read, parse, judge, put GRE before it, and write; tcpdump writes what it selects as it is. Each writes to /dev/null or to
a file in memory. The plain C reference is compiled from the shared scripts, and absent where they or a compiler are.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import programs, workload
from bench.brokers import NET, missing, other_hosts
from bench.replay import count_packets
from bench.rulesets import SHARED
from broker.core.model import RingSizes

TOOL = "{tunnel: {kind: gre, source: 192.0.2.1, remote: 192.0.2.9}}"
C_SOURCE = SHARED / "peers" / "scripts" / "fileref.c"
FIRST = {"dpkt": 20_000, "scapy": 6_000}
RING_BLOCKS = RingSizes().blocks
NULL = Path("/dev/null")


@dataclass(frozen=True)
class Work:
    """What every side is given. `directory` is in memory."""

    directory: Path
    size: str
    n_packets: int
    core: int = field(default_factory=lambda: max(os.sched_getaffinity(0)))

    @property
    def capture(self) -> Path:
        return self.directory / "in.pcap"

    @property
    def empty(self) -> Path:
        return self.directory / "empty.pcap"

    def first(self, n: int) -> Path:
        return self.directory / f"first{n}.pcap"

    def write(self) -> None:
        workload.write_capture(self.capture, self.size, self.n_packets)
        workload.write_capture(self.empty, self.size, 0)
        for n in FIRST.values():
            workload.write_capture(self.first(n), self.size, min(n, self.n_packets))

    def pinned(self, words: Sequence[str]) -> list[str]:
        return ["taskset", "-c", str(self.core), *words]


@dataclass(frozen=True)
class Side:
    """`run` gives ns per packet; `out` is NULL or a file that is not there. `detail` is of the last run."""

    name: str
    run: Callable[[Work, Path], float]
    absent: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


def rules(n: int, *, tagged: bool = False) -> list[str]:
    """`n` terms, of which only the last matches: 10.0.0.0/8. `tagged`: and one more, for VLAN tags, which all but libpcap see through."""
    chosen = [f"host {host} and port {port}" for host, port in other_hosts(n - 1)] + [f"net {NET}"]
    return [*chosen, f"vlan and net {NET}"] if tagged else chosen


def net_rules(n: int) -> list[str]:
    """The same of networks."""
    return [f"net 100.{64 + i // 256}.{i % 256}.0/24" for i in range(n - 1)] + [f"net {NET}"]


def ours(name: str, chosen: Sequence[str]) -> Side:
    """The whole pipeline, one worker a stage, every process of it on the one core."""
    detail: dict[str, Any] = {}

    def run(work: Work, out: Path) -> float:
        config = work.directory / "bench.yaml"
        config.write_text(programs.config_text(work.capture, TOOL, chosen))
        figures, whole = replay(work, config, out, work.pinned([]))
        ns = 1e9 * float(figures["cpu_s"]) / work.n_packets
        stages = {kind: round(1e9 * stage["cpu_s"] / work.n_packets, 1) for kind, stage in figures["stages"].items()}
        detail.update(
            stages_ns=stages, packets_per_s=figures["packets_per_s"], start_up_s=round(figures["start_up_s"], 3),
            start_up_cpu_s=round(whole.cpu_s - figures["cpu_s"], 3),
        )  # fmt: skip
        return ns

    return Side(name, run, detail=detail)


def replay(work: Work, config: Path, out: Path, prefix: Sequence[str]) -> tuple[dict[str, Any], programs.Cost]:
    """(run.json of a replay that writes to `out`, what all its processes cost)."""
    directory = work.directory / "out"
    directory.mkdir()
    try:
        (directory / "out.pcap").symlink_to(out)  # a replay names its files itself
        whole = programs.run([*prefix, *programs.TAPMESH, "replay", str(work.capture), "--config", str(config), "--out", str(directory)])
        figures: dict[str, Any] = json.loads((directory / "run.json").read_text())
        return figures, whole
    finally:
        shutil.rmtree(directory)


def one_process(name: str, chosen: Sequence[str], n_blocks: int = RING_BLOCKS) -> Side:
    detail: dict[str, Any] = {}

    def run(work: Work, out: Path) -> float:
        config = work.directory / "bench.yaml"
        config.write_text(programs.config_text(work.capture, TOOL, chosen))
        said = told(work.pinned([sys.executable, "-m", "bench.alone", str(work.capture), str(config), str(out), str(n_blocks)]))
        detail.update(stages_ns={kind: round(ns / said["packets"], 1) for kind, ns in said["stages_ns"].items()})
        return float(said["cpu_ns"]) / float(said["packets"])

    return Side(name, run, detail=detail)


def tcpdump(name: str, chosen: Sequence[str]) -> Side:
    expression = " or ".join(f"({rule})" for rule in chosen)
    user = ["-Z", "root"] if os.geteuid() == 0 else []
    return Side(
        name,
        _less_start(lambda capture, out: ["tcpdump", *user, "-r", str(capture), "-w", str(out), expression]),
        missing(commands=("tcpdump",)),
    )


def c_reference(name: str, n: int) -> Side:
    """Passes what `rules(n, tagged=True)` do."""

    def run(work: Work, out: Path) -> float:
        program = work.directory / "fileref"
        if not program.exists():
            programs.run(["cc", "-O3", "-march=native", "-w", "-o", str(program), str(C_SOURCE)])
        return _less_start(lambda capture, out: [str(program), str(capture), str(out), "erh", str(n)])(work, out)

    return Side(name, run, missing(commands=("cc",), files=(C_SOURCE,)))


def python(kind: str, n: int) -> Side:
    def run(work: Work, out: Path) -> float:
        capture = work.first(FIRST[kind])
        command = [sys.executable, "-m", "bench.pyfile", kind, str(capture), str(out), json.dumps(other_hosts(n - 1))]
        said = told(work.pinned(command))
        return float(said["cpu_ns"]) / float(said["packets"])

    return Side(kind, run, missing(modules=(kind,)))


def told(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}: exit status {done.returncode}: {done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _less_start(command: Callable[[Path, Path], list[str]]) -> Callable[[Work, Path], float]:
    """CPU time for the capture less that for an empty one, the median of three, which is short."""

    def run(work: Work, out: Path) -> float:
        starts = [programs.run(work.pinned(command(work.empty, NULL))).cpu_s for _ in range(3)]
        whole = programs.run(work.pinned(command(work.capture, out)))
        return 1e9 * (whole.cpu_s - statistics.median(starts)) / work.n_packets

    return run


def check(work: Work, sides: Sequence[Side]) -> tuple[int, dict[str, list[float]]]:
    """(packets that they select, ns of each). RuntimeError unless all select as many packets of the capture."""
    out = work.directory / "checked.pcap"
    counts, times = {}, {}
    for side in sides:
        out.unlink(missing_ok=True)
        times[side.name] = [side.run(work, out)]
        counts[side.name] = count_packets(out)
    out.unlink()
    if len(set(counts.values())) != 1:
        raise RuntimeError(f"the sides do not select the same packets: {counts}")
    return next(iter(counts.values())), times
