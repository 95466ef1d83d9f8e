"""What the tests of a configuration found, in words. Pure: who judges the packets is said by `stages`, and comes here as decisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from broker.core.model import Config, Map, Place, PolicyTest

Answer: TypeAlias = Literal["pass", "drop", "none", "undetermined", "input"]
"""What a map says to a packet: the action of the rule that decided; that none matched; that a rule could not be told; that the map does not
look at the input."""

Cause: TypeAlias = Literal["forwarded", "collected", "filtered", "rule", "undetermined"]
"""As the filter tells them apart: a map delivers it; no map took it and the collector did; nobody did; or why the collector did not."""

_COLLECTOR: dict[Cause, str] = {
    "collected": "no map took it, so the collector gets it",
    "forwarded": "a map took it, so the collector does not get it",
    "rule": "a drop rule decided, which the collector does not undo",
    "undetermined": "a map cannot tell and delivers no such packet, so the collector does not get it",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of the packet of one test. `maps`: name, answer, and the index of the rule that decided, or -1, for each map in the order
    of the configuration."""

    delivers: tuple[str, ...]
    cause: Cause
    maps: tuple[tuple[str, Answer, int], ...] = ()


def failures(config: Config, decisions: Sequence[Decision]) -> list[tuple[Place | None, str, str]]:
    """For `ConfigErrors`, of the tests that failed; `decisions` are those of `config.tests`, one for each."""
    found = []
    for n, (test, decision) in enumerate(zip(config.tests, decisions, strict=True)):
        wrong = [*_delivered(test, decision), *_passed(test, decision)]
        if wrong:
            name = f"'{test.name}': " if test.name else ""
            found.append((test.place, f"tests[{n}]", name + "; ".join([*wrong, *_reasons(config, test, decision)])))
    return found


def _delivered(test: PolicyTest, decision: Decision) -> Iterator[str]:
    if set(test.delivers) != set(decision.delivers):
        yield f"delivers {_listed(decision.delivers)}, expected {_listed(test.delivers)}"


def _passed(test: PolicyTest, decision: Decision) -> Iterator[str]:
    by = [name for name, answer, _ in decision.maps if answer == "pass"]
    if test.by is not None and set(test.by) != set(by):
        yield f"passed by {_listed(by)}, expected {_listed(test.by)}"


def _reasons(config: Config, test: PolicyTest, decision: Decision) -> Iterator[str]:
    """What the maps did that bear on what was expected: those that pass something wrong, those that do not pass something missing."""
    wanted, got = set(test.delivers), set(decision.delivers)
    maps = {m.name: m for m in config.maps}
    for name, answer, rule in decision.maps:
        delivered = answer == "pass" or (answer == "undetermined" and maps[name].undetermined == "deliver")
        tools = set(maps[name].to)
        expected = test.by is not None and name in test.by
        surprising = test.by is not None and expected != (answer == "pass")
        if surprising or tools & ((got - wanted) if delivered else (wanted - got)):
            yield f"map '{name}' {_said(maps[name], answer, rule)}"
    surprised = (got - wanted) if decision.cause == "collected" else (wanted - got)
    if surprised & set(config.collector) and decision.cause in _COLLECTOR:
        yield _COLLECTOR[decision.cause]


def _said(value: Map, answer: Answer, rule: int) -> str:
    by = ""
    if 0 <= rule < len(value.rules):
        by = f' by rule {rule + 1}: {value.rules[rule].action} "{value.rules[rule].expression}"'
    if answer == "undetermined":
        outcome = {"deliver": "so it is delivered", "drop": "so it is not delivered", "libpcap": "so it does not match"}
        return f"cannot tell{by} (the packet does not show what it tests), {outcome[value.undetermined]}"
    if answer == "none":
        return "has no rule that matches it"
    if answer == "input":
        return f"does not look at this input, only at {', '.join(value.inputs)}"
    return f"{'passed' if answer == 'pass' else 'dropped'} it{by}"


def _listed(names: Iterable[str]) -> str:
    return f"[{', '.join(names)}]"
