"""``python -m bench.soak --seconds N [--rate PACKETS_PER_S]``: does it lose, grow or wear out? On the wires of the live bench.

The broker runs at 80 % of its own rate without loss, found first, or at the rate given, and gets another policy every second, of two that
want the same packets by other rules. Once a second is noted what it holds:

| figure | what |
|---|---|
| memory | PSS of all its processes without shared memory; its slope, by least squares over what comes after the first fifth |
| shared_bytes | files of the pipeline, by the space that they take |
| descriptors, threads | of all its processes |
| files | of the pipeline in shared memory |

Prints one JSON line. Exit status 1 when it is not flat and lossless: `wrong` says in what. Without loss is that what should have arrived at
the far end did; with `--counted` that as much is in the ledger under a reason as did not, which is what a busy machine can promise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import programs, workload
from bench.brokers import agent_config, when_up
from bench.live import N_FRAMES, is_ipv4, settled
from bench.report import machine
from bench.scene import Scene, highest
from bench.wires import wires
from broker.core.shm import Pipeline, shared_memory_root

SHARE, STEP_S, N_STEPS = 0.8, 3.0, 6
SWAP_EVERY_S, SWAP_PATIENCE_S = 1.0, 30.0
WARM_UP = 0.2  # of the time: allocators and caches fill
GROWTH_BYTES = 4 << 20  # over the whole run; of what is less than that nobody can tell growth from noise
DESCRIPTORS, THREADS, FILES = 8, 4, 6  # more at the end than after the warm-up: what two swaps that are under way have open


@dataclass(frozen=True)
class Sample:
    at_s: float
    private_bytes: int
    shared_bytes: int
    descriptors: int
    threads: int
    files: int


def sample(began: float, pid: int) -> Sample:
    private, descriptors, threads = 0, 0, 0
    for one in programs.family(pid):
        with contextlib.suppress(OSError):  # it has just gone
            rows = dict(row.split(":", 1) for row in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:])
            private += 1024 * (int(rows["Pss"].split()[0]) - int(rows["Pss_Shmem"].split()[0]))
            descriptors += len(list(Path(f"/proc/{one}/fd").iterdir()))
            threads += len(list(Path(f"/proc/{one}/task").iterdir()))
    files = [path for path in (shared_memory_root() / f"tapmesh-{programs.agent_name()}").iterdir() if path.is_file()]
    return Sample(time.monotonic() - began, private, sum(_occupied(path) for path in files), descriptors, threads, len(files))


def _occupied(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # the policy before the last
        return path.stat().st_blocks * 512
    return 0


def slope(samples: list[Sample]) -> float:
    """Bytes per second of private memory, by least squares."""
    at, held = np.array([s.at_s for s in samples]), np.array([float(s.private_bytes) for s in samples])
    at -= at.mean()
    return float((at * (held - held.mean())).sum() / max(float((at * at).sum()), 1e-9))


def judge(samples: list[Sample]) -> list[str]:
    """What has grown, in words; empty: nothing."""
    warm = [s for s in samples if s.at_s >= WARM_UP * samples[-1].at_s]
    wrong = []
    if (grown := slope(warm) * (warm[-1].at_s - warm[0].at_s)) > GROWTH_BYTES:
        wrong.append(f"memory grew by {grown:.0f} bytes in {warm[-1].at_s - warm[0].at_s:.0f} s")
    half = len(warm) // 2
    for name, most in (("descriptors", DESCRIPTORS), ("threads", THREADS), ("files", FILES), ("shared_bytes", GROWTH_BYTES)):
        # The least of each half: a swap that is under way has things open that are closed after it.
        before, after = (min(getattr(s, name) for s in part) for part in (warm[: half or 1], warm[half:]))
        if after - before > most:
            wrong.append(f"{name} grew from {before} to {after}")
    return wrong


def swap(process: subprocess.Popen[bytes], pipeline: Pipeline, config: Path, number: int, generator: subprocess.Popen[str]) -> bool:
    """RuntimeError when it does not take effect in all workers; False when packets ended first: a policy comes with a block."""
    text = agent_config("kind: gre, key: 1")
    other = f'      - drop: "host 100.65.0.{number % 250} and port 9"\n'
    config.write_text(text.replace("    rules:\n", "    rules:\n" + other))
    before, end = int(pipeline.header[0]["generation"]), time.monotonic() + SWAP_PATIENCE_S
    process.send_signal(signal.SIGHUP)
    while int(pipeline.header[0]["generation"]) == before or any(
        int(generation) <= before for lane in pipeline.lanes for generation in lane.workers["generation"]
    ):
        if generator.poll() is not None:
            return False
        if time.monotonic() > end:
            raise RuntimeError(f"swap {number} did not take effect within {SWAP_PATIENCE_S:.0f} s")
        time.sleep(0.02)
    return True


def ledger() -> dict[str, Any]:
    said = subprocess.run([*programs.TAPMESH, "status", "--json", "--name", programs.agent_name()], capture_output=True, text=True)
    return dict(json.loads(said.stdout)["ledger"])


@contextlib.contextmanager
def stage(directory: Path) -> Iterator[tuple[Scene, subprocess.Popen[bytes], Pipeline, Path]]:
    capture, config = directory / "in.pcap", directory / "soak.yaml"
    workload.write_capture(capture, "imix", N_FRAMES)
    config.write_text(agent_config("kind: gre, key: 1"))
    passes = [is_ipv4(frame) for frame in workload.frames_of(capture)]
    with wires() as lines:
        lines.drop_at_ingress()
        with programs.agent(config, lines.command(lines.b, [])) as process:
            pipeline = when_up(process)
            yield Scene(lines, capture, passes, process.pid), process, pipeline, config


def soak(seconds: float, rate: float, *, counted: bool) -> dict[str, Any]:
    """RuntimeError when it could not run, or a swap took no effect."""
    with programs.scratch() as directory, stage(directory) as (scene, process, pipeline, config):
        if not rate:
            rate = SHARE * highest(lambda wanted: scene.offer(wanted, STEP_S), N_STEPS)[0]
        n = int(rate * seconds)
        whole, rest = divmod(n, len(scene.passes))
        expected = whole * sum(scene.passes) + sum(scene.passes[:rest])
        first = scene.wires.received()
        began, samples, swaps = time.monotonic(), [], 0
        generator = subprocess.Popen(scene.generator(rate, n), stdout=subprocess.PIPE, text=True)
        try:
            while generator.poll() is None:
                due = time.monotonic() + SWAP_EVERY_S
                swaps += swap(process, pipeline, config, swaps + 1, generator)
                samples.append(sample(began, process.pid))
                time.sleep(max(0.0, due - time.monotonic()))
        finally:
            generator.kill()
            said, _ = generator.communicate()
        if generator.returncode:
            raise RuntimeError(f"the generator ended with {generator.returncode}")
        arrived, found = settled(scene.wires, first + expected) - first, ledger()
        wrong = judge(samples) + [str(fault) for fault in found.get("faults", [])]
        lost = expected - arrived
        dropped = sum(n for lane in found["lanes"] for n in lane["dropped_packets"].values())
        dropped += sum(n for tool in found["tools"].values() for n in tool["dropped_frames"].values())
        if lost > (dropped if counted else 0):
            wrong.append(f"{lost} of {expected} frames did not arrive, {dropped} packets are counted as dropped")
        warm = [s for s in samples if s.at_s >= WARM_UP * samples[-1].at_s]
        return {
            "seconds": round(time.monotonic() - began, 1),
            "offered_per_s": round(n / json.loads(said)["wall_s"]),
            "expected": expected,
            "lost": lost,
            "dropped": dropped,
            "swaps": swaps,
            "memory_bytes": samples[-1].private_bytes,
            "memory_bytes_per_hour": round(slope(warm) * 3600),
            "shared_bytes": samples[-1].shared_bytes,
            "descriptors": [warm[0].descriptors, warm[-1].descriptors],
            "threads": [warm[0].threads, warm[-1].threads],
            "files": [warm[0].files, warm[-1].files],
            "wrong": wrong,
            "machine": machine(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Loss, memory and descriptors over time")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--rate", type=float, default=0.0, help="packets per second; found by itself when it is not given")
    parser.add_argument("--counted", action="store_true", help="loss is allowed if the ledger has it under a reason")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: network namespaces and raw sockets")
    try:
        said = soak(arguments.seconds, arguments.rate, counted=arguments.counted)
    except RuntimeError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    print(json.dumps(said), flush=True)
    return 1 if said["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
