"""The effective configuration as YAML: every default filled in, every value in its one spelling. `parse_config` makes the same of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import yaml

from broker.config.document import Text
from broker.config.packet import parse_fields
from broker.core.model import Config, Input, PolicyTest, Tool, Tunnel

_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "timestamp"))


class _Dumper(yaml.SafeDumper):
    """Writes `Text` without quotes where quotes would make text of a number."""


def _represent(dumper: _Dumper, value: Text) -> yaml.ScalarNode:
    found: str = dumper.resolve(yaml.ScalarNode, str(value), (True, False))  # type: ignore[no-untyped-call]
    # Some line ends would be folded into blanks between single quotes.
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar(found if found in _PLAIN else "tag:yaml.org,2002:str", str(value), style=style)


_Dumper.add_representer(Text, _represent)


def render(config: Config) -> str:
    """A document of what a configuration file can say. (A tool of a replay that has both a tunnel and a file is shown as its tunnel.)"""
    whole = {
        "node": config.node,
        "inputs": {i.name: _input(i) for i in config.inputs},
        "tools": {t.name: _tool(t) for t in config.tools},
        "sets": {name: [_entry(entry) for entry in entries] for name, entries in config.sets.items()},
        "maps": [
            {
                "name": m.name,
                **({"inputs": list(m.inputs)} if m.inputs else {}),
                "rules": [{rule.action: rule.expression} for rule in m.rules],
                "to": list(m.to),
                "undetermined": m.undetermined,
            }
            for m in config.maps
        ],
        "collector": list(config.collector),
        "stages": asdict(config.stages),
        "ring": asdict(config.ring),
        **({"http": config.http} if config.http else {}),
        "drain_s": config.drain_s,
        **({"tests": [_test(test) for test in config.tests]} if config.tests else {}),
    }
    text: str = yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text


def _input(value: Input) -> dict[str, Any]:
    if value.kind == "afpacket":
        return {key: getattr(value, key) for key in ("kind", "interface", "promiscuous", "ring_bytes", "capture_own")}
    if value.kind == "tunnel":
        given = {key: getattr(value, key) for key in ("address", "port") if getattr(value, key)}
        given |= {key: getattr(value, key) for key in ("key", "vni") if getattr(value, key) is not None}
        return {"kind": value.kind, "listen": value.listen, "from": list(value.senders), **given, "buffer_bytes": value.buffer_bytes}
    files = {"file": value.files[0]} if len(value.files) == 1 else {"files": list(value.files)}
    return {"kind": value.kind, **files, "pace": int(value.pace) if value.pace.isdigit() else value.pace}


def _tool(value: Tool) -> dict[str, Any]:
    return {"kind": "pcap", "file": value.file} if value.tunnel is None else {"tunnel": _tunnel(value.tunnel)}


def _tunnel(value: Tunnel) -> dict[str, Any]:
    only_udp = () if value.kind == "gre-udp" else ("port", "source_port")
    return {key: item for key, item in asdict(value).items() if item not in (None, "") and key not in only_udp}


def _test(value: PolicyTest) -> dict[str, Any]:
    name, by = {"name": value.name} if value.name else {}, {} if value.by is None else {"by": list(value.by)}
    return {**name, "packet": parse_fields(value.packet), "delivers": list(value.delivers), **by}


def _entry(entry: str) -> str | int:
    return int(entry) if entry.isdigit() else entry
