"""A configuration file as frozen values, or everything that is wrong with it."""

from __future__ import annotations

import os
from dataclasses import replace

from pydantic import ValidationError

from broker.config import flows, packet, schema, shaping, tools
from broker.config.checks import check
from broker.config.document import MAX_ERRORS, Document, Error, read_document
from broker.config.flow_files import check_secrets
from broker.config.lanes import MAX_SHAPED_BYTES, geometry, lanes
from broker.config.messages import told
from broker.config.slots import assign_slots
from broker.core.errors import ConfigErrors
from broker.core.model import (
    STDOUT,
    Config,
    Cpus,
    Input,
    Map,
    Place,
    PolicyTest,
    RingSizes,
    Rotation,
    Rule,
    Stages,
    Stream,
    Tool,
    Tunnel,
)

MOST_BYTES = 32 << 20
"""Of a configuration file; ten thousand rules take 1 MB."""


def load_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in the file `path`, slots assigned. ConfigErrors tells all its mistakes; that it cannot be read is one.

    Names of files in it are taken from the directory it lies in.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigErrors([(Place(name, 1, 1), "", f"is longer than {MOST_BYTES:,} bytes, which is no configuration")])
        text = content.decode()
    except OSError as error:
        raise ConfigErrors([(Place(name, 1, 1), "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        before = content[: error.start]
        place = Place(name, before.count(b"\n") + 1, len(before.rpartition(b"\n")[2].decode()) + 1)
        raise ConfigErrors([(place, "", f"byte 0x{content[error.start]:02x} is not UTF-8")]) from None
    return parse_config(text, name, os.path.dirname(os.path.abspath(name)))


def parse_config(text: str, file_name: str = "configuration", directory: str = "") -> Config:
    """The same of a text; `file_name` is for messages. Files are taken from `directory`; without it they stay as they are written."""
    document = read_document(text, file_name)
    errors: list[Error] = list(document.errors)
    whole = None
    if document.whole and document.value is None and not errors:
        errors.append((document.place(()), "", "the document is empty, expected a mapping with inputs, tools and maps"))
    elif document.whole:
        whole, found = _validated(document)
        said = {error[:2] for error in found}
        errors += found
        errors += (e for e in check(document) if (e[:2] not in said or not e[1]) and not document.is_broken(e[1]))
    if errors or whole is None:
        raise ConfigErrors(errors)
    config = assign_slots(_config(whole, document, directory))
    if (n_lanes := len(lanes(config))) > 1:
        text = f"standard output takes what one lane has, and there are {n_lanes}: expected stages.capture: 1 and one live input, or a file"
        errors += [(tool.place, f"tools.{tool.name}.file", text) for tool in config.tools if tool.file == STDOUT and tool.place]
    if (n_bytes := geometry(config, lanes(config)[0]).shaped_bytes) > MAX_SHAPED_BYTES:
        text = f"tools and maps that change bytes of packets need {n_bytes} bytes beside each block, expected at most {MAX_SHAPED_BYTES}"
        errors.append((document.place(("ring", "block_bytes")), "ring.block_bytes", f"{text}: smaller blocks, or fewer such tools"))
    if directory and config.flows:
        errors += check_secrets(config.flows, document)
    if errors:
        raise ConfigErrors(errors)
    return config


def _validated(document: Document) -> tuple[schema.Whole | None, list[Error]]:
    try:
        return schema.Whole.model_validate(document.value), []
    except ValidationError as error:
        found = [told(document, details) for details in error.errors(include_url=False)[:MAX_ERRORS]]
        return None, [e for e in found if e is not None]


def _config(whole: schema.Whole, document: Document, directory: str) -> Config:
    return Config(
        node=whole.node,
        inputs=tuple(_input(name, value, directory, _key(document, "inputs", name)) for name, value in whole.inputs.items()),
        tools=tuple(_tool(name, value, directory, _key(document, "tools", name)) for name, value in whole.tools.items()),
        groups=tuple(shaping.group(name, value, _key(document, "groups", name)) for name, value in whole.groups.items()),
        maps=tuple(_map(n, value, document) for n, value in enumerate(whole.maps)),
        sets={name: tuple(entries) for name, entries in whole.sets.items()},
        collector=tuple(whole.collector),
        stages=_stages(whole.stages),
        ring=RingSizes(**whole.ring.model_dump()),
        http=whole.http,
        drain_s=whole.drain_s,
        tests=tuple(_test(n, value, document, next(iter(whole.inputs))) for n, value in enumerate(whole.tests)),
        flows=flows.flows(whole.flows, document, directory) if whole.flows else None,
        set_places={name: _key(document, "sets", name) for name in whole.sets},
    )


def _stages(part: schema.StagesPart) -> Stages:
    workers = part.model_dump()
    return Stages(**workers | {"cpus": Cpus(**{kind: tuple(cpus) for kind, cpus in workers["cpus"].items()})})


def _key(document: Document, *path: str) -> Place:
    return document.place(path, of_key=True)


def _input(name: str, value: schema.AfPacketInput | schema.PcapInput | schema.TunnelInput, directory: str, place: Place) -> Input:
    if isinstance(value, schema.AfPacketInput):
        return Input(name, **value.model_dump(), place=place)
    if isinstance(value, schema.TunnelInput):
        port = value.port or schema.LISTEN_PORTS[value.listen]
        return Input(name, **value.model_dump(exclude={"senders", "port"}), senders=tuple(value.senders), port=port, place=place)
    files = value.files or [str(value.file)]
    return Input(name, "pcap", files=tuple(os.path.join(directory, file) for file in files), pace=value.pace, place=place)


def _tool(
    name: str, value: schema.TunnelTool | tools.FileTool | tools.InterfaceTool | tools.StreamTool, directory: str, place: Place
) -> Tool:
    made = Tool(name, shape=shaping.shape(value), super_frames=value.super_frames, segment_bytes=value.segment_bytes, place=place)
    if isinstance(value, schema.TunnelTool):
        health = shaping.health(value.health)
        tunnel = Tunnel(**value.tunnel.model_dump())
        copied = {key: getattr(value, key) for key in ("receiver", "oversize", "mtu_bytes", "backend")}
        return replace(made, tunnel=tunnel, health=health, **copied)
    if isinstance(value, tools.InterfaceTool):
        return replace(made, interface=value.interface, qdisc_bypass=value.qdisc_bypass)
    if isinstance(value, tools.StreamTool):
        stream = Stream(value.connect or "", value.listen or "", value.buffer_bytes, tools.tls(value.tls, directory) if value.tls else None)
        return replace(made, format=value.format, stream=stream)
    if value.rotate_bytes or value.rotate_s:
        into = os.path.join(directory, str(value.directory))
        rotation = Rotation(into, value.rotate_bytes or 0, value.rotate_s or 0, value.keep_files or 0, value.compress or "none")
        return replace(made, format=value.kind, rotation=rotation)
    file = value.file or os.path.join(str(value.directory), f"{name}.{value.kind}")
    return replace(made, file=file if file == STDOUT else os.path.join(directory, file), format=value.kind)


def _map(number: int, value: schema.MapPart, document: Document) -> Map:
    rules = []
    for r, rule in enumerate(value.rules):
        action = "pass" if "pass" in rule else "drop"
        place = document.inside(("maps", number, "rules", r, action), 0)
        rules.append(Rule("pass" if action == "pass" else "drop", rule[action], place))
    place = document.place(("maps", number))
    return Map(value.name, tuple(rules), tuple(value.to), tuple(value.inputs), value.undetermined, shape=shaping.shape(value), place=place)


def _test(number: int, value: schema.TestPart, document: Document, first_input: str) -> PolicyTest:
    made = packet.build(value.packet)
    return PolicyTest(
        packet=packet.fields_text(value.packet),
        frame=made.frame,
        wirelen=made.wirelen,
        input=made.input or first_input,
        delivers=tuple(value.delivers),
        by=None if value.by is None else tuple(value.by),
        name=value.name,
        place=document.place(("tests", number)),
    )
