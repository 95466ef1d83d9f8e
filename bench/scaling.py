"""How throughput grows with cores, workers and lanes, file to file: what the parts cost, a model made of that, and whether it is right.

| figure | measured by |
|---|---|
| a stage's CPU time for a packet | `bench.alone`: all stages in one process, over as many blocks as a ring has |
| the same on all cores at once | as many such processes: cores of a virtual machine may be halves of one |
| a hand-over | `bench.handover`: the real ring, bells and loop, the cores and workers of the case, stages that are busy for as long |
| memory | copies between arrays larger than the caches, on one core and on all at once, a CPU second; reads and writes counted |
| bytes of a packet | reckoned (`_traffic`): a virtual machine has no counter to read |

`model.py` predicts from these, and the pipeline itself is measured: on one core, on two, with another filter worker and with another
encapsulate worker. Where a prediction is more than TOLERANCE off the exit status is 1, and also where others took more than QUIET of
the cores, so that nothing can be said.

Send stays alone: a file is written by one worker. Rows for machines that are not here say what would be the limit there; memory is taken
to grow with the cores up to SOCKET_BYTES_PER_S, which is an assumption. Those of `live` are made of `livecosts.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import programs
from bench.filesides import NULL, RING_BLOCKS, TOOL, Work, one_process, replay, rules, told
from bench.livecosts import live_costs
from bench.model import Cost, Machine, Plan, Prediction, predict, spread
from bench.report import Row, short
from broker.core.layout import PATH
from broker.core.model import RingSizes

TOLERANCE = 0.15
SOCKET_BYTES_PER_S = 160e9
N_PACKETS = {"64": 4_000_000, "imix": 2_000_000, "1514": 1_000_000}
N_ROUNDS = 3
QUIET = 0.05  # what others may take
FUTURE_CORES = (8, 16, 64)
_RING = RingSizes()
_RULES = rules(100, tagged=True)
_COPY = """
import numpy as np, sys, time
a, b, n = np.ones(1 << 27, np.uint8), np.ones(1 << 27, np.uint8), int(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
began = time.process_time()
for _ in range(n):
    b[:] = a
print(2 * n * a.size / (time.process_time() - began))
"""


@dataclass(frozen=True)
class Case:
    """A pipeline that is measured: `cores` it may use, and its plan."""

    cores: int
    plan: Plan
    words: str


@dataclass(frozen=True)
class Measured:
    """From when all workers are up to the end of the traffic; `others`: share of the cores that was taken by who is not ours."""

    packets_per_s: float
    others: float


def measure(quick: bool) -> Iterator[Row]:
    here = min(2, len(os.sched_getaffinity(0)))
    bandwidth = {n: _bandwidth(n, 1 if quick else 20) for n in ((here,) if quick else range(1, here + 1))}
    for n, rate in bandwidth.items():
        yield Row("scaling", f"memory, copies on {n} cores", rate / 1e9, "GB/s")
    wrong: list[str] = []
    for size, n_packets in ({"imix": 20_000} if quick else N_PACKETS).items():
        with programs.scratch() as directory:
            work = Work(directory, size, n_packets)
            work.write()
            parts = _Parts(work)
            cases = _cases(here, parts.block_packets)[-1:] if quick else _cases(here, parts.block_packets)
            runs: list[list[Measured]] = [[] for _ in cases]
            for _ in range(1 if quick else N_ROUNDS):
                parts.measure(cases, 100 if quick else 4_000, here)
                for found, case in zip(runs, [] if quick else cases, strict=not quick):
                    found.append(_measured(work, case))
            yield from parts.rows()
            for case, measured in zip(cases, runs, strict=True):
                if measured:
                    yield _checked(parts, case, measured, bandwidth[case.cores], wrong)
            machine = Machine(here, bandwidth[here], parts.hand_over(cases[-1]), parts.slowdown)
            yield from _futures(size, parts.costs(), machine, parts.block_packets)
    if not quick and os.geteuid() == 0:
        machine = Machine(here, bandwidth[here], 0.0)
        yield from _futures("live, imix, gre", live_costs("imix"), machine, _RING.block_packets)
    if wrong:
        raise RuntimeError("; ".join(wrong))


class _Parts:
    """What a packet and a block cost, the medians of some rounds."""

    def __init__(self, work: Work) -> None:
        self._work, self.size = work, work.size
        self._mean_bytes = (work.capture.stat().st_size - 24) / work.n_packets  # of a packet, with its record header
        self.block_packets = min(float(_RING.block_packets), _RING.block_bytes / self._mean_bytes)
        self._costs: list[dict[str, float]] = []
        self._slowdowns: list[float] = []
        self._hand_overs: dict[str, list[float]] = {}

    def measure(self, cases: Sequence[Case], n_blocks: int, here: int) -> None:
        side = one_process("alone", _RULES, RING_BLOCKS)
        total, times = side.run(self._work, NULL), side.detail["stages_ns"]
        # CPU time is what counts; of the stages only wall time is known, and on a busy machine it is more.
        self._costs.append({kind: total * spent / sum(times.values()) for kind, spent in times.items()})
        together = [float(said["cpu_ns"]) / float(said["packets"]) for said in _alone(self._work, here)] if here > 1 else [total]
        self._slowdowns.append(max(1.0, statistics.mean(together) / total))
        for case in cases:
            slowdown = self._slowdowns[-1] if case.cores > 1 else 1.0
            work_ns = ",".join(str(round(slowdown * ns * self.block_packets)) for ns in self._costs[-1].values())
            workers = ",".join(str(case.plan.of(kind)) for kind in PATH)
            command = [sys.executable, "-m", "bench.handover", work_ns, str(n_blocks), str(case.cores), workers]
            self._hand_overs.setdefault(case.words, []).append(max(0.0, float(told(command)["ns"])))

    @property
    def slowdown(self) -> float:
        return statistics.median(self._slowdowns)

    def costs(self) -> list[Cost]:
        moved = _traffic(self._mean_bytes)
        return [Cost(kind, statistics.median(found[kind] for found in self._costs), moved[kind]) for kind in PATH]

    def hand_over(self, case: Case) -> float:
        return statistics.median(self._hand_overs[case.words])

    def rows(self) -> Iterator[Row]:
        costs = self.costs()
        detail = {
            "stages_ns": {cost.kind: short(cost.cpu_ns) for cost in costs},
            "stages_bytes": {cost.kind: round(cost.memory_bytes) for cost in costs},
            "hand_over_ns_per_block": {words: round(statistics.median(found)) for words, found in self._hand_overs.items()},
            "block_packets": round(self.block_packets),
        }
        case = f"{self.size}, all stages without a hand-over"
        yield Row("scaling", case, sum(cost.cpu_ns for cost in costs), "ns/packet", {}, detail)
        yield Row("scaling", f"{self.size}, the same on all cores at once", self.slowdown, "times as long")


def _checked(parts: _Parts, case: Case, measured: list[Measured], bandwidth: float, wrong: list[str]) -> Row:
    """`wrong` gets a sentence when the prediction is off, or when others were at work, so that nothing can be said."""
    machine = Machine(case.cores, bandwidth, parts.hand_over(case), parts.slowdown if case.cores > 1 else 1.0)
    found = predict(parts.costs(), machine, case.plan)
    rate, others = statistics.median(one.packets_per_s for one in measured), statistics.median(one.others for one in measured)
    share = found.packets_per_s / rate
    words = f"{parts.size}, {case.words}"
    if others > QUIET:
        wrong.append(f"{words}: not checked, other processes took {others:.0%} of the cores")
    elif abs(share - 1) > TOLERANCE:
        wrong.append(f"{words}: predicted {share:.2f} of what was measured")
    detail = {
        "predicted": short(found.packets_per_s), "predicted_by_measured": short(share), "limit": found.limit,
        "others": round(others, 3), "runs": [short(one.packets_per_s) for one in measured],
    }  # fmt: skip
    return Row("scaling", words, rate, "packets/s", {}, detail)


def _futures(case: str, costs: Sequence[Cost], here: Machine, block_packets: float) -> Iterator[Row]:
    for cores in FUTURE_CORES:
        machine = replace(here, cores=cores, memory_bytes_per_s=min(SOCKET_BYTES_PER_S, here.memory_bytes_per_s / here.cores * cores))
        tight = _tight(costs, machine, block_packets)
        yield _future(f"{case}, {cores} cores, one lane, a worker more wherever it is tight", costs, machine, tight)
        yield _future(f"{case}, {cores} cores, as many lanes as fit", costs, machine, spread(costs, cores, block_packets))


def _cases(here: int, block_packets: float) -> list[Case]:
    one = Plan(block_packets=block_packets)
    if here < 2:
        return [Case(1, one, "1 core")]
    return [
        Case(1, one, "1 core"),
        Case(2, one, "2 cores"),
        Case(2, Plan(1, {"filter": 2}, block_packets), "2 cores, 2 filter workers"),
        Case(2, Plan(1, {"encapsulate": 2}, block_packets), "2 cores, 2 encapsulate workers"),
    ]


def _tight(costs: Sequence[Cost], machine: Machine, block_packets: float) -> Plan:
    """One lane whose workers are added where the limit is, until that is no stage of which there may be more, or the cores are used up."""
    plan = Plan(1, {}, block_packets)
    while True:
        limit = predict(costs, machine, plan).limit
        more = Plan(1, {**dict(plan.workers), limit: plan.of(limit) + 1}, block_packets)
        if limit not in ("filter", "encapsulate") or more.processes(costs) > machine.cores:
            return plan
        plan = more


def _future(case: str, costs: Sequence[Cost], machine: Machine, plan: Plan) -> Row:
    found: Prediction = predict(costs, machine, plan)
    detail = {
        "limit": found.limit, "lanes": plan.lanes, "workers": dict(plan.workers),
        "needs_gb_per_s": short(found.packets_per_s * found.memory_bytes / 1e9),
        "limits": {name: short(value) for name, value in found.limits.items()},
    }  # fmt: skip
    return Row("scaling", f"predicted: {case}", found.packets_per_s, "packets/s", {}, detail)


def _traffic(n_bytes: float) -> dict[str, float]:
    """Bytes that come from memory, or go there, for a packet of so many: the file is read. Blocks stay in the last cache, for those of a
    lane are 4 MiB and the cores that a lane keeps busy have more; so does the buffer that send writes to /dev/null."""
    return {"capture": n_bytes, "filter": 0.0, "encapsulate": 0.0, "send": 0.0}


def _measured(work: Work, case: Case) -> Measured:
    config = work.directory / "scaling.yaml"
    workers = ", ".join(f"{kind}: {case.plan.of(kind)}" for kind in PATH if kind != "capture")
    config.write_text(programs.config_text(work.capture, TOOL, _RULES) + f"stages: {{{workers}}}\n")
    cores = _cores(case.cores)
    before, mine, began = _busy_s(cores), _children_s(), time.monotonic()
    rate = float(replay(work, config, NULL, ["taskset", "-c", ",".join(map(str, cores))])[0]["packets_per_s"])
    others_s = _busy_s(cores) - before - (_children_s() - mine)
    return Measured(rate, max(0.0, others_s) / (time.monotonic() - began) / len(cores))


def _alone(work: Work, n: int) -> list[dict[str, float]]:
    """What `bench.alone` says on each of `n` cores at once."""
    config = work.directory / "scaling.yaml"
    config.write_text(programs.config_text(work.capture, TOOL, _RULES))
    command = [sys.executable, "-m", "bench.alone", str(work.capture), str(config), str(NULL), str(RING_BLOCKS), "wait"]
    return [json.loads(line) for line in _at_once(command, n)]


def _busy_s(cores: Sequence[int]) -> float:
    """CPU time of these cores so far that was not idle, by whomever."""
    wanted = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = sum(sum(map(int, row[1:4] + row[6:9])) for row in rows if row[0] in wanted)  # without idle and waiting for a disk
    return ticks / os.sysconf("SC_CLK_TCK")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bandwidth(n: int, n_copies: int) -> float:
    """Bytes per second that `n` cores move, each at copies of its own."""
    return sum(map(float, _at_once([sys.executable, "-c", _COPY, str(n_copies)], n)))


def _cores(n: int) -> list[int]:
    return sorted(os.sched_getaffinity(0))[-n:]


def _at_once(command: Sequence[str], n: int) -> list[str]:
    """What each of `n` processes, each on a core of its own, says in the end: they begin when all have said `ready`."""
    with contextlib.ExitStack() as closing:
        pinned = [["taskset", "-c", str(core), *command] for core in _cores(n)]
        started = [
            closing.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) for words in pinned
        ]
        for one in started:
            assert one.stdout is not None
            if one.stdout.readline() != "ready\n":
                raise RuntimeError(f"{' '.join(command)[:200]}: did not start")
        for one in started:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        return [one.communicate()[0] for one in started]
