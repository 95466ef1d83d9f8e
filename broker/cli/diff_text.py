"""What two policies differ in, for people. Pure: the values that ``tapmesh diff --json`` prints, as text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from broker.cli.table import Column, count, render, share, size

MAX_RULES = 20
"""Of a map that are shown; --json has them all."""

_MARKS = {"added": "+", "removed": "-", "moved": "~"}


def text_of(found: dict[str, Any]) -> str:
    parts = ["\n".join(_configuration(found))]
    if found["packets"] is not None:
        parts += _packets(found)
    return "\n\n".join(parts)


def _configuration(found: dict[str, Any]) -> Iterator[str]:
    if not found["configuration"]:
        yield "the configurations say the same"
    for change in found["configuration"]:
        yield f"{change['part']}: {change['action']}: {change['reason']}"
    for name, changes in groupby(found["rules"], lambda change: change["map"]):
        rules = list(changes)
        yield f"rules of map {name}:"
        for rule in rules[:MAX_RULES]:
            places = [str(rule[place] + 1) for place in ("before", "after") if rule[place] is not None]
            yield f"  {_MARKS[rule['change']]} rule {' -> '.join(places)}  {rule['action']}: {rule['expression'] or '(every packet)'}"
        if len(rules) > MAX_RULES:
            yield f"  and {len(rules) - MAX_RULES:,} more"


def _packets(found: dict[str, Any]) -> Iterator[str]:
    p = found["packets"]
    source = p["file"] if "file" in p else f"pipeline {p['pipeline']}, sampled for {p['seconds']:g} s"
    judged = f"{source}: {p['packets']:,} packets"
    if not p["changed"]:
        yield f"{judged}, none of them changes its fate"
        return
    yield f"{judged}, {p['changed']:,} of them ({share(p['changed'], p['packets'])}, {size(p['changed_bytes'])}) change their fate"
    if p["maps"]:
        yield _table(("map", "before", "after"), p["maps"])
    if p["tools"]:
        yield _table(("tool", "change"), p["tools"])
    if p["causes"]:
        rows = [[c["before"], c["after"], count(c["packets"])] for c in p["causes"]]
        yield render([Column("fate before", right=False), Column("after", right=False), Column("packets")], rows)
    yield _talkers(p)
    if p["examples"]:
        numbers = ", ".join(str(one["packet"]) for one in p["examples"])
        first = p["examples"][0]["packet"]
        yield f"the first are packets {numbers}; why: tapmesh explain --config {found['new']} --capture {p['file']} --packet {first}"


def _table(names: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    columns = [*(Column(name, right=False) for name in names), Column("packets"), Column("bytes")]
    ordered = sorted(rows, key=lambda row: -row["packets"])
    return render(columns, [[*(row[name] for name in names), count(row["packets"]), size(row["bytes"])] for row in ordered])


def _talkers(p: dict[str, Any]) -> str:
    def end(talker: dict[str, Any], name: str) -> str:
        port = talker.get(f"{name}_port")
        address = talker[name]
        return address if port is None else f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    columns = [*(Column(name, right=False) for name in ("source", "destination", "protocol")), Column("packets"), Column("bytes")]
    rows = [[end(t, "source"), end(t, "destination"), t["protocol"], count(t["packets"]), size(t["bytes"])] for t in p["talkers"]]
    text = render(columns, rows)
    return text + (f"\n  ({p['talkers_forgotten']:,} smaller conversations were forgotten)" if p["talkers_forgotten"] else "")
