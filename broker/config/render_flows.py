"""The part `flows` as it is written in a document: see `render`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from broker.config.flows import TAGGED
from broker.core.flow_model import Export, Flows, Store
from broker.core.model import Tls

_PLAIN = ("of", "layer", "max_flows", "idle_s", "active_s", "names", "records", "meter_s", "new_days")


def written_flows(value: Flows) -> dict[str, Any]:
    """Of what is not there, no key."""
    optional: dict[str, Any] = {
        "sample": asdict(value.sample) if value.sample else None,
        "overload": value.overload,
        "anonymise": {"key_file": value.anonymise_key_file} if value.anonymise_key_file else None,
        "drop": list(value.drop),
        "exports": {export.name: _export(export) for export in value.exports},
        "store": _store(value.store) if value.store else None,
        "links": {
            link.name: ({"inputs": list(link.inputs)} if link.inputs else {"match": link.match})
            | {"capacity_bits_per_s": link.capacity_bits_per_s}
            for link in value.links
        },
        "sites": {
            site.name: ({"nets": list(site.nets)} if site.nets else {}) | ({"within": site.within} if site.within else {})
            for site in value.sites
        },
    }
    return {key: getattr(value, key) for key in _PLAIN} | {key: item for key, item in optional.items() if item}


def _export(value: Export) -> dict[str, Any]:
    where = f"[{value.address}]" if ":" in value.address else value.address
    to = {"file": value.file} if value.transport == "file" else {"to": f"{value.transport}://{where}:{value.port}"}
    keys = ("mtu_bytes", "template_refresh_s", "domain") if value.transport == "udp" else ("domain", "buffer_bytes")
    known = TAGGED[f"@{value.kind}"].model_fields
    return {"kind": value.kind, **to, **{key: getattr(value, key) for key in keys if key in known}, **_tls(value.tls)}


def _store(value: Store) -> dict[str, Any]:
    said = {key: getattr(value, key) for key in TAGGED[f"@{value.kind}"].model_fields if key != "tls"}
    said = {key: list(item) if isinstance(item, tuple) else item for key, item in said.items() if item != ""}
    return {"kind": value.kind} | said | _tls(value.tls)


def _tls(value: Tls | None) -> dict[str, Any]:
    if value is None:
        return {}
    return {"tls": {key: item for key, item in asdict(value).items() if item != ""}}
