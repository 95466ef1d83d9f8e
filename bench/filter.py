"""What judging a packet costs: parse, class, look up; hot blocks of IMIX. libpcap's interpreter, called directly, is the peer.

`program_ns`: the same without the memo, which is what a packet of a new kind costs. The rules are nets and ports, spread over eight maps.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence

from bench import programs, workload
from bench.judging import BLOCK_PACKETS, Judging, Policy, blocks
from bench.libpcap import Program, lay_out
from bench.report import Row
from broker.core.batch import Batch
from broker.core.layout import TOOLS
from broker.core.model import Config, Input, Map, Rule, Tool

N_MAPS = 8


def measure(quick: bool) -> Iterator[Row]:
    n_packets, seconds, counts = (1024, 0.02, (1, 100)) if quick else (16_384, 1.5, (1, 10, 100, 1000))
    with programs.scratch() as directory:
        workload.write_capture(directory / "in.pcap", "imix", n_packets)
        packets = list(workload.frames_of(directory / "in.pcap"))
    batches = blocks(packets)
    for n in counts:
        texts = net_port_rules(n)
        policy = Policy(config_of(texts, min(N_MAPS, n)))
        times = run_judging(policy, batches, len(packets), seconds)
        program_times = run_judging(policy, batches, len(packets), seconds / 4, memo=False)
        ours, peer = statistics.median(times), _libpcap_ns(texts, packets, seconds / 2)
        detail = {
            "min": round(min(times), 1), "max": round(max(times), 1), "libpcap_ns": round(peer, 1),
            "program_ns": round(statistics.median(program_times), 1), "compile_s": round(policy.compile_s, 4),
        }  # fmt: skip
        yield Row("filter", f"parse and match, {n} rules, imix", ours, "ns/packet", {"libpcap": peer / ours}, detail)


def net_port_rules(n: int) -> list[str]:
    """`n` rules of a net and a port of the workload."""
    chosen = random.Random(n)
    found = []
    for _ in range(n):
        port = workload.server_port(chosen.randrange(workload.N_SERVERS))
        net = chosen.choice((f"10.{chosen.randrange(2)}.{chosen.randrange(256)}.0/24", f"10.200.{chosen.randrange(2)}.0/24"))
        forms = (
            f"src net {net} and tcp dst port {port}",
            f"dst net {net} and port {port}",
            f"net {net} and tcp portrange {port}-{port + 50}",
        )
        found.append(chosen.choice(forms))
    return found


def config_of(texts: Sequence[str], n_maps: int) -> Config:
    """The rules spread over maps, each to a tool of its own as far as there are so many."""
    n_tools = min(n_maps, TOOLS)
    tools = tuple(Tool(f"t{i}", i, file="-") for i in range(n_tools))
    maps = tuple(
        Map(f"m{i}", tuple(Rule("pass", text) for text in texts[i::n_maps]), (f"t{i % n_tools}",), undetermined="libpcap", slot=i)
        for i in range(n_maps)
    )
    return Config("bench", (Input("in", "pcap", 0),), tools, maps)


def run_judging(policy: Policy, batches: Sequence[Batch], n_packets: int, seconds: float, *, memo: bool = True) -> list[float]:
    """ns per packet of each round over the blocks, after one that is not counted."""
    judging = Judging(policy, memo=memo)
    for batch in batches:
        judging.ns(batch)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < end:
        times.append(sum(judging.ns(batch) for batch in batches) / n_packets)
    return times


def _libpcap_ns(texts: Sequence[str], packets: Sequence[bytes], seconds: float) -> float:
    """ns per packet of libpcap's interpreter, the median of its rounds."""
    program = Program(texts)
    data, addresses, lengths = lay_out(packets)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        spent = 0
        for at in range(0, len(packets), BLOCK_PACKETS):
            block = slice(at, at + BLOCK_PACKETS)
            data[int(addresses[at]) - int(addresses[0]) :][: BLOCK_PACKETS * 360 : 64].max()  # into the cache, as for us
            spent += program.timed(addresses[block], lengths[block])[0]
        times.append(spent / len(packets))
    return statistics.median(times)
