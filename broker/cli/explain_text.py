"""What became of one packet, for people. Pure: the values of `explained` as text."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from broker.core.metrics import COUNTERS
from broker.core.model import Config, Map

FEW = 10
"""Rules of a map that are shown one by one; of more, those that came closest."""

CLOSEST = 5
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_CAUSES = {
    "forwarded": "",
    "collected": "no map took it, so the collector gets it",
    "filtered": "no map passed it",
    "rule": "a drop rule decided",
    "undetermined": "a map cannot tell, and does not deliver such packets",
}
_OUTCOMES = {"deliver": "so it is delivered", "drop": "so it is not delivered"}
_SHOWN_TESTS = 3


def text_of(config: Config, found: dict[str, Any], *, everything: bool) -> str:
    """`found`: of `explained`. `everything`: each rule that was tried, however many."""
    lines = [_packet(found)]
    for value, m in zip(config.maps, found["maps"], strict=True):
        lines += ["", *_map(value, m, everything)]
    lines += ["", _verdict(found)]
    lines += itertools.chain.from_iterable(_frame(config, found, tool) for tool in dict.fromkeys((*found["delivers"], *found["dropped"])))
    return "\n".join(lines)


def _packet(found: dict[str, Any]) -> str:
    packet = found["packet"]
    name = f"packet {packet['number']:,} of {packet['file']}" if "number" in packet else "packet"
    cut = "" if packet["captured_bytes"] == packet["wire_bytes"] else f", {packet['captured_bytes']:,} of them captured"
    lines = [f"{name}: {packet['wire_bytes']:,} bytes{cut}, input {found['input']}" + (f", {packet['time']}" if "time" in packet else "")]
    parts = [part for layer in dict.fromkeys(packet["layers"]) if (part := _layer(layer, packet))]
    if packet["layers"][-1:] != ["eth"] or not parts:
        rest = []
    else:
        rest = [f"ethertype 0x{packet['eth.type']:04x}"] if "eth.type" in packet else []
    lines.append("  " + "; ".join(parts + rest))
    notes = []
    if packet["fragment"] != "none":
        notes.append(f"fragment: {packet['fragment']}")
    if packet["ports"] in ("cut", "hidden"):
        notes.append(f"ports: {'cut off' if packet['ports'] == 'cut' else 'hidden by the fragment'}")
    if packet["headers_cut"]:
        notes.append("a header is not wholly there")
    return "\n".join(lines + ([f"  {', '.join(notes)}"] if notes else []))


def _layer(layer: str, packet: dict[str, Any]) -> str:
    if layer == "eth":
        return f"eth {packet['eth.src']} > {packet['eth.dst']}"
    if layer == "vlan":
        return "vlan " + ", ".join(map(str, packet["vlan.id"]))
    if layer in ("ip", "ipv6", "arp"):
        words = " ".join([layer, " > ".join(packet.get(f"{layer}.{end}", "?") for end in ("src", "dst"))])
        number = packet.get("ip.proto", packet.get("ipv6.nxt"))
        return words if packet["layers"][-1] != layer or number is None else f"{words} protocol {number}"
    if f"{layer}.type" in packet:
        return f"{layer} type {packet[f'{layer}.type']}"
    ports = [packet.get(f"{layer}.{side}") for side in ("srcport", "dstport")]
    flags = f" [{' '.join(packet['tcp.flags'])}]" if "tcp.flags" in packet and layer == "tcp" else ""
    return layer + (f" {ports[0]} > {ports[1]}" if None not in ports else "") + flags


def _map(value: Map, m: dict[str, Any], everything: bool) -> Iterator[str]:
    yield f"map {value.name}, to {', '.join(value.to) or 'nobody'}"
    if m["decision"] == "input":
        yield f"  does not look at this input, only at {', '.join(value.inputs)}"
        return
    tried = m["tried"]
    shown = tried if everything or len(tried) <= FEW else _closest(tried)
    for rule in shown:
        yield from _rule(rule, m["rule"])
    yield from _left_out(tried, shown)
    yield f"  {_decision(value, m)}"


def _closest(tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules that failed last, and the one that decided, in their order."""
    failed = [rule for rule in tried if rule["answer"] == "false"]
    most = max((len(rule["tests"]) for rule in failed), default=0)
    near = sorted((rule for rule in failed if len(rule["tests"]) > 1), key=lambda rule: -len(rule["tests"]))[:CLOSEST] if most > 1 else []
    chosen = {rule["rule"] for rule in near}
    return [rule for rule in tried if rule["rule"] in chosen or rule["answer"] != "false"]


