"""Parse and match by ClassBench rules: what the number of rules costs, what an adversary costs, what compiling them takes.

10 and 100 rules are drawn from the published set of a thousand. The rule that ends each set and takes whatever comes is left out, else
everything would match; the rest are the pass rules of one map, so the peer is libpcap's interpreter on the same rules joined by `or`.

Traffic: 100,000 flows around the rules, nine of ten IPv4 headers match one; 12 % IPv6 and 18 % tagged, as in the other benches, and match
none; IMIX. What has been compiled is compared in rounds that take turns; each visit is two passes to remember what is in use, and one that
counts. Bytes of a block are in the cache when it is judged, as in the agent.

`worst packet`: blocks of 16 of one adversarial kind, each the first of its like for a filter that knows the ordinary traffic; time per
packet of the worst of them against the median of as many ordinary ones in between; `whole_blocks`, against ordinary blocks of 512. What a
step costs without packets is taken off, and of several repetitions from the start the fastest counts: the slower ones were disturbed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench import adversary
from bench.judging import BLOCK_PACKETS, Judging, Policy, blocks, empty_block, touch
from bench.libpcap import Program
from bench.report import Row, short
from bench.rulesets import DIRECTORY, Headers, Ints, Rules, expression, frames, headers, read_rules
from bench.workload import IPV6_SHARE, N_FLOWS, SIZES, VLAN_SHARE
from broker.core.batch import Batch
from broker.core.model import Config, Input, Map, Rule, Tool

SEEDS = ("acl1", "fw1", "ipc1")
SIZES_OF_SETS = (10, 100, 1_000, 10_000)
DISTRIBUTIONS = ("zipf", "uniform")
PEERS = ("libpcap", "libpcap_unoptimized")
PEER_SIZES = (100, 1_000)  # what libpcap takes to compile grows with their square
PEER_BLOCKS = 8
SMALL_BLOCK = 16
_GAP = 32  # between packets of a block: headers may need more than the shortest frame


@dataclass(frozen=True)
class Effort:
    seeds: Sequence[str]
    sizes: Sequence[int]
    n_blocks: int
    rounds: int
    small_blocks: int
    repetitions: int


QUICK = Effort(SEEDS[:1], (10, 100), 2, 2, 2, 2)
FULL = Effort(SEEDS, SIZES_OF_SETS, 256, 9, 64, 7)


def measure(quick: bool) -> Iterator[Row]:
    effort = QUICK if quick else FULL
    traffic = Traffic(effort.n_blocks)
    for seed in effort.seeds:
        cases = [Case(seed, n) for n in effort.sizes]
        for number in range(effort.rounds + 1):
            for case in cases:
                case.visit(traffic, counts=number > 0)
        for case in cases:
            yield from case.rows()
        yield from _growth(cases)
        for case in cases:
            yield _worst_packet(case, traffic, effort)


def chosen_rules(seed: str, n: int) -> Rules:
    """n of the set, in its order, or all but the last: see above."""
    rules = read_rules(DIRECTORY / f"neurocuts_{seed}_{'10k' if n > 1_000 else '1k'}")[:-1]
    if n >= 1_000:
        return rules
    return rules[np.sort(np.random.default_rng(n).choice(len(rules), n, replace=False))]


class Traffic:
    """Blocks of IMIX frames, whose headers are written anew for each case: always the same memory, flows, families and lengths."""

    def __init__(self, n_blocks: int) -> None:
        rng = np.random.default_rng(9)
        n = n_blocks * BLOCK_PACKETS
        lengths, weights = np.array(SIZES["imix"]).T
        self._length = rng.choice(lengths, n, p=weights / weights.sum())
        self._flows = {"zipf": (rng.zipf(1.1, n) - 1) % N_FLOWS, "uniform": rng.integers(N_FLOWS, size=n)}
        # A flow keeps its family and its tag.
        self._ipv6, self._tagged = rng.random(N_FLOWS) < IPV6_SHARE, rng.random(N_FLOWS) < VLAN_SHARE
        self.n_packets = n
        self.batches = [empty_block() for _ in range(n_blocks)]

    def fill(self, of: Headers, distribution: str) -> None:
        """`of`: a header for each flow."""
        for number, batch in enumerate(self.batches):
            here = slice(number * BLOCK_PACKETS, (number + 1) * BLOCK_PACKETS)
            flows, lengths = self._flows[distribution][here], self._length[here]
            at = np.cumsum(lengths + _GAP) - lengths - _GAP
            batch.packets["data_at"] = at
            for ipv6 in (False, True):
                for tagged in (False, True):
                    where = np.flatnonzero((self._ipv6[flows] == ipv6) & (self._tagged[flows] == tagged))
                    rows = frames(of[flows[where]], lengths[where], ipv6=ipv6, tagged=tagged)
                    batch.data[at[where][:, None] + np.arange(rows.shape[1])] = rows
                    batch.packets["caplen"][where] = np.maximum(lengths[where], rows.shape[1])
            batch.packets["wirelen"] = batch.packets["caplen"]
            batch.block["n_packets"], batch.block["data_used"] = BLOCK_PACKETS, at[-1] + lengths[-1] + _GAP


def addresses(batch: Batch) -> tuple[Ints, Ints]:
    """Where each packet lies, and its length."""
    return batch.data_at + batch.packets["data_at"].astype(np.int64), batch.packets["caplen"].astype(np.int64)


@dataclass
class Case:
    """One rule set; `ns` per packet of each round, by the distribution of flows, and of libpcap."""

    seed: str
    size: int
    ns: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*DISTRIBUTIONS, *PEERS)})

    def __post_init__(self) -> None:
        self.rules = chosen_rules(self.seed, self.size)
        self.flows = headers(self.rules, N_FLOWS, seed=self.size, edges=0.0, strays=0.02)
        texts = [expression(rule) for rule in self.rules]
        passing = Map("m", tuple(Rule("pass", text) for text in texts), ("t",), undetermined="libpcap")
        self.policy = Policy(Config("bench", (Input("in", "pcap"),), (Tool("t", file="-"),), (passing,)))
        self.judging = {name: Judging(self.policy) for name in DISTRIBUTIONS}
        self.peers = {name: Program(texts, optimize=name == "libpcap") for name in PEERS if self.size in PEER_SIZES}

    @property
    def name(self) -> str:
        return f"{self.seed}, {self.size:,} rules"

    def visit(self, traffic: Traffic, *, counts: bool) -> None:
        for name in DISTRIBUTIONS:
            traffic.fill(self.flows, name)
            judging = self.judging[name]
            for _ in range(2):
                spent = sum(judging.ns(batch) for batch in traffic.batches)
            spent = sum(judging.ns(batch) for batch in traffic.batches)
            if counts:
                self.ns[name].append(spent / traffic.n_packets)
            if name == "zipf":
                self._visit_peers(traffic.batches[:PEER_BLOCKS])

    def _visit_peers(self, batches: Sequence[Batch]) -> None:
        """RuntimeError: we do not select the same packets."""
        for name, peer in self.peers.items():
            spent = 0
            for batch in batches:
                touch(batch)
                ns, selected = peer.timed(*addresses(batch))
                spent += ns
                ours = int(np.count_nonzero(batch.verdicts["verdict"]))
                if selected != ours:
                    raise RuntimeError(f"{self.name}: of a block, libpcap selects {selected} packets and the filter {ours}")
            self.ns[name].append(spent / BLOCK_PACKETS / len(batches))

    def rows(self) -> Iterator[Row]:
        for name in DISTRIBUTIONS:
            ours, detail = _summary(self.ns[name])
            ratios = {}
            for peer, program in self.peers.items() if name == "zipf" else ():
                theirs, spread = _summary(self.ns[peer])
                ratios[peer] = theirs / ours
                detail[peer] = {
                    "ns": short(theirs),
                    **spread,
                    "instructions": program.n_instructions,
                    "compile_s": short(program.compile_s),
                }
            yield Row("classbench", f"{self.name}, {name}", ours, "ns/packet", ratios, detail)
        detail = {"rules": len(self.rules), "image_bytes": self.policy.image_bytes}
        yield Row("classbench", f"{self.name}, compile", self.policy.compile_s, "s", {}, detail)


def _summary(values: Sequence[float]) -> tuple[float, dict[str, Any]]:
    """The median, and beside it the least and the most."""
    return statistics.median(values), {"min": short(min(values)), "max": short(max(values))}


def _growth(cases: Sequence[Case]) -> Iterator[Row]:
    """The most rules against the fewest, round by round."""
    few, many = cases[0], cases[-1]
    for name in DISTRIBUTIONS:
        ratio, detail = _summary([b / a for a, b in zip(few.ns[name], many.ns[name], strict=True)])
        yield Row("classbench", f"{many.name} to {few.size}, {name}", ratio, "times", {}, detail)


def _worst_packet(case: Case, traffic: Traffic, effort: Effort) -> Row:
    traffic.fill(case.flows, "zipf")
    n = effort.small_blocks * SMALL_BLOCK
    kinds = adversary.kinds(case.rules, n, seed=case.size) | {"ordinary": _copied(traffic.batches, n)}
    small = {name: blocks(packets, SMALL_BLOCK) for name, packets in kinds.items()}
    nothing = empty_block(SMALL_BLOCK)
    judging = Judging(case.policy)
    took = {name: np.zeros((effort.repetitions, effort.small_blocks)) for name in small}
    for repetition in range(effort.repetitions):
        judging.forget()
        for batch in traffic.batches:
            judging.ns(batch)
        for number in range(effort.small_blocks):
            for name, batches in small.items():
                took[name][repetition, number] = judging.ns(batches[number])
    idle = min(judging.ns(nothing) for _ in range(100))
    best = {name: (ns.min(axis=0) - idle) / SMALL_BLOCK for name, ns in took.items()}
    median = float(np.median(best.pop("ordinary")))
    worst = {name: float(ns.max()) for name, ns in best.items()}
    kind = max(worst, key=lambda name: worst[name])
    whole = statistics.median(case.ns["zipf"])
    detail: dict[str, Any] = {"kind": kind, "worst_ns": short(worst[kind]), "median_ns": short(median)}
    detail |= {"whole_blocks_ns": short(whole), "to_whole_blocks": short(worst[kind] / whole)}
    detail["kinds_ns"] = {name: {"median": short(float(np.median(best[name]))), "worst": short(ns)} for name, ns in worst.items()}
    return Row("classbench", f"{case.name}, worst packet to the median", worst[kind] / median, "times", {}, detail)


def _copied(batches: Sequence[Batch], n: int) -> list[bytes]:
    """The first n packets."""
    rows = [(batch, row) for batch in batches for row in batch.packets][:n]
    return [bytes(batch.data[int(row["data_at"]) :][: int(row["caplen"])]) for batch, row in rows]
