"""What is fuzzed: for each surface a function that takes any bytes and raises only where something is wrong with us, and where to begin.

| target | what must hold of any bytes |
|---|---|
| files | read as a capture: refused in words, or every packet given is counted |
| language | as an expression: refused in words; else it compiles, and selects what libpcap selects, if libpcap takes it |
| records | as an expression on flow records: SQL, or refused in words |
| packet | as fields of a packet: bytes, or refused in words |
| configuration | as YAML: refused with places, or it survives the way to the workers |
| messages | said to the stage host, the opener and the supervisor: understood or refused |
| pipeline | in the files that processes of a pipeline leave for each other: understood or refused in words |
| segment | as a segment of the spool: understood or refused in words |
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import msgpack
import numpy as np

from broker.config import parse_config
from broker.config.packet import build
from broker.config.packet.text import parse_fields
from broker.config.policy import PolicyError, compile_policy, parse_expression
from broker.config.policy.image import check_image
from broker.config.records.expression import where
from broker.core.errors import ConfigErrors, PipelineError, TapmeshError
from broker.core.layout import Geometry
from broker.core.messages import MessageError
from broker.core.model_codec import from_bytes, to_bytes
from broker.flows import segments
from broker.privileges import opener, orders
from broker.privileges.kept import Kept
from broker.supervisor import generation, hostlink, rule_counts
from stages.capture.errors import REPORT, SourceError
from stages.host import Host
from tests import libpcap
from tests.config.mistakes import BASE
from tests.config.policy.test_mutations import _OURS, mutated
from tests.endurance import mutated_files
from tests.stages.capture.support import Worker, files
from tests.stages.filter import traffic
from tests.stages.filter.expressions import EXPRESSIONS, RARE
from tests.stages.filter.judging import one_map_each
from tests.stages.filter.test_libpcap import differences

Run = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    seeds: Callable[[], Iterable[bytes]]
    run: Run
    changed: Callable[[random.Random, list[bytes]], bytes] | None = None
    """Where bytes changed at random would seldom be more than wrong in their first letters."""


_scratch = tempfile.TemporaryDirectory(prefix="tapmesh-fuzz-")
_HERE = Path(_scratch.name)
_GEOMETRY = Geometry(max_packets=64, max_frames=1, header_bytes=64)


def read_file(data: bytes) -> None:
    path = _HERE / "capture"
    path.write_bytes(data)
    (_HERE / REPORT).unlink(missing_ok=True)
    worker = Worker(_HERE, files(path), geometry=_GEOMETRY)
    with contextlib.suppress(SourceError):
        worker.start().run()
    assert worker.count("captured_packets") == len(worker.records)
    assert not worker.report or f"{path}: byte " in worker.report


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


_FRAMES = traffic.some(40, seed=8)


def language(data: bytes) -> None:
    text = _text(data)
    with contextlib.suppress(PolicyError):
        parse_expression(text, {})
        compile_policy(one_map_each((text,)))
        if text.isascii() and not _OURS.search(text) and _libpcap_takes(text):
            assert differences((text,), _FRAMES, lenient=True) == []


def _libpcap_takes(text: str) -> bool:
    with contextlib.suppress(libpcap.RefusedError):
        libpcap.Filter(text)
        libpcap.Filter(text, optimize=False)
        return True
    return False


def records(data: bytes) -> None:
    with contextlib.suppress(PolicyError):
        assert where(_text(data), {})


def packet(data: bytes) -> None:
    with contextlib.suppress(TapmeshError):
        build(parse_fields(_text(data)))


def configuration(data: bytes) -> None:
    try:
        config = parse_config(_text(data), "fuzz.yaml")
    except ConfigErrors as error:
        told = error.errors
    else:
        assert from_bytes(to_bytes(config)) == config
        return
    assert told
    assert all(words for _, _, words in told)
    assert all(place.file == "fuzz.yaml" and place.line >= 1 and place.column >= 1 for place, _, _ in told if place)


def messages(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        hostlink._understood(data)
    host = Host("fuzz")
    host._client, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    harmless = {
        "open_socket": orders.open_socket,
        "open_tap": orders._check_name,
        "dedicate": orders._check_name,
        "release": orders._check_name,
    }
    with theirs, ours, other, mock.patch.object(Host, "_fork", return_value=1), mock.patch.dict(opener._ORDERS, harmless):  # type: ignore[arg-type]
        with mock.patch.object(opener, "_MAKES", ("open_socket", "find")):
            theirs.send(data[:4096])
            host._hear()
            other.send(data[:4096])
            opener.answer(ours, Kept())
            answer = msgpack.unpackb(other.recv(4096))
            assert isinstance(answer["errno"], int)
        host._hang_up()


def pipeline(data: bytes) -> None:
    for name in ("slots", "rules-carried"):
        (_HERE / name).write_bytes(data)
    for read in (lambda: generation.read_slots(_HERE), lambda: rule_counts.read_carried(_HERE), lambda: from_bytes(data)):
        with contextlib.suppress(PipelineError):
            read()
    assert isinstance(check_image(np.frombuffer(data or b"\0", np.uint8)), str)


def segment(data: bytes) -> None:
    path = _HERE / "segment"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(segments.SegmentError):
            segments.read_header(fd)
    finally:
        os.close(fd)


def _said() -> list[bytes]:
    started = {"do": "start", "lane": 0, "kind": "send", "worker": 0}
    opened = {"do": "open_socket", "family": 2, "kind": 2, "protocol": 0, "send_buffer": 1 << 20}
    names = [{"do": do, "name": "eth0"} for do in ("open_tap", "dedicate", "release")]
    told = [{"event": "ready"}, {"event": "progress", "text": "x"}, {"event": "exited", "pid": 7, "status": -9}, {"ok": True, "pid": 8}]
    return [msgpack.packb(one) for one in (started, {"do": "list"}, {"do": "quit"}, {"do": "quit", "force": True}, opened, *names, *told)]


def _left() -> list[bytes]:
    config = parse_config(BASE.partition("tests:")[0])
    slots = {"inputs": {"span0": 0}, "tools": {"ids": 0}, "maps": {"m": 0}}
    image = compile_policy(one_map_each(("tcp port 80", "net 10")))
    return [to_bytes(config), msgpack.packb(slots), msgpack.packb([2, [["m", "pass", "tcp", 1, 60, 0]]]), image[:4096], image]


def _segment() -> list[bytes]:
    return [segments.header_bytes(segments.Header(kind, "node", 7, {0: "span0"})) for kind in segments.KINDS]


_FIELDS = (
    b"ip.src=10.1.0.5 tcp.dst=443 tcp.flags=syn,ack",
    b"vxlan.vni=5 inner=(ip.dst=10.0.0.1)",
    b"{ip.src: 10.1.0.5, vlan.id: [1, 2]}",
    b"hex=0200",
    b'ipv6.src=fe80::1 icmpv6=true ipv6.hopopts=true payload="a b"',
    b"length=100 cut=60 erspan.version=1 inner=(arp.opcode=1)",
)
_ON_RECORDS = (
    b"tcp port 443 and src net 10.0.0.0/8",
    b"bytes > 1MB and packets < 10",
    b'name "example.org"',
    b"vlan 5 or tunnel vxlan",
    b"tcp flags syn",
    b"not (host 10.0.0.1 or port {80, 443})",
    b"input span0",
    b"rtt > 10ms",
)

TARGETS: dict[str, Target] = {
    "files": Target(lambda: mutated_files.sources()[:300], read_file),
    "language": Target(
        lambda: [text.encode() for text in (*EXPRESSIONS, *RARE)[::8]],
        language,
        lambda chosen, _: mutated(chosen).encode(errors="surrogateescape"),
    ),
    "records": Target(lambda: _ON_RECORDS, records),
    "packet": Target(lambda: _FIELDS, packet),
    "configuration": Target(lambda: [BASE.encode(), BASE.partition("tests:")[0].encode()], configuration),
    "messages": Target(_said, messages),
    "pipeline": Target(_left, pipeline),
    "segment": Target(_segment, segment),
}
