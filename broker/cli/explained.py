"""What the judge says of one packet, as values with a name each: what ``tapmesh explain --json`` prints and its text is made of. Pure.

| key | what |
|---|---|
| packet | number and file if it was captured, hex, captured_bytes, wire_bytes, time, and the fields that the parser found |
| input | name |
| delivers | names of the tools that get it, in groups too |
| verdict | {cause: forwarded, collected, filtered, rule, undetermined} |
| decisions | for each map {map, decision: pass, drop, none, undetermined or input, rule: from 0 as in `maps[0].rules[1]`, or null} |
| maps | the same, with rule_number (from 1), expression and line of the rule, and `tried` |
| maps[].tried | for each rule {rule, action, expression, line, answer, failed_test, reason, tests: [{test, answer}]} |
| frames | for each frame {tool, header: hex, data_at, data_len, outer: hex of all that is sent}; data_at -1: bytes were changed |
| dropped | {tool: counter} of those that get no frame, or fewer, such as dropped_not_ip |

An answer is true, false or undetermined. `failed_test` is the test that made the rule false or undetermined (several where all
alternatives of an `or` did), `reason` what the packet shows there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from broker.config.policy.compiler import Policy
from broker.config.policy.describe import ANSWERS, describe, reasons
from broker.config.policy.image import FALSE, TRUE, UNDETERMINED
from broker.config.policy.observe import observed, unseen
from broker.config.policy.program import Rule
from broker.config.policy.tree import And, Node, Not, Or
from broker.config.policy_tests import Decision
from broker.core.model import Config, Map

_GROUPS = frozenset((And, Or, Not))


def explained(config: Config, policy: Policy, answer: dict[str, Any]) -> dict[str, Any]:
    """`answer`: of `Judge.explain`; `policy` is built from `config`."""
    about, decision = answer["packet"], answer["decision"]
    fields = {"captured_bytes": len(about["data"]), "wire_bytes": about["wirelen"], **about["fields"]}
    time = {"time": f"{datetime.fromtimestamp(about['ts_ns'] // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{about['ts_ns'] % 10**9:09d}Z"}
    packet = {**(time if about["ts_ns"] else {}), **fields, "hex": about["data"].hex()}
    words = _Words(policy, fields)
    maps = [
        {**_decided(m, said), "tried": [words.tried(m, policy.program.rules[rules.start + tried[0]], *tried) for tried in all_tried]}
        for m, rules, said, all_tried in zip(config.maps, policy.maps, decision.maps, answer["maps"], strict=True)
    ]
    return {
        "packet": packet,
        "input": next((i.name for i in config.inputs if i.slot == about["input"]), None),
        "delivers": _tools(config, decision.delivers, [frame["tool"] for frame in answer["frames"]]),
        "verdict": {"cause": decision.cause},
        "decisions": _decisions(decision),
        "maps": maps,
        "frames": [
            {
                "tool": frame["tool"],
                "header": frame["header"].hex(),
                "data_at": frame["data_at"],
                "data_len": frame["data_len"],
                "outer": (frame["header"] + frame["data"]).hex(),
            }
            for frame in answer["frames"]
        ],
        "dropped": answer["dropped"],
    }


def _tools(config: Config, wanted: Iterable[str], framed: Sequence[str]) -> list[str]:
    """With the members that a group gives it to in its place."""
    members = {group.name: group.members for group in config.groups}
    found = [tool for name in wanted for tool in (t for t in members.get(name, (name,)) if name not in members or t in framed)]
    return list(dict.fromkeys(found))


def _decisions(decision: Decision) -> list[dict[str, Any]]:
    return [{"map": name, "decision": said, "rule": None if rule < 0 else rule} for name, said, rule in decision.maps]


def _decided(value: Map, said: tuple[str, str, int]) -> dict[str, Any]:
    _, decision, number = said
    found: dict[str, Any] = {"map": value.name, "decision": decision, "rule": None}
    if number >= 0:
        rule = value.rules[number]
        found |= {"rule": number, "rule_number": number + 1, "action": rule.action, "expression": rule.expression}
        found |= {"line": str(rule.place) if rule.place else None}
    return found


class _Words:
    """Thousands of rules have tests in common: each is put in words once. What was asked is row << 2 | answer."""

    def __init__(self, policy: Policy, fields: dict[str, Any]) -> None:
        self._tests = list(policy.program.tests)
        self._fields = fields
        self._asked: dict[int, dict[str, str]] = {}
        self._reasons: dict[int, str] = {}

    def tried(self, value: Map, compiled: Rule, number: int, answer: int, asked: list[int]) -> dict[str, Any]:
        rule = value.rules[number]
        failed_test, reason = (None, None) if answer == TRUE else self._failed(value, compiled, answer, asked)
        return {
            "rule": number,
            "action": rule.action,
            "expression": rule.expression,
            "line": str(rule.place) if rule.place else None,
            "answer": ANSWERS[answer],
            "failed_test": failed_test,
            "reason": reason,
            "tests": [self._asked.get(one) or self._said(one) for one in asked],
        }

    def _said(self, one: int) -> dict[str, str]:
        made = self._asked[one] = {"test": describe(self._tests[one >> 2]), "answer": ANSWERS[one & 3]}
        return made

    def _failed(self, value: Map, compiled: Rule, answer: int, asked: list[int]) -> tuple[str, str]:
        ended = value.undetermined == "libpcap" and asked[-1] & 3 == UNDETERMINED
        if ended or (answer == FALSE and _is_list(compiled.node, len(asked))):
            return self._text(asked[-1], answer), self._reason(asked[-1])
        found = {self._tests[one >> 2]: one for one in asked}
        _, tests = reasons(compiled.node, {test: one & 3 for test, one in found.items()})
        decided = [found[test] for test in dict.fromkeys(tests)]
        texts = [self._text(one, answer) for one in decided]
        return " or ".join(texts), ", ".join(dict.fromkeys(filter(None, map(self._reason, decided))))

    def _text(self, one: int, answer: int) -> str:
        """A test that was true and made its rule false stands under a `not`."""
        text = (self._asked.get(one) or self._said(one))["test"]
        return f"not {text}" if answer == FALSE and one & 3 == TRUE else text

    def _reason(self, one: int) -> str:
        found = self._reasons.get(one)
        if found is None:
            test = self._tests[one >> 2]
            found = self._reasons[one] = (unseen if one & 3 == UNDETERMINED else observed)(test, self._fields)
        return found


def _is_list(node: Node, n: int) -> bool:
    """An AND whose first n operands are single tests: the last one asked is the one that failed."""
    return type(node) is And and not any(type(item) in _GROUPS for item in node.items[:n])
