"""``tapmesh diff``: what a change of the policy would do: the rules that differ, and the packets whose fate would be another."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.cli.common import chosen_name, compiled, quiet_logs
from broker.cli.diff_text import text_of
from broker.cli.judging import judging, slot_of
from broker.config import load_config
from broker.config.diff import diff
from broker.config.rules_diff import rule_changes
from broker.config.slots import NONE_YET, Slots, assign_slots, remember
from broker.core.errors import TapmeshError
from broker.core.model import Config
from broker.core.shm import pipeline_directory
from broker.supervisor.generation import read_slots
from broker.supervisor.judge import Judge
from broker.supervisor.sample import Sampler

SAMPLE_S = 10.0
MAX_SAMPLED = 100_000
TOP = 10
TROUBLE = 2


@dataclass(frozen=True, slots=True)
class Policies:
    """Of one name, one slot in both: so their verdicts can be compared bit by bit, and packets of a running pipeline mean the same."""

    old: Config
    new: Config


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("diff", help="what a change of the policy would do to the traffic")
    sub.add_argument("old", type=Path, metavar="OLD")
    sub.add_argument("new", type=Path, metavar="NEW")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--capture", metavar="FILE", help="judge the packets of a capture file by both")
    where.add_argument("--live", action="store_true", help="judge a sample of what a running pipeline captures by both")
    sub.add_argument("--input", metavar="NAME", help="with --capture: the input that the packets come from (default: the first of OLD)")
    sub.add_argument("--seconds", type=float, default=SAMPLE_S, metavar="S", help=f"with --live: for how long (default {SAMPLE_S:.0f})")
    sub.add_argument("--name", help="with --live: of the pipeline; not needed when only one is running")
    sub.add_argument("--top", type=int, default=TOP, metavar="N", help=f"conversations that are shown (default {TOP})")
    sub.add_argument("--json", action="store_true", help="for programs")
    sub.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """As diff(1): exit status 0: no differences, 1: some, 2: trouble. With packets it is they that count; without, the configurations."""
    quiet_logs()
    try:
        found = _found(arguments)
    except TapmeshError as error:
        print(error, file=sys.stderr)
        return TROUBLE
    print(json.dumps(found) if arguments.json else text_of(found))
    return int(bool(found["packets"]["changed"] if found["packets"] else found["configuration"]))


def _found(arguments: argparse.Namespace) -> dict[str, Any]:
    if not 0 < arguments.seconds <= 3600 or arguments.top < 0:
        raise TapmeshError("diff: --seconds is above 0 and at most 3600, --top not below 0")
    name = chosen_name(arguments.name) if arguments.live else ""
    policies = _policies(arguments.old, arguments.new, read_slots(pipeline_directory(name)) if name else NONE_YET)
    found: dict[str, Any] = {
        "old": str(arguments.old),
        "new": str(arguments.new),
        "configuration": _configuration(policies),
        "rules": _rules(policies),
        "packets": None,
    }
    if arguments.capture is None and not arguments.live:
        return found
    with judging((policies.old, compiled(policies.old)), (policies.new, compiled(policies.new))) as judge:
        judge.compare()
        source = _sample(judge, name, arguments.seconds) if arguments.live else _play(judge, policies, arguments)
        found["packets"] = {**source, **judge.report(arguments.top)}
    return found


def _policies(old: Path, new: Path, slots: Slots) -> Policies:
    before = assign_slots(load_config(old), None, slots)
    return Policies(before, assign_slots(load_config(new), before, remember(before, slots)))


def _configuration(policies: Policies) -> list[dict[str, str]]:
    changes = diff(policies.old, policies.new)
    return [{"part": c.part, "action": c.action, "reason": c.reason} for c in changes.of("restart") + changes.of("reload")]


def _rules(policies: Policies) -> list[dict[str, Any]]:
    return [
        {
            "map": name,
            "change": change.what,
            "before": None if change.before < 0 else change.before,
            "after": None if change.after < 0 else change.after,
            "action": change.rule.action,
            "expression": change.rule.expression,
            "line": str(change.rule.place) if change.rule.place else None,
        }
        for name, changes in rule_changes(policies.old, policies.new).items()
        for change in changes
    ]


def _play(judge: Judge, policies: Policies, arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.capture == "-":
        raise TapmeshError("diff: --capture needs a file, not standard input")
    known = {i.name for i in policies.old.inputs}
    slot = slot_of(policies.new if arguments.input and arguments.input not in known else policies.old, arguments.input or "")
    judge.play(arguments.capture, slot)
    if errors := judge.source_errors:
        raise TapmeshError("\n".join(errors))
    return {"file": arguments.capture}


def _sample(judge: Judge, name: str, seconds: float) -> dict[str, Any]:
    sampler = Sampler(name)
    for packets in sampler.packets(seconds, MAX_SAMPLED):
        judge.add(packets.rows.tobytes(), packets.data.tobytes())
    return {"pipeline": name, "seconds": seconds, "blocks_missed": sampler.missed}
