"""What comes from another process, from a file or over the network has a bound, and a refusal in words for what is no message."""

from __future__ import annotations

import ast
import contextlib
import errno
import math
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.core import log, messages
from broker.core.errors import PipelineError
from broker.core.messages import MessageError
from broker.core.model import Config, Tool, Tunnel
from broker.core.rule_counts import COUNTS
from broker.privileges import asking, opener
from broker.privileges.kept import Kept
from broker.supervisor import generation, hostlink, http, numbers, rule_counts
from broker.supervisor.hostlink import HostError, HostLink
from broker.supervisor.http import HttpServer
from broker.supervisor.processes import Process
from stages.host import Host
from stages.send.connection import _CHUNK, _CHUNKS, Connection

ROOT = Path(__file__).resolve().parents[2]

# ---- nothing that makes code of data


FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "joblib",
    "imp",
    "xmlrpc",
    "code",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {
    "load",
    "load_all",
    "full_load",
    "full_load_all",
    "unsafe_load",
    "unsafe_load_all",
    "Loader",
    "FullLoader",
    "UnsafeLoader",
    "CLoader",
}


def dangerous(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: imports {name}" for name in names if name.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            yield f"{node.lineno}: {node.id}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id == "yaml" and node.attr in LOADERS) or (node.value.id == "np" and node.attr in ("load", "fromfile")):
                yield f"{node.lineno}: {node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            yield f"{node.value.lineno}: shell="
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield f"{node.value.lineno}: allow_pickle="


def test_nothing_is_unpickled_evaluated_or_loaded_as_objects() -> None:
    sources = [path for part in ("broker", "stages") for path in sorted((ROOT / part).rglob("*.py"))]
    assert len(sources) > 250
    assert [f"{path.relative_to(ROOT)}:{what}" for path in sources for what in dangerous(ast.parse(path.read_text()))] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "import yaml\nyaml.load('', yaml.Loader)",
        "np.load('x')",
        "run('ls', shell=True)",
    ],
)
def test_what_would_be_dangerous_is_found(text: str) -> None:
    assert list(dangerous(ast.parse(text)))


def test_msgpack_is_read_in_one_place_and_where_a_stream_is_bounded() -> None:
    """`messages`; the judge's two ends; and the header of a segment, whose length and checksum are looked at before."""
    found = set()
    for path in (path for part in ("broker", "stages") for path in (ROOT / part).rglob("*.py")):
        text = path.read_text()
        if "unpackb(" in text or "Unpacker(" in text:
            found.add(str(path.relative_to(ROOT)))
            assert text.count("Unpacker(") == text.count("max_buffer_size="), path
    assert found == {"broker/core/messages.py", "broker/supervisor/judge.py", "broker/flows/segments.py", "stages/judge/process.py"}


# ---- messages

NONSENSE = (
    b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xffx",
    b"\x91" * 5000, b"\x81",
    msgpack.packb(1), msgpack.packb([]), msgpack.packb("event"), msgpack.packb({1: 2}), msgpack.packb({"do": 1}), msgpack.packb({"do": []}),
    msgpack.packb({"event": "x"}), msgpack.packb({"event": []}), msgpack.packb({"event": "exited", "pid": "1"}), msgpack.packb({"ok": 1}),
    msgpack.packb({"do": "start", "lane": math.inf, "kind": "send", "worker": 0}), msgpack.packb({"do": "start", "lane": 1 << 40}),
    msgpack.packb({"do": "start", "lane": 0, "kind": "x" * 60_000, "worker": 0}), msgpack.packb({"do": "x" * 60_000}), os.urandom(200),
    msgpack.packb(msgpack.ExtType(5, b"x")), b"\xd7\xff" + bytes(8),
)  # fmt: skip


