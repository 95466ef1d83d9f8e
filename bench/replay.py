"""File to file: the whole pipeline, which also encapsulates, against `tcpdump -r IN -w OUT EXPRESSION` of the same selection.

Start-up is apart on both sides: ours counts from when every worker is up to the end of the traffic (run.json of the replay), tcpdump's
is what it needs for an empty capture with the same expression. Runs alternate; the median counts, the first of each is thrown away.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import programs, workload
from bench.report import Row

TOOL = "{tunnel: {kind: gre, source: 192.0.2.1, remote: 192.0.2.9, key: 7, sequence: true}}"
N_RULES = 100


def measure(quick: bool) -> Iterator[Row]:
    if shutil.which("tcpdump") is None:
        raise RuntimeError("tcpdump is not installed: there is nothing to compare with")
    sizes = ("imix",) if quick else ("imix", "64", "1514")
    for size in sizes:
        yield from _compare(size, 20_000 if quick else 1_000_000, 1 if quick else 3)


def _compare(size: str, n_packets: int, n_runs: int) -> Iterator[Row]:
    rules = workload.terms(N_RULES)
    expression = " or ".join(f"({rule})" for rule in rules)
    with programs.scratch() as directory:
        capture, empty, config = directory / "in.pcap", directory / "empty.pcap", directory / "bench.yaml"
        workload.write_capture(capture, size, n_packets)
        workload.write_capture(empty, size, 0)
        config.write_text(programs.config_text(capture, TOOL, rules))
        ours, start_ups, peers = [], [], []
        for run in range(-1, n_runs):
            programs.touch_memory(directory, capture.stat().st_size)
            figures, n_ours = _ours(capture, config, directory)
            start = _tcpdump(empty, directory / "none.pcap", expression)
            programs.touch_memory(directory, capture.stat().st_size)
            whole = _tcpdump(capture, directory / "tcpdump.pcap", expression)
            n_peer = count_packets(directory / "tcpdump.pcap")
            if n_ours != n_peer:
                raise RuntimeError(f"not the same selection: we delivered {n_ours} packets, tcpdump {n_peer}")
            if run < 0:
                continue
            ours.append(n_packets / figures["cpu_s"])
            start_ups.append(figures["start_up_s"])
            peers.append(n_packets / max(whole.cpu_s - start.cpu_s, 1e-9))
        share = {"selected": round(n_peer / n_packets, 3), "packets": n_packets, "runs": n_runs}
    case = f"{size}, {N_RULES} rules, pcap in, GRE in pcap out, one worker per stage, steady"
    value, peer = statistics.median(ours), statistics.median(peers)
    stages = {kind: stage["cpu_s"] for kind, stage in figures["stages"].items()}
    yield Row("replay", case, value, "packets per CPU second", {"tcpdump": value / peer}, {**share, "stages_cpu_s": stages})
    yield Row("replay", f"{size}, {N_RULES} terms, tcpdump -r -w, steady", peer, "packets per CPU second", {}, share)
    yield Row("replay", f"{size}, start-up of the replay", statistics.median(start_ups), "s")


def _ours(capture: Path, config: Path, directory: Path) -> tuple[dict[str, Any], int]:
    """(run.json, frames in the tool's file)."""
    out = directory / "out"
    programs.run([*programs.TAPMESH, "replay", str(capture), "--config", str(config), "--out", str(out)])
    figures = json.loads((out / "run.json").read_text())
    n = count_packets(out / "out.pcap")
    shutil.rmtree(out)
    return figures, n


def _tcpdump(capture: Path, out: Path, expression: str) -> programs.Cost:
    out.unlink(missing_ok=True)
    user = ["-Z", "root"] if os.geteuid() == 0 else []
    return programs.run(["tcpdump", *user, "-r", str(capture), "-w", str(out), expression])


def count_packets(path: Path) -> int:
    """Records of a little-endian capture, by walking it: no tool of either side."""
    data = memoryview(path.read_bytes())
    at, n = 24, 0
    while at < len(data):
        at += 16 + int.from_bytes(data[at + 8 : at + 12], "little")
        n += 1
    return n
