"""What must hold between the parts of a configuration. Reads the document as it was written, so that these mistakes are told together with
those of single values, whatever else is wrong."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Generator, Iterator
from typing import Any

from broker.config import packet, scalars
from broker.config.checking import check_expression, check_names, check_twice, error_at, listed, mapping
from broker.config.document import Document, Error, Path, Text, dotted
from broker.config.flow_checks import check_flows, written_by_exports
from broker.config.policy import read_sets
from broker.config.policy.sets import Elements
from broker.config.scalars import Wrong
from broker.config.schema import Whole
from broker.config.tool_checks import check_tool, written_file
from broker.core.model import UDP_PORTS


def check(document: Document) -> Iterator[Error]:
    whole = document.value
    if not isinstance(whole, dict):
        return
    yield from _inputs(document, mapping(whole, "inputs"))
    yield from _tools(document, mapping(whole, "tools"), mapping(whole, "inputs"))
    yield from _files(document, whole)
    sets = yield from _sets(document, mapping(whole, "sets"))
    yield from check_flows(document, whole, sets)
    yield from _maps(document, whole, sets)
    yield from _groups(document, whole)
    yield from _remembering(document, whole)
    yield from check_names(document, ("collector",), whole.get("collector"), *_receivers(whole))
    yield from _tests(document, whole)
    yield from _purpose(document, whole)


def _purpose(document: Document, whole: dict[str, Any]) -> Iterator[Error]:
    """Packets go to tools, or become flow records."""
    if "flows" not in whole:
        if "tools" not in whole and ("tools",) not in document.broken:
            yield document.place(()), "", f"key 'tools' is missing, expected {Whole.model_fields['tools'].description}"
        elif whole.get("tools") == {}:
            yield error_at(document, ("tools",), "found an empty mapping, expected at least 1 entry")
    elif not whole.get("tools"):
        return
    if not whole.get("maps") and not whole.get("collector") and ("maps",) not in document.broken:
        yield document.place(("maps",)), "maps", "nothing would be delivered, expected maps or a collector"


def _inputs(document: Document, inputs: dict[str, Any]) -> Iterator[Error]:
    interfaces, listeners = [], []
    for name, value in inputs.items():
        if not isinstance(value, dict):
            continue
        path: Path = ("inputs", name)
        if value.get("kind") == "afpacket" and isinstance(value.get("interface"), Text):
            interfaces.append(((*path, "interface"), str(value["interface"])))
        if value.get("kind") == "pcap" and ("file" in value) == ("files" in value):
            found = "both file and files" if "file" in value else "neither file nor files"
            yield error_at(document, path, f"{found}, expected one of them")
        if value.get("kind") == "pcap" and isinstance(value.get("files"), list) and not value["files"]:
            yield error_at(document, (*path, "files"), "found an empty list, expected at least 1 entry")
        if value.get("kind") == "tunnel" and isinstance(value.get("listen"), Text):
            yield from _endpoint(document, path, value)
            port = value.get("port", UDP_PORTS.get(str(value["listen"]), 0))
            listen = f"UDP port {port}" if port else "gre"
            listeners.append(((*path, "listen"), " ".join([listen, *([f"on {value['address']}"] if "address" in value else [])])))
    yield from check_twice(document, "interface", iter(interfaces))
    yield from check_twice(document, "listener", iter(listeners))


_ONLY = {"port": ("vxlan", "geneve", "gre-udp"), "key": ("gre", "gre-udp"), "vni": ("vxlan", "geneve")}


def _endpoint(document: Document, path: Path, value: dict[str, Any]) -> Iterator[Error]:
    """A tunnel input: keys that its tunnel does not have, and nets of another family than its own address."""
    listen = str(value["listen"])
    for key, kinds in _ONLY.items():
        if key in value and listen not in kinds:
            at = (*path, key)
            yield (
                document.place(at, of_key=True),
                dotted(at),
                f"{listen} has no {key}, expected it with listen: {scalars.alternatives(kinds)}",
            )
    try:
        ours = ipaddress.ip_address(str(value.get("address")))
    except ValueError:
        return  # none, or told by its own check
    for at, net in listed((*path, "from"), value.get("from")):
        try:
            version = ipaddress.ip_network(net, strict=False).version
        except ValueError:
            continue
        if version != ours.version:
            yield error_at(document, at, f"IPv{version}, but address is IPv{ours.version}; expected nets of its family")


def _tools(document: Document, tools: dict[str, Any], inputs: dict[str, Any]) -> Iterator[Error]:
    listening: list[tuple[Path, str]] = []
    for name, value in tools.items():
        if not isinstance(value, dict):
            continue
        path: Path = ("tools", name)
        if "tunnel" in value:
            yield from _tunnel(document, (*path, "tunnel"), value["tunnel"])
            yield from _deaf(document, (*path, "tunnel", "interface"), mapping(value, "tunnel").get("interface"), inputs)
            yield from _health(document, (*path, "health"), value)
            continue
        yield from check_tool(document, path, value)
        if value.get("kind") == "interface" and isinstance(value.get("interface"), Text):
            yield from _captured(document, (*path, "interface"), value["interface"], inputs)
        if value.get("kind") == "stream" and isinstance(value.get("listen"), Text) and not value["listen"].endswith(":0"):
            listening.append(((*path, "listen"), str(value["listen"])))
    yield from check_twice(document, "address", iter(listening))


def _files(document: Document, whole: dict[str, Any]) -> Iterator[Error]:
    """One writer for each file, and none that is read."""
    found = (written_file(("tools", name), value) for name, value in mapping(whole, "tools").items() if isinstance(value, dict))
    written = [*(one for one in found if one), *written_by_exports(whole)]
    yield from check_twice(document, "file", iter(written))
    played = {
        os.path.normpath(file): path
        for name, value in mapping(whole, "inputs").items()
        if isinstance(value, dict)
        for key in ("file", "files")
        for path, file in listed(("inputs", name, key), value.get(key))
    }
    for path, file in written:
        if file in played:
            yield error_at(document, path, f"file '{file}' would be written while {dotted(played[file])} is read from it")


def _captured(document: Document, path: Path, interface: str, inputs: dict[str, Any]) -> Iterator[Error]:
    for name, value in inputs.items():
        if isinstance(value, dict) and value.get("kind") == "afpacket" and value.get("interface") == interface:
            text = f"inputs.{name} captures '{interface}': what is sent there may come in again, expected another interface"
            yield error_at(document, path, text)


def _deaf(document: Document, path: Path, interface: Any, inputs: dict[str, Any]) -> Iterator[Error]:
    for name, value in inputs.items():
        if (
            isinstance(value, dict)
            and isinstance(interface, Text)
            and value.get("interface") == interface
            and _is_true(value.get("dedicated"))
        ):
            yield error_at(document, path, f"inputs.{name} is dedicated to capture: no answer is heard there, expected another interface")


def _remembering(document: Document, whole: dict[str, Any]) -> Iterator[Error]:
    """What has to see all packets of a lane is not shared among workers."""
    workers = mapping(whole, "stages").get("encapsulate")
    if not isinstance(workers, Text) or workers == "1":
        return
    maps = whole.get("maps")
    parts: list[tuple[Path, Any]] = [(("tools", name), value) for name, value in mapping(whole, "tools").items()]
    parts += [(("maps", n), value) for n, value in enumerate(maps if isinstance(maps, list) else ())]
    for path, value in parts:
        for key in ("dedup", "limit"):
            if isinstance(value, dict) and key in value:
                text = f"it sees all packets of a lane, but stages.encapsulate is {workers}; expected 1, and more lanes (stages.capture)"
                yield document.place((*path, key), of_key=True), dotted((*path, key)), text


def _receivers(whole: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What packets can be delivered to, and what it is called."""
    groups = mapping(whole, "groups")
    return mapping(whole, "tools") | groups, "tool or group" if groups else "tool"


