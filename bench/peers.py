"""File to file, steady state, one core: the whole pipeline against peers that select the same, side by side.

Runs alternate, and a ratio is made of two runs of the same round: `ratios` has the least, the median and the greatest of the rounds
(`ratio_to`: the median). The first round counts for nothing. Start-up is apart, in rows of its own. Before anything is timed a small
capture is played by all sides, which have to select the same number of packets.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bench import programs
from bench.brokers import missing
from bench.filesides import FIRST, NULL, TOOL, Side, Work, c_reference, check, net_rules, one_process, ours, python, rules, tcpdump
from bench.report import Row, short
from broker.config import parse_config
from broker.config.policy import compile_policy

N_PACKETS = {"64": 4_000_000, "imix": 2_000_000, "1514": 1_000_000}
N_CHECKED = 6_000  # more than two blocks
N_ROUNDS = 3
MANY, LIMIT_S = 1_000, 200.0  # libpcap may have so long to compile so many terms


@dataclass(frozen=True)
class Comparison:
    """What ours is put next to, all writing to the same place."""

    case: str
    ours: Side
    peers: tuple[Side, ...]
    to_file: bool = False

    @property
    def sides(self) -> tuple[Side, ...]:
        return self.ours, *(side for side in self.peers if not side.absent)


def comparisons() -> list[Comparison]:
    tagged = rules(100, tagged=True)
    c, slow = c_reference("C", 100), (python("dpkt", 100), python("scapy", 100))
    block = one_process("one process, one block", tagged, 1)
    alone = partial(one_process, "one process", tagged)  # a side keeps what it saw last

    return [
        *(Comparison(_terms(n), ours("ours", rules(n)), (tcpdump("tcpdump", rules(n)),)) for n in (1, 10, 100)),
        Comparison("100 terms, tagged too", ours("ours", tagged), (c, alone(), block, *slow)),
        Comparison(_terms(1), ours("ours", rules(1)), (tcpdump("tcpdump", rules(1)),), to_file=True),
        Comparison("100 terms, tagged too", ours("ours", tagged), (c, alone()), to_file=True),
    ]


def _terms(n: int) -> str:
    return "1 term" if n == 1 else f"{n} terms"


def measure(quick: bool) -> Iterator[Row]:
    if absent := missing(commands=("taskset", "tcpdump")):
        raise RuntimeError(absent)
    compared = comparisons()
    for text in dict.fromkeys(f"{side.name} is not measured: {side.absent}" for one in compared for side in one.peers if side.absent):
        print(f"bench peers: {text}", file=sys.stderr)
    if quick:
        last = compared[-1]
        yield from _glance(replace(last, peers=last.peers[:1]))
        return
    for size, n_packets in N_PACKETS.items():
        yield from _compare(size, compared, n_packets)
    for form, chosen in (("host and port", rules(MANY)), ("net", net_rules(MANY))):
        yield from _many(form, chosen)


def _glance(one: Comparison) -> Iterator[Row]:
    """Each side of one comparison once, at a size that measures nothing."""
    with programs.scratch() as directory:
        work = Work(directory, "imix", N_CHECKED)
        work.write()
        selected, times = check(work, one.sides)
        yield from _rows(f"imix, {one.case}, to a file", one, times, {"selected": selected / N_CHECKED})
        yield _ready("50 terms of net", net_rules(50), work)


def _compare(size: str, compared: Sequence[Comparison], n_packets: int) -> Iterator[Row]:
    with programs.scratch() as directory:
        small = Work(directory, size, N_CHECKED)
        small.write()
        selected = [check(small, one.sides)[0] / N_CHECKED for one in compared]
        work = Work(directory, size, n_packets)
        work.write()
        found: list[dict[str, list[float]]] = [{side.name: [] for side in one.sides} for one in compared]
        for n in range(N_ROUNDS + 1):
            for i, one in enumerate(compared):
                for side in one.sides:
                    ns = _turn(work, side, to_file=one.to_file)
                    if n:
                        found[i][side.name].append(ns)
    for one, share, times in zip(compared, selected, found, strict=True):
        yield from _rows(f"{size}, {one.case}, to {'a file' if one.to_file else '/dev/null'}", one, times, {"selected": share})
    first = compared[0].ours.detail
    yield Row("peers", f"{size}, start-up of the replay, on one core", first["start_up_s"], "s", {}, {"cpu_s": first["start_up_cpu_s"]})


def _turn(work: Work, side: Side, *, to_file: bool) -> float:
    out = work.directory / "given.pcap" if to_file else NULL
    if to_file:
        programs.touch_memory(work.directory, work.capture.stat().st_size)
    try:
        return side.run(work, out)
    finally:
        if to_file:
            out.unlink(missing_ok=True)


def _rows(case: str, one: Comparison, times: dict[str, list[float]], facts: dict[str, Any]) -> Iterator[Row]:
    """Ours, with what of a round the peers took to what ours took; then each peer's own."""
    mine = times[one.ours.name]
    for side in one.sides:
        taken = times[side.name]
        ratios = {}
        for other, theirs in times.items():
            # One process is ours as well: the ratio to it is the price of having four.
            if other != side.name and (side is one.ours or (side.name.startswith("one process") and other in ("C", one.ours.name))):
                by_round = sorted(b / a for a, b in zip(taken, theirs, strict=True))
                ratios[other] = [short(by_round[0]), short(statistics.median(by_round)), short(by_round[-1])]
        detail = {**facts, "min": short(min(taken)), "max": short(max(taken)), "rounds": len(taken), "ratios": ratios, **side.detail}
        if side is one.ours and "one process" in times:
            detail["hand_over_ns"] = short(statistics.median(a - b for a, b in zip(mine, times["one process"], strict=True)))
        medians = {other: spread[1] for other, spread in ratios.items()}
        yield Row("peers", f"{case}: {side.name}", statistics.median(taken), "ns/packet", medians, detail)


