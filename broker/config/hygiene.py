"""What is right and yet hardly meant: rules that decide nothing; sets, tools and inputs that nothing is done with. No packet is asked.

| of | warned of when |
|---|---|
| a rule | one before it takes every packet, or is the same; it matches no packet; one before it covers it (the caller says so) |
| a map | it has no tools; all its rules are drop |
| a set | no rule uses it; it is empty and some rule does |
| a tool, a group | neither a map nor the collector delivers to it; a group has a single member |
| a group | none of its tools behind tunnels is asked whether it is there (`health`); failover: one before the last is not |
| a tool | it is asked, but is in no group |
| a tool | its receiver reads its tunnel, but not as may be meant (`receivers`) |
| a site | one of its nets lies in a net of another site that does not hold it; it has no nets and holds nothing |
| a secret | others than its owner can read the file |
| an input | no map looks at it, and there is no collector; it takes packets from an address that they may be sent to |
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from broker.config.flow_hygiene import flow_warnings, sets_of
from broker.config.lanes import lanes, reachable_tools
from broker.config.policy import parse_expression, read_sets
from broker.config.policy.lexer import scan
from broker.config.policy.tree import And, Node, Not, Or
from broker.config.receivers import traps
from broker.core.model import Config, Group, Map, Place

Warned = tuple[Place | None, str, str]
"""Where, the path of it, and what: as the errors of `ConfigErrors`."""

Shadow = tuple[int, int, int]
"""Index of a map, of a rule in it that decides nothing, and of the rule before it that takes all its packets."""


def warnings(config: Config, shadowed: Iterable[Shadow] = (), trees: Sequence[Sequence[Node]] = ()) -> list[Warned]:
    """In the order of the text. `shadowed`: what a comparison of the packets that rules match has found; what is told of a rule anyway is
    not told again. `trees`: the expressions of each map, for who has parsed them."""
    covered: dict[int, dict[int, int]] = {}
    for m, rule, by in shadowed:
        covered.setdefault(m, {})[rule] = by
    sets = read_sets(config.sets)
    found: list[Warned] = []
    for m, value in enumerate(config.maps):
        parsed = trees[m] if trees else [parse_expression(rule.expression, sets) for rule in value.rules]
        found += _rules(m, value, parsed, covered.get(m, {}))
        found += _map(m, value)
    found += _sets(config)
    found += _ends(config)
    found += _rings(config)
    if config.flows:
        found += flow_warnings(config.flows, config.sets)
    return sorted(found, key=lambda w: (w[0].line, w[0].column, w[1]) if w[0] else (0, 0, w[1]))


def text_of(warning: Warned) -> str:
    """``tapmesh.yaml:15:16: maps[0].rules[1].pass: warning: text``."""
    place, path, text = warning
    return ": ".join([*([str(place)] if place else []), path, "warning", text])


def always(node: Node, in_order: bool) -> bool | None:
    """What the expression says of every packet alike; None: it depends. `in_order`: what cannot be told ends it, whatever follows."""
    if isinstance(node, Not):
        inner = always(node.item, in_order)
        return None if inner is None else not inner
    if isinstance(node, (And, Or)):
        decides = isinstance(node, Or)  # one true item makes an OR true, one false item an AND false
        depends = False
        for item in node.items:
            answer = None if in_order and depends else always(item, in_order)
            if answer is decides:
                return decides
            depends |= answer is None
        return None if depends else not decides
    return False if getattr(node, "ranges", None) == () else None  # one of an empty set


def _rules(m: int, value: Map, trees: Sequence[Node], covered: dict[int, int]) -> Iterator[Warned]:
    first: dict[Node, int] = {}
    for r, tree in enumerate(trees):
        answer = always(tree, value.undetermined == "libpcap")
        if answer is False:
            yield _of_rule(m, value, r, "it matches no packet")
        elif tree in first:
            by = first[tree]
            same = value.rules[by].action == value.rules[r].action
            yield _of_rule(m, value, r, f"it decides nothing: {_named(value, by)} {'is the same' if same else 'takes the same packets'}")
        elif r in covered:
            yield _of_rule(m, value, r, f"it decides nothing: {_named(value, covered[r])} takes all its packets")
        first.setdefault(tree, r)
        if answer and r + 1 < len(trees):
            rest = len(trees) - r - 2
            more = f", nor {'is the one' if rest == 1 else f'are the {rest}'} behind it" if rest else ""
            yield _of_rule(m, value, r + 1, f"it is never tried{more}: {_named(value, r)} takes every packet")
            return


def _of_rule(m: int, value: Map, r: int, text: str) -> Warned:
    rule = value.rules[r]
    return rule.place, f"maps[{m}].rules[{r}].{rule.action}", text


def _named(value: Map, r: int) -> str:
    """A rule as people count, with its line."""
    place = value.rules[r].place
    return f"rule {r + 1}" + (f" (line {place.line})" if place else "")


def _map(m: int, value: Map) -> Iterator[Warned]:
    if not value.to:
        yield value.place, f"maps[{m}]", f"map '{value.name}' has no tools: it only counts"
    elif all(rule.action == "drop" for rule in value.rules):
        yield value.place, f"maps[{m}]", f"map '{value.name}' passes nothing: all its rules are drop"


def _sets(config: Config) -> Iterator[Warned]:
    used: dict[str, str] = {}
    for m, value in enumerate(config.maps):
        for r, rule in enumerate(value.rules):
            if "$" in rule.expression:
                for token in scan(rule.expression):
                    if token.kind == "set":
                        used.setdefault(token.text, f"maps[{m}].rules[{r}]")
    if config.flows:
        for used_by, name in sets_of(config.flows):
            used.setdefault(name, used_by)
    for name, entries in config.sets.items():
        if name not in used:
            yield config.set_places.get(name), f"sets.{name}", f"no rule uses set '{name}'"
        elif not entries:
            text = f"set '{name}' is empty: a test of it, as in {used[name]}, is never true"
            yield config.set_places.get(name), f"sets.{name}", text


def _rings(config: Config) -> Iterator[Warned]:
    """A tunnel input whose packets may go back to who sent them: if that is a broker that does likewise, they go round for ever."""
    for lane in (lane for lane in lanes(config) if lane.inputs[0].kind == "tunnel"):
        (one,) = lane.inputs
        nets = [ipaddress.ip_network(net) for net in one.senders]
        reached = set(reachable_tools(config, lane))
        reached |= {member for group in config.groups if group.name in reached for member in group.members}
        for tool in (t for t in config.tools if t.tunnel is not None and t.name in reached):
            assert tool.tunnel is not None
            if any(ipaddress.ip_address(tool.tunnel.remote) in net for net in nets):
                text = (
                    f"it takes packets from {tool.tunnel.remote}, and tool '{tool.name}' may send them back there: mind that it is no ring"
                )
                yield one.place, f"inputs.{one.name}", text


def _ends(config: Config) -> Iterator[Warned]:
    fed = {tool for m in config.maps for tool in m.to} | set(config.collector)
    for group in config.groups:
        if group.name in fed:
            fed |= set(group.members)
        else:
            text = f"nothing is delivered to group '{group.name}': no map names it, nor does the collector"
            yield group.place, f"groups.{group.name}", text
        if len(group.members) == 1:
            yield group.place, f"groups.{group.name}", f"group '{group.name}' has one member: there is nothing to share"
        yield from _stand_ins(config, group)
    members = {member for group in config.groups for member in group.members}
    for tool in config.tools:
        if tool.health is not None and tool.name not in members:
            text = f"tool '{tool.name}' is in no group: what its health is changes nothing but what status and /metrics say"
            yield tool.place, f"tools.{tool.name}.health", text
        if tool.tunnel is not None:
            for key, text in traps(tool.receiver, tool.tunnel):
                yield tool.place, f"tools.{tool.name}.tunnel.{key}", text
        if tool.name not in fed:
            yield tool.place, f"tools.{tool.name}", f"nothing is delivered to tool '{tool.name}': no map names it, nor does the collector"
    metered = config.flows is not None and config.flows.of == "captured"
    if metered or config.collector or not all(m.inputs for m in config.maps):
        return
    looked_at = {name for m in config.maps for name in m.inputs}
    for one in config.inputs:
        if one.name not in looked_at:
            text = f"no map looks at input '{one.name}', and there is no collector: all its packets are filtered"
            yield one.place, f"inputs.{one.name}", text


def _stand_ins(config: Config, group: Group) -> Iterator[Warned]:
    """Others take over from a member only if it is asked whether it is there."""
    tools = {tool.name: tool for tool in config.tools}
    path = f"groups.{group.name}"
    unasked = [name for name in group.members if tools[name].health is None]
    if group.mode == "failover":
        before = [name for name in group.members[:-1] if name in unasked]
        if before:
            behind = ", ".join(f"'{name}'" for name in group.members[group.members.index(before[0]) + 1 :])
            text = f"nothing ever goes to {behind}: '{before[0]}' comes before, has no health and counts as there"
            yield group.place, path, text
    elif len(group.members) > 1 and len(unasked) == len(group.members) and any(tools[name].tunnel for name in unasked):
        yield group.place, path, f"no member of group '{group.name}' has health: one that is dead is sent its flows all the same"
