"""Who may do what while a broker runs: one process holds capabilities, and it outlives the supervisor as the data path does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from broker.core.shm import pipeline_directory
from broker.privileges import asking
from broker.supervisor.companions import MODULE as COMPANIONS
from broker.supervisor.opener import MODULE as OPENER
from broker.supervisor.processes import belongs, find
from stages import cache
from tests.cli.tapmesh import Broker, running, started, tapmesh, unique_name
from tests.live.test_veth import Receiver, Wires, send, wires  # noqa: F401 - a fixture
from tests.netns import needs_root
from tests.packets import udp_frame
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

CONFIG = """
inputs:
  span0: {kind: afpacket, interface: b0, promiscuous: true}
tools:
  ids: {tunnel: {kind: gre, remote: 10.99.0.2, sequence: true}}
maps:
  - {name: all, rules: [pass: udp], to: ids}
flows:
  exports: {lines: {kind: json, file: DIRECTORY/flows.json}}
"""
NET_RAW, NET_ADMIN = 1 << 13, 1 << 12
NOBODY = 65_534


def config_in(directory: Path) -> Path:
    path = directory / "c.yaml"
    path.write_text(CONFIG.replace("DIRECTORY", str(directory)))
    return path


def openers(name: str) -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and belongs(int(entry), name, OPENER)]


def status(pid: int) -> dict[str, str]:
    return dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def arrives(wires: Wires, receiver: Receiver, wanted: int) -> None:  # noqa: F811
    send(wires.a, "a0", [udp_frame("10.1.0.1", 1, "10.1.0.2", 53, bytes([n])) for n in range(20)])

    def arrived() -> bool:
        receiver.take()
        return len(receiver.numbers) == wanted

    until(arrived, f"{wanted} frames at the receiver")


def start(wires: Wires, directory: Path, stack: contextlib.ExitStack, name: str) -> Broker:  # noqa: F811
    with wires.b.inside():
        broker = stack.enter_context(running(config_in(directory), directory, name))
    until(lambda: broker.events("pipeline_up"), "all workers to be up")
    return broker


def test_only_the_opener_has_capabilities_and_every_process_is_in_its_role(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    with contextlib.ExitStack() as stack:
        broker = start(wires, tmp_path, stack, unique_name())
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        arrives(wires, receiver, 20)
        assert not broker.events("sandbox_missing")
        until(lambda: find(broker.name, COMPANIONS), "the exporter")
        (opener,) = openers(broker.name)
        workers = [int(pid) for lane in broker.pipeline().lanes for pid in lane.workers["pid"]]
        others = {broker.process.pid, *workers, *find(broker.name), *find(broker.name, COMPANIONS)}
        assert len(others) >= 8
        for pid in (opener, *others):
            found = status(pid)
            kept = NET_RAW | NET_ADMIN if pid == opener else 0
            masks = [int(found[f"Cap{which}"], 16) for which in ("Eff", "Prm", "Bnd")]
            assert masks == [kept] * 3, found["Name"]
            assert [int(found[f"Cap{which}"], 16) for which in ("Inh", "Amb")] == [0, 0]
            assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2"), found["Name"]
        directory = pipeline_directory(broker.name)
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {path.name: oct(path.stat().st_mode & 0o077) for path in directory.glob("lane-*")} == {"lane-0": "0o0"}
        assert broker.stop() == 0, broker.stderr
        until(lambda: not openers(broker.name), "the opener to end")


@pytest.fixture
def nobodys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of user nobody, with kernels that it may use."""
    again = "import subprocess, sys; subprocess.run([sys.executable, '-I', '-c', 'import broker.cli.main'], check=True)"
    asked = [sys.executable, "-I", "-c", again]
    if subprocess.run(["setpriv", "--reuid", str(NOBODY), "--clear-groups", *asked], capture_output=True, check=False).returncode:
        pytest.skip(f"user nobody cannot reach the interpreter of these tests ({sys.executable}) or what it imports")
    with tempfile.TemporaryDirectory(prefix="tapmesh-test-") as name:
        made = Path(name)
        shutil.copytree(cache.base_directory(), made / "cache")
        for path in (made, *made.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        monkeypatch.setenv("TAPMESH_CACHE_DIR", str(made / "cache"))
        yield made


def test_started_by_root_it_is_another_user_and_captures(wires: Wires, nobodys: Path, tmp_path: Path) -> None:  # noqa: F811
    config = config_in(nobodys)
    config.chmod(0o644)
    with contextlib.ExitStack() as stack:
        with wires.b.inside():
            broker = stack.enter_context(running(config, tmp_path, unique_name(), "--user", "nobody"))
        until(lambda: broker.events("pipeline_up") or broker.process.poll() is not None, "all workers to be up")
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        arrives(wires, receiver, 20)
        until(lambda: find(broker.name, COMPANIONS), "the exporter")
        processes = {broker.process.pid, *openers(broker.name), *find(broker.name), *find(broker.name, COMPANIONS)}
        assert len(processes) >= 4
        for pid in processes:
            found = status(pid)
            assert found["Uid"].split() == found["Gid"].split() == [str(NOBODY)] * 4, found["Name"]
            assert int(found["CapPrm"], 16) == (NET_RAW | NET_ADMIN if pid in openers(broker.name) else 0), found["Name"]
        assert (nobodys / "flows.json").stat().st_uid == NOBODY
        assert broker.stop() == 0, broker.stderr


@pytest.fixture
def interpreter(nobodys: Path) -> Path:
    """As in deploy/container: a copy of the interpreter that gives CAP_NET_RAW to whoever starts it."""
    if shutil.which("setcap") is None:
        pytest.skip("setcap is not installed (Debian: libcap2-bin)")
    environment = Path(sys.prefix)
    (nobodys / "bin").mkdir()
    shutil.copy(environment / "pyvenv.cfg", nobodys / "pyvenv.cfg")
    (nobodys / "lib").symlink_to(environment / "lib")
    made = Path(shutil.copy(Path(sys.executable).resolve(), nobodys / "bin" / "python3"))
    subprocess.run(["setcap", "cap_net_raw+ep", made], check=True)
    return made


def test_in_a_container_it_is_nobody_and_captures_with_net_raw_alone(
    wires: Wires,  # noqa: F811
    nobodys: Path,
    interpreter: Path,
    tmp_path: Path,
) -> None:
    config = config_in(nobodys)
    config.chmod(0o644)
    container = [
        "setpriv",
        "--reuid",
        str(NOBODY),
        "--regid",
        str(NOBODY),
        "--clear-groups",
        "--bounding-set=-all,+net_raw",
        "--inh-caps=-all",
    ]
    name = unique_name()
    with contextlib.ExitStack() as stack:
        with wires.b.inside():
            command = [*container, str(interpreter), "-I", "-m", "broker.cli.main"]
            broker = stack.enter_context(started(["run", "--config", config, "--name", name], name, tmp_path, command=command))
        until(lambda: broker.events("pipeline_up") or broker.process.poll() is not None, "all workers to be up")
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        arrives(wires, receiver, 20)
        (opener,) = openers(name)
        held = {pid: int(status(pid)["CapPrm"], 16) for pid in (broker.process.pid, opener, *find(name))}
        assert {pid: mask for pid, mask in held.items() if mask} == {opener: NET_RAW}
        assert broker.stop() == 0, broker.stderr


def test_a_user_that_is_not_there_is_told(tmp_path: Path) -> None:
    told = tapmesh("run", "--config", config_in(tmp_path), "--user", "no-such-user")
    assert (told.returncode, told.stderr) == (1, "--user no-such-user: there is no such user\n")


def test_without_a_supervisor_a_tool_is_opened_again_and_the_next_one_brings_an_opener(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    name = unique_name()
    with contextlib.ExitStack() as stack:
        first = start(wires, tmp_path, stack, name)
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        arrives(wires, receiver, 20)
        (old,) = openers(name)
        first.process.kill()
        first.process.wait()
        arrives(wires, receiver, 40)
        assert openers(name) == [old]
        second = start(wires, tmp_path, stack, name)
        until(lambda: len(openers(name)) == 1 and openers(name) != [old], "the old opener to end")
        second.wait_again("capture", second.kill("capture"))
        second.wait_again("send", second.kill("send"))
        arrives(wires, receiver, 60)
        assert second.stop() == 0, second.stderr


def test_an_opener_that_died_is_told_and_what_is_open_goes_on(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    with contextlib.ExitStack() as stack:
        broker = start(wires, tmp_path, stack, unique_name())
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        os.kill(*openers(broker.name), signal.SIGKILL)
        until(lambda: broker.events("opener_died"), "the supervisor to say so")
        arrives(wires, receiver, 20)
        assert broker.stop() == 0, broker.stderr


def test_an_opener_that_died_is_followed_by_one_that_keeps_what_it_kept(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    name = unique_name()
    with contextlib.ExitStack() as stack:
        first = start(wires, tmp_path, stack, name)
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        os.kill(*openers(name), signal.SIGKILL)
        until(lambda: first.events("opener_died"), "the supervisor to say so")
        first.process.kill()
        first.process.wait()
        second = start(wires, tmp_path, stack, name)
        until(lambda: kept_of(name) == {"capture-0"}, "the new opener to keep capture's socket")
        arrives(wires, receiver, 20)
        capture = second.kill("capture", number=signal.SIGSTOP)
        send(wires.a, "a0", [udp_frame("10.1.0.1", 1, "10.1.0.2", 53, bytes([n])) for n in range(20)])
        os.kill(capture, signal.SIGKILL)
        second.wait_again("capture", capture)
        arrives(wires, receiver, 60)
        assert second.stop() == 0, second.stderr
        assert second.ledger()["ledger"]["packets"]["received"] == 60


def kept_of(name: str) -> set[str]:
    """What the opener of the pipeline keeps."""
    try:
        asking.use(pipeline_directory(name))
        found = asking.all_kept()
    finally:
        asking.use(Path("/nowhere"))
    for kept in found:
        kept.socket.close()
    return {kept.name for kept in found}


def test_an_opener_that_hangs_is_told_until_it_answers(wires: Wires, tmp_path: Path) -> None:  # noqa: F811
    with contextlib.ExitStack() as stack:
        broker = start(wires, tmp_path, stack, unique_name())
        receiver = Receiver(wires.c, socket.AF_INET)
        stack.callback(receiver.socket.close)
        (opener,) = openers(broker.name)
        os.kill(opener, signal.SIGSTOP)
        until(lambda: broker.events("opener_hangs"), "the supervisor to say so")
        arrives(wires, receiver, 20)
        os.kill(opener, signal.SIGCONT)
        until(lambda: broker.events("opener_answers"), "word that it answers")
        assert not broker.events("opener_died")
        assert broker.stop() == 0, broker.stderr


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({"do": "none"}),
        msgpack.packb({"do": "open_socket"}),
        msgpack.packb({"do": "open_socket", "family": socket.AF_PACKET, "kind": socket.SOCK_RAW, "protocol": "x"}),
        msgpack.packb({"do": "open_socket", "family": socket.AF_NETLINK, "kind": socket.SOCK_RAW, "protocol": 0}),
        msgpack.packb({"do": "open_socket", "family": socket.AF_INET, "kind": socket.SOCK_RAW, "protocol": 255}),
        msgpack.packb({"do": "open_socket", "family": socket.AF_INET, "kind": 2, "protocol": 0, "send_buffer": 1 << 62}),
        msgpack.packb({"do": "open_tap", "name": 7}),
        msgpack.packb({"do": "dedicate", "name": "x" * 300}),
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_the_opener_refuses_what_it_does_not_know_and_lives(request_: bytes, opener: Path) -> None:
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.settimeout(10)
            asking.connect(str(opener))
            if request_:
                asking.send(request_)
            else:
                asking.shutdown(socket.SHUT_WR)
            raw, fds, _, _ = socket.recv_fds(asking, 4096, 1)
            assert not fds
            assert msgpack.unpackb(raw)["errno"] != 0


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One without a pipeline: the path of its socket."""
    path = tmp_path_factory.mktemp("o") / "s"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(8)
        process = subprocess.Popen([sys.executable, "-I", "-m", OPENER, "--pipeline", "t", "--keep", "13"], stdin=theirs)
        socket.send_fds(ours, [msgpack.packb({"path": str(path)})], [listener.fileno()])
        try:
            yield path
            assert process.poll() is None
        finally:
            ours.send(b"end")
            process.wait(30)