def _left_out(tried: list[dict[str, Any]], shown: list[dict[str, Any]]) -> Iterator[str]:
    known = {rule["rule"] for rule in shown}
    counts = Counter(len(rule["tests"]) for rule in tried if rule["rule"] not in known)
    for n, rules in sorted(counts.items()):
        which = _ORDINALS[n - 1] if n <= len(_ORDINALS) else f"{n}th"
        more = "more " if known else ""
        yield f"  {rules:,} {more}rule{'s' if rules > 1 else ''} failed at {'their' if rules > 1 else 'its'} {which} test"


def _rule(rule: dict[str, Any], decided: int | None) -> Iterator[str]:
    line = f"  rule {rule['rule'] + 1}  {rule['action']}: {rule['expression'] or '(every packet)'}"
    yield line + (f"    {rule['line']}" if rule["line"] else "")
    behind = "" if decided is None or rule["rule"] <= decided else "not reached; "
    if rule["answer"] == "true":
        yield f"          {behind}matches"
        return
    why = f": {rule['reason']}" if rule["reason"] else ""
    yield f"          {behind}{'cannot tell' if rule['answer'] == 'undetermined' else 'no'}: {_short(rule['failed_test'])}{why}"


def _short(tests: str) -> str:
    several = tests.split(" or ")
    return tests if len(several) <= _SHOWN_TESTS else " or ".join(several[:_SHOWN_TESTS]) + f" or {len(several) - _SHOWN_TESTS:,} more"


def _decision(value: Map, m: dict[str, Any]) -> str:
    by = f"rule {m['rule_number']}" if m["rule"] is not None else ""
    match m["decision"]:
        case "pass":
            return f"passed by {by}"
        case "drop":
            return f"dropped by {by}"
        case "undetermined":
            return f"cannot be told: undetermined in {by}, {_OUTCOMES[value.undetermined]}"
    return "no rule matches: not passed"


def _verdict(found: dict[str, Any]) -> str:
    cause = _CAUSES[found["verdict"]["cause"]]
    if not found["delivers"]:
        return f"delivered to nobody: {cause}"
    return f"delivered to {', '.join(found['delivers'])}" + (f": {cause}" if cause else "")


def _frame(config: Config, found: dict[str, Any], name: str) -> Iterator[str]:
    frames = [f for f in found["frames"] if f["tool"] == name]
    tool = next(t for t in config.tools if t.name == name)
    if counter := found["dropped"].get(name):
        help_ = next((c.help for c in COUNTERS if c.name == counter), "")
        yield f"  {name}: {'no frame' if not frames else 'not every frame'} ({counter}): {help_}"
    if not frames:
        return
    frame = frames[0]
    what = f"{frame['data_len']:,} bytes"
    if frame["data_at"] < 0:
        what += " of the packet, changed"
    elif frame["data_at"]:
        what += f" of the packet from byte {frame['data_at']}"
    if len(frames) > 1:
        what += f", the first of {len(frames)} segments"
    header = bytes.fromhex(frame["header"])
    if tool.tunnel is None:
        more = f", behind {len(header)} new ones" if header else ""
        yield f"  {name}: the bare packet, {what}{more}, to {tool.destination}"
        return
    yield f"  {name}: {tool.tunnel.kind} to {tool.tunnel.remote}, {len(header)} bytes of outer headers, then {what}"
    yield from hex_dump(header)


def hex_dump(data: bytes) -> Iterator[str]:
    """16 bytes a line, with their offset."""
    for at in range(0, len(data), 16):
        yield f"    {at:04x}  {data[at : at + 16].hex(' ')}"