def test_a_message_takes_no_more_memory_than_its_bytes_allow() -> None:
    tracemalloc.start()
    for raw in NONSENSE:
        with contextlib.suppress(MessageError):
            messages.unpack(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("raw", NONSENSE)
def test_a_host_that_talks_nonsense_is_given_up_in_words(raw: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = HostLink(Process(os.getpid()), None, ours)
    theirs.send(raw)
    with capture_logs() as logs:
        assert link.events() == []
    assert not link.connected
    assert [entry["event"] for entry in logs] == (["host_not_understood"] if raw else [])
    with pytest.raises(HostError):
        link.request(do="list")
    link.close()
    theirs.close()


@pytest.mark.parametrize("raw", [raw for raw in NONSENSE if raw])
def test_a_host_that_is_asked_nonsense_refuses_and_lives(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host("fuzz")
    host._client, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(Host, "_fork", lambda *_: 1)
    theirs.send(raw)
    host._hear()
    answer = msgpack.unpackb(theirs.recv(hostlink.MESSAGE_BYTES))
    assert (answer["ok"], bool(answer["reason"])) == (False, True)
    theirs.close()
    host._hang_up()


@pytest.mark.parametrize("raw", NONSENSE)
def test_an_opener_that_is_asked_nonsense_refuses_and_lives(raw: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(raw)
    opener.answer(ours, Kept())
    assert msgpack.unpackb(theirs.recv(4096)) == {"errno": errno.EINVAL}
    ours.close()
    theirs.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


NO_NAMES = ("", ".", "..", "a/b", "a" * 16, "aaaaaaaaaaaaaaa/../../x", "a\0b", "a b", "a:1", 5, None, ["a"])


@pytest.mark.parametrize("order", ["open_tap", "dedicate", "release"])
@pytest.mark.parametrize("name", NO_NAMES)
def test_an_opener_takes_no_name_that_no_interface_can_have(order: str, name: Any) -> None:
    """It becomes part of a path in /proc/sys, and each refusal had left a descriptor behind."""
    before = descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(msgpack.packb({"do": order, "name": name}))
    opener.answer(ours, Kept())
    raw, fds, _, _ = socket.recv_fds(theirs, 4096, 1)
    assert msgpack.unpackb(raw)["errno"] == (errno.ENODEV if isinstance(name, str) else errno.EINVAL)
    assert fds == []
    ours.close()
    theirs.close()
    assert descriptors() == before


@pytest.mark.parametrize(
    "arguments", [{"family": 1 << 70}, {"kind": "x"}, {"send_buffer": 1 << 70}, {"send_buffer": "x"}, {"receive_buffer": []}]
)
def test_an_opener_leaves_no_descriptor_behind_of_a_socket_that_it_cannot_make(arguments: dict[str, Any]) -> None:
    before = descriptors()
    for _ in range(3):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wanted = {"family": int(socket.AF_INET), "kind": int(socket.SOCK_DGRAM), "protocol": 0}
        theirs.send(
            msgpack.packb({"do": "open_socket", **wanted, **arguments}) if max(map(_size, arguments.values())) < 1 << 64 else b"\xc1"
        )
        opener.answer(ours, Kept())
        assert msgpack.unpackb(theirs.recv(4096))["errno"] != 0
        ours.close()
        theirs.close()
    assert descriptors() == before


def _size(value: Any) -> int:
    return value if isinstance(value, int) else 0


def test_an_opener_that_answers_nonsense_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "opener.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(1)
    monkeypatch.setattr(asking, "_place", path)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.send(b"\xc1")
        connection.close()

    serving = threading.Thread(target=serve)
    serving.start()
    with pytest.raises(OSError, match="Protocol error") as caught:
        asking.open_tap("tap0")
    assert caught.value.errno == errno.EPROTO
    serving.join()
    listener.close()


# ---- files of a pipeline


def test_a_file_that_grows_without_end_is_not_read_without_end(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="/dev/zero: more than 1,000 bytes: damaged"):
        messages.read_file(Path("/dev/zero"), 1000)
    with pytest.raises(PipelineError, match="cannot be read"):
        messages.read_file(tmp_path)


@pytest.mark.parametrize(
    "content", [*NONSENSE, msgpack.packb({"inputs": {}, "tools": {}}), msgpack.packb({"inputs": {1: 1}, "tools": {}, "maps": {}})]
)
def test_slots_that_are_damaged_are_told_with_their_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "slots").write_bytes(content)
    with pytest.raises(PipelineError, match="slots: damaged: "):
        generation.read_slots(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *NONSENSE,
        msgpack.packb([1, [["m", "pass", "x", 1]]]),
        msgpack.packb([1, [["m"]]]),
        msgpack.packb([1, [["m", "p", "x", *["y"] * len(COUNTS)]]]),
    ],
)
def test_counts_that_are_damaged_are_told_with_their_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rules-carried").write_bytes(content)
    with pytest.raises(PipelineError, match="rules-carried: damaged: "):
        rule_counts.read_carried(tmp_path)


@pytest.mark.parametrize("content", [*NONSENSE[:9], msgpack.packb({"ids": []}), msgpack.packb({"ids": 1 << 63}), bytes(1 << 17)])
def test_numbers_that_are_damaged_are_told_and_not_believed(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(content)
    monkeypatch.setattr(numbers, "numbers_path", lambda _: path)
    tool = Tool("ids", 0, Tunnel("gre", "192.0.2.9", sequence=True))

    class Dummy:
        name = "x"
        tool_sequence = np.zeros(64, np.int64)

    with capture_logs() as logs:
        numbers.restore(Dummy(), Config("n", (), (tool,), ()), log.get())  # type: ignore[arg-type]
    assert [entry["event"] for entry in logs] == ["numbers_lost"]


# ---- HTTP


@pytest.fixture
def server() -> Iterator[HttpServer]:
    made = HttpServer("127.0.0.1:0", lambda: "x 1\n", list, list)
    made.start()
    yield made
    made.close()


def dial(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def answer_of(connection: socket.socket) -> bytes:
    content = b""
    try:
        while part := connection.recv(65_536):
            content += part
    except ConnectionResetError:
        pass
    return content


def hung_up(connection: socket.socket, pieces: Iterable[bytes], wait_s: float) -> bool:
    """While they are sent, one every `wait_s`: a client's own pace, which is what is tested."""
    try:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(wait_s)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("piece", [b"x" * 1000, b"A: " + b"y" * 4000 + b"\r\n"])
def test_a_request_without_end_is_hung_up_on(server: HttpServer, piece: bytes) -> None:
    with dial(server) as connection:
        assert hung_up(connection, [b"GET /metrics HTTP/1.0\r\n", *[piece] * 1000], 0.001)


def test_who_sends_a_byte_now_and_then_holds_a_place_for_seconds_only(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.3)
    begun = time.monotonic()
    with dial(server) as connection:
        assert hung_up(connection, (bytes([byte]) for byte in b"GET /metrics HTTP/1.0\r\n" + b"x" * 1000), 0.02)
    assert time.monotonic() - begun < 5


def test_so_many_clients_are_answered_at_once_and_not_more(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 60.0)
    silent = [dial(server) for _ in range(http.CONNECTIONS)]
    with dial(server) as refused:
        assert answer_of(refused) == b""
    silent[0].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert answer_of(silent[0]).endswith(b"x 1\n")
    silent.pop(0).close()
    for one in silent:
        one.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with dial(server) as again:
            again.sendall(b"HEAD /healthz HTTP/1.1\nHost: x\n\n")
            if answer_of(again).startswith(b"HTTP/1.0 200"):
                return
    pytest.fail("their places were not given back")


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\xff\xfe / HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.0\r\n\r\nx",
        b"GET /%00 HTTP/1.0\r\n\r\n",
    ],
)
def test_odd_requests_are_answered_or_hung_up_on(server: HttpServer, request_: bytes) -> None:
    with dial(server) as connection:
        connection.sendall(request_)
        answer_of(connection)
    with dial(server) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert answer_of(connection).endswith(b"x 1\n")


# ---- who talks to a tool that only listens to itself


def test_a_reader_that_never_stops_talking_is_read_a_little_at_a_time() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    class Endless:
        n = 0

        def recv(self, n_bytes: int) -> bytes:
            self.n += 1
            assert self.n <= _CHUNKS
            return bytes(min(n_bytes, _CHUNK))

    connection = Connection.__new__(Connection)
    connection.socket, connection._tls = Endless(), None  # type: ignore[assignment]
    connection._read()
    ours.close()
    theirs.close()
