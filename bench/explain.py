"""Explaining a packet, and the tests of a policy, by 10,000 rules that are loaded; and the whole command, which has to load them.

`explain` is asked of the judge and put in words, as text and as JSON; packets that match no rule have every rule tried. `check` judges
the packets of tests, each on its own.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from bench import programs
from bench.report import Row
from bench.rulesets import DIRECTORY, expression, frames, headers, read_rules
from broker.cli.explain_text import text_of
from broker.cli.explained import explained
from broker.config import load_config
from broker.config.policy.compiler import build_policy
from broker.supervisor.judge import Judge, Packet

SET, QUICK_SET = "neurocuts_acl1_10k", "neurocuts_acl1_1k"
PACKETS, TESTS = 40, 100


def measure(quick: bool) -> Iterator[Row]:
    rules = read_rules(DIRECTORY / (QUICK_SET if quick else SET))
    texts = [expression(rule) for rule in rules]
    packets = [Packet(row.tobytes(), len(row)) for row in frames(headers(rules, PACKETS, 1), np.full(PACKETS, 60))]
    packets[-1] = Packet(bytes(60), 60)
    with programs.scratch() as directory:
        path = directory / "c.yaml"
        path.write_text(programs.config_text(directory / "in.pcap", "{kind: pcap, file: out.pcap}", texts))
        config = load_config(path)
        policy = build_policy(config)
        gc.freeze()  # as the command does
        with Judge() as judge:
            judge.load(config, policy.image)

            def ask(packet: Packet) -> None:
                found = explained(config, policy, judge.explain(packet))
                text_of(config, found, everything=False)
                json.dumps(found)

            times = [_ms(lambda packet=packet: ask(packet)) for packet in packets]  # type: ignore[misc]
            unmatched = [_ms(lambda: ask(packets[-1])) for _ in range(5)]
            tests = [packets[i % PACKETS] for i in range(TESTS)]
            checks = [_ms(lambda: judge.judge(tests)) for _ in range(5)]
        command = [*programs.TAPMESH, "explain", "--config", str(path), "--hex", packets[0].data.hex()]
        whole = programs.run(command)
    n = f"{len(texts):,} rules"
    detail = {"min": round(min(times), 1), "max": round(max(times), 1), "no_rule_matches_ms": round(statistics.median(unmatched), 1)}
    detail["command_s"] = round(whole.wall_s, 2)
    yield Row("explain", f"one packet explained, {n} loaded", statistics.median(times), "ms", {}, detail)
    yield Row(
        "explain", f"{TESTS} tests of a policy judged, {n} loaded", statistics.median(checks), "ms", {}, {"max": round(max(checks), 1)}
    )


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000