def _many(form: str, chosen: Sequence[str]) -> Iterator[Row]:
    """A policy of many terms: when it is ready, and what a packet costs then. libpcap: its filter alone, which neither reads nor writes."""
    with programs.scratch() as directory:
        work = Work(directory, "64", N_PACKETS["64"])
        work.write()
        case, side = f"{len(chosen):,} terms of {form}", ours("ours", chosen)
        ready = _ready(case, chosen, work)
        yield ready
        ns = side.run(work, NULL)
        theirs = ready.detail["libpcap_ns"]
        ratio = {"libpcap's filter alone": theirs / ns} if ready.detail["libpcap_finished"] else {}
        yield Row("peers", f"64, {case}, to /dev/null: ours", ns, "ns/packet", ratio, {"libpcap_ns": theirs, **side.detail})


def _ready(case: str, chosen: Sequence[str], work: Work) -> Row:
    text = programs.config_text(work.capture, TOOL, chosen)
    began = time.perf_counter()
    config = parse_config(text)
    parsed = time.perf_counter()
    compile_policy(config)
    ready_s, compile_s = time.perf_counter() - began, time.perf_counter() - parsed
    said = _libpcap(chosen, work, LIMIT_S)
    detail = {
        "compile_s": short(compile_s), "libpcap_s": short(said["compile_s"]), "libpcap_finished": said["finished"],
        "libpcap_ns": short(said["ns"]),
    }  # fmt: skip
    return Row("peers", f"{case}: policy ready", ready_s, "s", {"libpcap": said["compile_s"] / ready_s}, detail)


def _libpcap(chosen: Sequence[str], work: Work, limit_s: float) -> dict[str, Any]:
    """Seconds to compile and ns a packet; `finished` false: it was given `limit_s` and was not ready."""
    command = work.pinned([sys.executable, "-m", "bench.libpcap", str(work.first(max(FIRST.values())))])
    try:
        done = subprocess.run(command, input="\n".join(chosen), capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"compile_s": limit_s, "ns": 0.0, "finished": False}
    if done.returncode:
        raise RuntimeError(f"libpcap: {done.stderr[-500:]}")
    return {**json.loads(done.stdout), "finished": True}
