"""What must hold within `flows`, and between it and the rest. Reads the document as it was written, as `checks` does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from broker.config.checking import check_expression, check_names, check_one_of, error_at, listed, mapping
from broker.config.document import Document, Error, Path, Text, dotted
from broker.config.flow_scalars import site_net
from broker.config.policy.sets import Elements
from broker.config.records.expression import where
from broker.config.scalars import Wrong, suggest

_OF_TRANSPORT = {
    "mtu_bytes": ("udp",),
    "template_refresh_s": ("udp",),
    "buffer_bytes": ("tcp", "tls"),
    "tls": ("tls",),
}
"""Keys of exports with `to`, and over what they have a meaning."""


def check_flows(document: Document, whole: dict[str, Any], sets: dict[str, Elements]) -> Iterator[Error]:
    flows = mapping(whole, "flows")
    written = "flows" in whole and whole["flows"] in (None, flows)  # what is no mapping is told elsewhere
    if written and flows.get("store") is None and not flows.get("exports") and ("flows",) not in document.broken:
        yield error_at(document, ("flows",), "nothing would become of the records, expected exports or a store")
    if flows.get("of") == "forwarded" and not whole.get("tools"):
        yield error_at(document, ("flows", "of"), "there are no tools that packets are forwarded to, expected captured, or tools")
    for name, value in mapping(flows, "exports").items():
        if isinstance(value, dict):
            yield from _export(document, ("flows", "exports", name), value)
    yield from _store(document, mapping(flows, "store"))
    for name, value in mapping(flows, "links").items():
        path: Path = ("flows", "links", name)
        if isinstance(value, dict):
            yield from check_one_of(document, path, value, "inputs", "match")
            yield from check_names(document, (*path, "inputs"), value.get("inputs"), mapping(whole, "inputs"), "input")
            if isinstance(value.get("match"), Text):
                yield from check_expression(document, (*path, "match"), str(value["match"]), sets, where)
    yield from _sites(document, mapping(flows, "sites"), mapping(whole, "sets"), sets)


def written_by_exports(whole: dict[str, Any]) -> list[tuple[Path, str]]:
    """The files that exports are written to, and where that is said."""
    return [
        (("flows", "exports", name, "file"), os.path.normpath(value["file"]))
        for name, value in mapping(mapping(whole, "flows"), "exports").items()
        if isinstance(value, dict) and value.get("kind") == "json" and isinstance(value.get("file"), Text)
    ]


def _export(document: Document, path: Path, value: dict[str, Any]) -> Iterator[Error]:
    if value.get("kind") == "json":
        yield from check_one_of(document, path, value, "to", "file")
    if "to" not in value and "tls" in value:
        yield _key(document, (*path, "tls"), "a file is not sent, expected to: tls://address:port instead")
    if not isinstance(value.get("to"), Text):
        return
    transport = value["to"].partition("://")[0]
    kind = value.get("kind")
    for key, over in _OF_TRANSPORT.items():
        known = kind == "ipfix" or (kind == "json" and key in ("buffer_bytes", "tls"))
        if known and key in value and transport in ("udp", "tcp", "tls") and transport not in over:
            yield _key(document, (*path, key), f"it is of {' and '.join(f'{one}://' for one in over)} only, and this goes over {transport}")
    yield from _tls(document, path, value)


def _store(document: Document, value: dict[str, Any]) -> Iterator[Error]:
    path: Path = ("flows", "store")
    if value.get("kind") == "clickhouse":
        if "password_file" in value and "user" not in value:
            yield _key(document, (*path, "password_file"), "a password without its user, expected user too")
        if "tls" in value and isinstance(value.get("url"), Text) and value["url"].startswith("http:"):
            yield _key(document, (*path, "tls"), "http is not encrypted, expected url: https://...")
    yield from _tls(document, path, value)


def _tls(document: Document, path: Path, value: dict[str, Any]) -> Iterator[Error]:
    tls = mapping(value, "tls")
    if "key" in tls and "cert" not in tls:
        yield error_at(document, (*path, "tls", "key"), "a key without its certificate, expected cert too")


def _sites(document: Document, sites: dict[str, Any], written: dict[str, Any], sets: dict[str, Elements]) -> Iterator[Error]:
    first: dict[str, Path] = {}
    for name, value in sites.items():
        if not isinstance(value, dict):
            continue
        path: Path = ("flows", "sites", name)
        yield from _within(document, path, name, sites)
        for at, word in listed((*path, "nets"), value.get("nets")):
            if word.startswith("$") and (known := word[1:]) not in written:
                yield error_at(document, at, f"unknown set '{known}'{suggest(known, written)}")
                continue
            if word.startswith("$") and (known := word[1:]) in sets and set(sets[known].kinds) - {"addresses"}:
                yield error_at(document, at, f"set '{known}' is of {sets[known].kinds[0]}, expected addresses and nets")
                continue
            for net in nets_of(word, {key: [entry for _, entry in listed((), entries)] for key, entries in written.items()}):
                if net in first:
                    yield error_at(document, at, f"{net} is given twice, the first time in {dotted(first[net])}")
                else:
                    first[net] = at


def nets_of(word: str, sets: Mapping[str, Any]) -> list[str]:
    """What one entry of `nets` stands for, each net in its one spelling; what is none is told elsewhere."""
    words = [str(entry) for entry in sets.get(word[1:]) or ()] if word.startswith("$") else [word]
    found = []
    for entry in words:
        try:
            found.append(site_net(entry))
        except Wrong:
            continue
    return list(dict.fromkeys(found))


def _within(document: Document, path: Path, name: str, sites: dict[str, Any]) -> Iterator[Error]:
    holder = mapping(sites, name).get("within")
    if not isinstance(holder, Text):
        return
    if holder not in sites:
        yield error_at(document, (*path, "within"), f"unknown site '{holder}'{suggest(str(holder), sites)}")
        return
    way = [name]
    while isinstance(holder, Text) and str(holder) not in way:
        way.append(str(holder))
        holder = mapping(sites, str(holder)).get("within")
    if isinstance(holder, Text) and str(holder) == name:
        yield error_at(document, (*path, "within"), f"it holds itself: {' within '.join([*way, name])}")


def _key(document: Document, path: Path, text: str) -> Error:
    return document.place(path, of_key=True), dotted(path), text