def _groups(document: Document, whole: dict[str, Any]) -> Iterator[Error]:
    tools = mapping(whole, "tools")
    for name, value in mapping(whole, "groups").items():
        path: Path = ("groups", name)
        if name in tools:
            yield document.place(path, of_key=True), dotted(path), f"'{name}' is the name of a tool too, expected another name"
        if not isinstance(value, dict):
            continue
        yield from check_names(document, (*path, "members"), value.get("members"), tools, "tool")
        members = {word for _, word in listed((), value.get("members"))}
        for member in mapping(value, "weights"):
            if member not in members:
                yield (
                    document.place((*path, "weights", member), of_key=True),
                    dotted((*path, "weights")),
                    f"'{member}' is no member of the group",
                )


def _tunnel(document: Document, path: Path, tunnel: Any) -> Iterator[Error]:
    if not isinstance(tunnel, dict):
        return
    addresses = {key: _version(tunnel.get(key)) for key in ("remote", "source")}
    remote, source = addresses["remote"], addresses["source"]
    if remote and source and remote != source:
        text = f"IPv{source}, but remote is IPv{remote}; expected addresses of one family"
        yield error_at(document, (*path, "source"), text)
    if remote == 4 and _is_true(tunnel.get("udp_checksum")) and "source" not in tunnel:
        yield error_at(document, (*path, "udp_checksum"), "over IPv4 it covers our address, expected key 'source' too, or false")
    if tunnel.get("kind") == "erspan3":
        yield from _erspan3(document, path, tunnel)


