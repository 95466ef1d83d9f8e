"""The effective configuration as YAML: every default filled in, every value in its one spelling. `parse_config` makes the same of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import yaml

from broker.config.document import Text
from broker.config.packet import parse_fields
from broker.config.render_flows import written_flows
from broker.config.tunnels import TUNNELS
from broker.core.model import MAX_PRIORITY, Config, Cpus, Group, Input, Mask, PolicyTest, Shape, Stream, Tool, Tunnel

_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "timestamp"))


class _Dumper(yaml.SafeDumper):
    """Writes `Text` without quotes where quotes would make text of a number."""


def _represent(dumper: _Dumper, value: Text) -> yaml.ScalarNode:
    found: str = dumper.resolve(yaml.ScalarNode, str(value), (True, False))  # type: ignore[no-untyped-call]
    # Some line ends would be folded into blanks between single quotes.
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar(found if found in _PLAIN else "tag:yaml.org,2002:str", str(value), style=style)


_Dumper.add_representer(Text, _represent)


def _cpus(cpus: Cpus) -> dict[str, list[int]]:
    return {kind: list(numbers) for kind, numbers in asdict(cpus).items() if numbers}


def render(config: Config) -> str:
    """A document of what a configuration file can say. (A tool of a replay that has both a tunnel and a file is shown as its tunnel.)"""
    whole = {
        "node": config.node,
        "inputs": {i.name: _input(i) for i in config.inputs},
        **({"tools": {t.name: _tool(t) for t in config.tools}} if config.tools else {}),
        **({"groups": {g.name: _group(g) for g in config.groups}} if config.groups else {}),
        "sets": {name: [_entry(entry) for entry in entries] for name, entries in config.sets.items()},
        "maps": [
            {
                "name": m.name,
                **({"inputs": list(m.inputs)} if m.inputs else {}),
                "rules": [{rule.action: rule.expression} for rule in m.rules],
                "to": list(m.to),
                "undetermined": m.undetermined,
                **_shape(m.shape),
            }
            for m in config.maps
        ],
        "collector": list(config.collector),
        "stages": {**asdict(config.stages), "cpus": _cpus(config.stages.cpus)},
        "ring": asdict(config.ring),
        **({"http": config.http} if config.http else {}),
        "drain_s": config.drain_s,
        **({"flows": written_flows(config.flows)} if config.flows else {}),
        **({"tests": [_test(test) for test in config.tests]} if config.tests else {}),
    }
    text: str = yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text


def _input(value: Input) -> dict[str, Any]:
    if value.kind == "afpacket":
        keys = ("kind", "interface", "promiscuous", "ring_bytes", "latency_ms", "capture_own", "dedicated", "prefilter", "shed")
        return {key: getattr(value, key) for key in keys}
    if value.kind == "tunnel":
        given = {key: getattr(value, key) for key in ("address", "port") if getattr(value, key)}
        given |= {key: getattr(value, key) for key in ("key", "vni") if getattr(value, key) is not None}
        return {"kind": value.kind, "listen": value.listen, "from": list(value.senders), **given, "buffer_bytes": value.buffer_bytes}
    files = {"file": value.files[0]} if len(value.files) == 1 else {"files": list(value.files)}
    return {"kind": value.kind, **files, "pace": int(value.pace) if value.pace.isdigit() else value.pace}


def _tool(value: Tool) -> dict[str, Any]:
    shaped = _shape(value.shape) | {"super_frames": value.super_frames, "segment_bytes": value.segment_bytes}
    if value.tunnel is None:
        return _bare(value) | shaped
    mtu = {"mtu_bytes": value.mtu_bytes} if value.mtu_bytes else {}
    health = {"health": _said(value.health)} if value.health else {}
    receiver = {"receiver": value.receiver} if value.receiver else {}
    return {"tunnel": _tunnel(value.tunnel), **receiver, **shaped, "oversize": value.oversize, **mtu, "backend": value.backend, **health}


def _bare(value: Tool) -> dict[str, Any]:
    """What a tool without a tunnel is."""
    if value.interface:
        return {"kind": "interface", "interface": value.interface, "qdisc_bypass": value.qdisc_bypass}
    if value.stream is not None:
        stream = {"kind": "stream"} | _said(replace(value.stream, tls=None)) | {"format": value.format}
        return stream if value.stream.tls is None else stream | {"tls": _tls(value.stream)}
    return {"kind": value.format} | ({"file": value.file} if value.rotation is None else _said(value.rotation))


def _tls(value: Stream) -> dict[str, Any]:
    said = _said(value.tls)
    said.pop("verify", None)
    return said | ({"verify": value.tls.verify} if value.connect and value.tls else {})


def _said(value: Any) -> dict[str, Any]:
    """The fields of a part that has plain ones only."""
    return {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(value).items() if item or key in ("by", "kind")}


def _shape(value: Shape) -> dict[str, Any]:
    """What is not as it is without a word."""
    found: dict[str, Any] = {key: _said(part) for key in ("sample", "dedup") if (part := getattr(value, key))}
    found |= {"strip": list(value.strip)} if value.strip else {}
    found |= {"push_vlan": value.push_vlan} if value.push_vlan is not None else {}
    if value.mask:
        found |= {"mask": [_mask(m) for m in value.mask], "mask_checksums": value.mask_checksums}
    found |= {"slice_after": value.slice_after} if value.slice_after else {}
    found |= {"slice_bytes": value.slice_bytes} if value.slice_bytes else {}
    found |= {"priority": value.priority} if value.priority != MAX_PRIORITY else {}
    return found | ({"limit": _said(value.limit)} if value.limit else {})


def _mask(value: Mask) -> str | dict[str, Any]:
    if value.what in ("payload", "cards") and not (value.at or value.n_bytes):
        return value.what
    return {"from": value.what, "at": value.at, "bytes": value.n_bytes}


def _group(value: Group) -> dict[str, Any]:
    weights = {"weights": dict(zip(value.members, value.weights, strict=True))} if value.weights else {}
    return {"members": list(value.members), "mode": value.mode, "balance": value.balance, "of": value.of, **weights}


def _tunnel(value: Tunnel) -> dict[str, Any]:
    """The keys that its kind has."""
    said = {key: getattr(value, key) for key in TUNNELS[value.kind].model_fields}
    return {key: value.udp_port if key == "port" else item for key, item in said.items() if item not in (None, "")}


def _test(value: PolicyTest) -> dict[str, Any]:
    name, by = {"name": value.name} if value.name else {}, {} if value.by is None else {"by": list(value.by)}
    return {**name, "packet": parse_fields(value.packet), "delivers": list(value.delivers), **by}


def _entry(entry: str) -> str | int:
    return int(entry) if entry.isdigit() else entry
