"""From a configuration to the policy image: rules as code, then what makes them fast (`tables.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from broker.config import deliveries
from broker.config.policy import image
from broker.config.policy.errors import PolicyError
from broker.config.policy.fields import MAX_TERMS, Term, is_predicate, terms
from broker.config.policy.image import DROP, MODE_DELIVER, MODE_DROP, MODE_LIBPCAP, PASS, PREFILTER, RULE, Builder
from broker.config.policy.parser import parse
from broker.config.policy.prefilter import prefilter
from broker.config.policy.program import Program
from broker.config.policy.sets import read_set
from broker.config.policy.simplify import simplify
from broker.config.policy.tables import add_tables
from broker.config.policy.tree import Node, Test
from broker.core.layout import MAPS
from broker.core.model import Config, Map

_MODES = {"deliver": MODE_DELIVER, "drop": MODE_DROP, "libpcap": MODE_LIBPCAP}


@dataclass(frozen=True, slots=True)
class Policy:
    """`image`: what the filter works by. `program`, `maps`: the same as values, for who explains it: map m of the configuration has the
    rules `maps[m]` of the program. `terms`: of each rule, and whether they are exact, see `fields.terms`."""

    image: bytes
    program: Program
    maps: tuple[range, ...]
    terms: list[tuple[list[Term], bool]]


def compile_policy(config: Config) -> bytes:
    """PolicyError for an expression that the loader let through, or a policy that is too large."""
    return build_policy(config).image


def parse_rules(config: Config) -> list[list[tuple[str, Node]]]:
    """Of each map, (action, tree) of each rule."""
    sets = {name: read_set(name, texts) for name, texts in config.sets.items()}
    known: dict[str, Node] = {}

    def tree_of(expression: str) -> Node:
        if expression not in known:
            known[expression] = simplify(parse(expression, sets))
        return known[expression]

    return [[(rule.action, tree_of(rule.expression)) for rule in m.rules] for m in config.maps]


def build_policy(config: Config) -> Policy:
    """As `compile_policy`."""
    if len(config.maps) > MAPS:
        raise PolicyError(f"{len(config.maps)} maps; there is room for {MAPS}")
    program = Program()
    maps = tuple(program.add_map(rules) for rules in parse_rules(config))
    unguarded = program.unguarded()
    of_rules = [terms(rule.node, unguarded) for rule in program.rules]
    limit = MAX_TERMS
    while True:
        builder = Builder(len(config.maps))
        _add_program(builder, config, program, maps, unguarded)
        needed = add_tables(builder, program, [found if len(found) <= limit else [{}] for found, _ in of_rules], unguarded, image.MAX_BYTES)
        if needed <= image.MAX_BYTES:
            _add_prefilters(builder, config, [[of_rules[rule][0] for rule in rules] for rules in maps])
            return Policy(builder.finish(), program, maps, of_rules)
        if limit == 1:
            raise PolicyError(f"the policy needs {needed:,} bytes of tables; at most {image.MAX_BYTES:,}")
        limit //= 2  # fewer alternatives are less exact, and smaller


def _add_program(builder: Builder, config: Config, program: Program, maps: tuple[range, ...], unguarded: set[Test]) -> None:
    head = builder.header[0]
    slot = {i.name: i.slot for i in config.inputs}
    for row, m, rules in zip(builder.maps, config.maps, maps, strict=True):
        row["first_rule"], row["n_rules"] = rules.start, len(rules)
        row["inputs"] = _signed(_seen_inputs(m, slot)) if m.inputs else -1
        row["tools"] = _signed(deliveries.bits(config, m))
        row["slot"], row["mode"] = m.slot, _MODES[m.undetermined]
    head["collector"] = _signed(deliveries.bits(config))
    table, code = program.tables(builder)
    predicates = [row for test, row in program.tests.items() if is_predicate(test) or test in unguarded]
    table["predicate"][predicates] = np.arange(len(predicates))
    rows = np.zeros(len(program.rules), RULE)
    for out, rule in zip(rows, program.rules, strict=True):
        out["first"], out["n"], out["action"] = rule.first, rule.n, PASS if rule.is_pass else DROP
    parts = (("tests", table), ("code", code), ("rules", rows), ("predicates", np.array(predicates, np.uint32)))
    for name, part in parts:
        head[f"n_{name}"], head[f"{name}_at"] = len(part), builder.add(part)


def _add_prefilters(builder: Builder, config: Config, terms: list[list[list[Term]]]) -> None:
    bodies = {one.slot: body for one in config.inputs if (body := prefilter(config, one, terms))}
    rows = np.array([(slot, builder.add(np.frombuffer(body, np.uint8)), len(body)) for slot, body in bodies.items()], PREFILTER)
    head = builder.header[0]
    head["n_prefilters"], head["prefilters_at"] = len(rows), builder.add(rows)


def _seen_inputs(m: Map, slot: dict[str, int]) -> int:
    return sum(1 << slot[name] for name in set(m.inputs))


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