def _health(document: Document, path: Path, tool: dict[str, Any]) -> Iterator[Error]:
    health = mapping(tool, "health")
    kind = health.get("kind")
    if kind == "tcp" and "port" not in health:
        yield error_at(document, path, "key 'port' is missing, expected the TCP port to connect to")
    if kind in ("icmp", "neighbour") and "port" in health:
        at = (*path, "port")
        yield document.place(at, of_key=True), dotted(at), f"{kind} asks no port, expected none, or kind: tcp"


def _erspan3(document: Document, path: Path, tunnel: dict[str, Any]) -> Iterator[Error]:
    precise, index = tunnel.get("granularity") == "ieee1588", _number(tunnel.get("index"))
    if not _is_true(tunnel.get("subheader")):
        if precise:
            yield error_at(document, (*path, "granularity"), "its seconds are in the subheader, expected subheader: true too")
        if index:
            yield error_at(document, (*path, "index"), "it is in the subheader, expected subheader: true too")
    elif not precise and index > 0x3FFF:
        text = f"{index} is out of range, expected 0..16383 (0..65535 with granularity: ieee1588)"
        yield error_at(document, (*path, "index"), text)


def _version(address: Any) -> int:
    """Of IP; 0: missing, or told by its own check."""
    try:
        return ipaddress.ip_address(str(address)).version
    except ValueError:
        return 0


def _is_true(value: Any) -> bool:
    return isinstance(value, Text) and value.lower() == "true"


def _number(value: Any) -> int:
    """0 where it is none: its own check says so."""
    try:
        return scalars.integer(value, 0, 0xFFFF)
    except Wrong:
        return 0


def _sets(document: Document, sets: dict[str, Any]) -> Generator[Error, None, dict[str, Elements]]:
    """Gives the sets as far as they are right, so that what only uses them is not told as wrong."""
    good: dict[str, tuple[str, ...]] = {}
    for name, value in sets.items():
        entries = []
        for path, word in listed(("sets", name), value):
            try:
                entries.append(scalars.set_entry(word))
            except Wrong:
                continue
            kind, first = scalars.entry_kind(entries[-1]), scalars.entry_kind(entries[0])
            if kind != first:
                yield error_at(document, path, f"'{word}' among {first}, expected a set of one kind")
        good[name] = tuple(entries)
    return read_sets(good)


def _maps(document: Document, whole: dict[str, Any], sets: dict[str, Elements]) -> Iterator[Error]:
    maps = whole.get("maps")
    if not isinstance(maps, list):
        return
    names = ((("maps", n, "name"), str(m["name"])) for n, m in enumerate(maps) if isinstance(m, dict) and isinstance(m.get("name"), Text))
    yield from check_twice(document, "map name", names)
    for n, value in enumerate(maps):
        if not isinstance(value, dict):
            continue
        path: Path = ("maps", n)
        yield from check_names(document, (*path, "inputs"), value.get("inputs"), mapping(whole, "inputs"), "input")
        yield from check_names(document, (*path, "to"), value.get("to"), *_receivers(whole))
        rules = value.get("rules")
        for r, rule in enumerate(rules if isinstance(rules, list) else ()):
            for action in ("pass", "drop"):
                if isinstance(rule, dict) and isinstance(rule.get(action), Text):
                    yield from check_expression(document, (*path, "rules", r, action), str(rule[action]), sets)


def _tests(document: Document, whole: dict[str, Any]) -> Iterator[Error]:
    tests, maps = whole.get("tests"), whole.get("maps")
    named = {str(m["name"]): m for m in (maps if isinstance(maps, list) else ()) if isinstance(m, dict) and isinstance(m.get("name"), Text)}
    for n, value in enumerate(tests if isinstance(tests, list) else ()):
        if not isinstance(value, dict):
            continue
        path: Path = ("tests", n)
        yield from check_names(document, (*path, "delivers"), value.get("delivers"), *_receivers(whole))
        yield from check_names(document, (*path, "by"), value.get("by"), named, "map")
        if isinstance(fields := value.get("packet"), dict):
            yield from check_names(document, (*path, "packet", "input"), fields.get("input"), mapping(whole, "inputs"), "input")
            for wrong in packet.mistakes(fields):
                at = (*path, "packet", *wrong.at)
                yield document.place(at, of_key=wrong.key), dotted(at[:-1] if wrong.key else at), str(wrong)
