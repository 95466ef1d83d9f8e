"""Configurations and expressions made to take for ever: refused in words and in time."""

from __future__ import annotations

import contextlib
import resource
import time

import pytest

from broker.config import load_config, loader, parse_config
from broker.config.policy import compile_policy
from broker.config.policy.errors import PolicyError
from broker.config.policy.parser import parse
from broker.core.errors import ConfigErrors
from broker.core.model import Config, Input, Map, Rule, Tool


def test_a_configuration_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MOST_BYTES", 1000)
    with pytest.raises(ConfigErrors, match="/dev/zero:1:1: is longer than 1,000 bytes, which is no configuration"):
        load_config("/dev/zero")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
BOMBS = {
    "billion laughs": LAUGHS,
    "deep lists": "inputs: " + "[" * 100_000,
    "deep mappings": "inputs: " + "{a: " * 100_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(3000)),
    "deep sequences": "- " * 50_000 + "x",
    "anchors": "".join(f"k{i}: &a{i} x\n" for i in range(20_000)),
    "tags": "!!python/object/apply:os.system ['true']",
    "merge": "a: &a {x: 1}\nb: {<<: *a}",
    "huge number": "ring: {blocks: " + "9" * 100_000 + "}",
    "huge exponent": "ring: {blocks: 1e999999999}",
    "long key": "x" * 100_000 + ": 1",
    "many keys": "".join(f"k{i}: 1\n" for i in range(10_000)),
    "many documents": "---\n" * 10_000,
    "nuls": "\0" * 1000,
    "surrogates": 'a: "\\ud800"',
    "quotes": "'" * 99_999,
    "complex keys": "? [a]\n: 1\n" * 5000,
    "digits": "node: " + "0" * 200_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_configuration_that_is_a_bomb_is_a_mistake_with_a_place(name: str) -> None:
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigErrors) as caught:
        parse_config(BOMBS[name], "bomb.yaml")
    assert all(place.file == "bomb.yaml" for place, _, _ in caught.value.errors if place)
    assert len(caught.value.errors) <= 2000
    assert time.process_time() - begun < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


EXPRESSIONS = {
    "brackets": "(" * 5000 + "ip" + ")" * 5000,
    "nots": "not " * 4000 + "ip",
    "marks": "!" * 16_000 + "ip",
    "inner": "inner (" * 2000 + "ip" + ")" * 2000,
    "arithmetic": "ip[" * 3000 + "0" + "]" * 3000 + " = 1",
    "sums": "ip[0] = " + "1+" * 7000 + "1",
    "minus": "ip[0] = " + "-" * 15_000 + "1",
    "ors": " or ".join(["tcp"] * 3000),
    "huge number": "port " + "9" * 16_000,
    "huge offset": "ip[99999999999999999999] = 1",
    "open string": 'payload contains "' + "x" * 16_000,
    "too long": "ip " * 10_000,
    "sets": "port {" + ",".join(map(str, range(3000))) + "}",
    "vlans": "vlan and " * 1700 + "ip",
    "mpls": "mpls and " * 1700 + "ip",
    "shift": "ip[0] << 64 = 1",
    "division": "ip[0] / 0 = 1",
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_that_is_a_bomb_compiles_or_is_refused_in_words(name: str) -> None:
    begun = time.process_time()
    with contextlib.suppress(PolicyError):
        parse(EXPRESSIONS[name], {})
        config = Config("n", (Input("in", "pcap"),), (Tool("t", file="-"),), (Map("m", (Rule("pass", EXPRESSIONS[name]),), ("t",)),))
        compile_policy(config)
    assert time.process_time() - begun < 10
