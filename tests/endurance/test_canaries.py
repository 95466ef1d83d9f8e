"""Secrets that are planted wherever one is named, or is put by mistake, and searched for in all that others get to see."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import resource
import secrets
import signal
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.core.shm import pipeline_directory
from broker.privileges.opener import main as _opener
from broker.supervisor import prepare
from broker.supervisor.numbers import numbers_path
from broker.supervisor.processes import find
from tests.certificates import make_certificate
from tests.cli.tapmesh import COMMAND, Broker, tapmesh, unique_name
from tests.flows.store.clickhouse_server import free_port
from tests.waiting import until

pytest.importorskip("cryptography")

MODULES = ("stages", "broker.flows", _opener.__module__)

CONFIG = """
node: here
http: 127.0.0.1:{http}
inputs:
  remote: {{kind: tunnel, listen: gre-udp, address: 127.0.0.1, port: {port}, from: 127.0.0.1}}
tools:
  reader: {{kind: stream, connect: 127.0.0.1:{nobody}, tls: {{cert: client.pem, key: client.key, ca: client.pem}}}}
maps:
  - {{name: all, rules: [pass: {expression}], to: reader}}
flows:
  anonymise: {{key_file: addresses.key}}
  exports: {{far: {{kind: json, to: "tls://127.0.0.1:{nobody}", tls: {{cert: client.pem, key: client.key}}}}}}
  store: {{kind: clickhouse, url: "http://127.0.0.1:{nobody}", user: u, password_file: password, directory: spool}}
"""
MISTAKES = {
    "key_file: addresses.key": ("key_file: {key}", "{{key_file: addresses.key}}: {key}"),
    "password_file: password": ("password_file: {password}", "password: {password}"),
    'url: "http://': ('url: "http://u:{password}@',),
    'to: "tls://': ('to: "tls://u:{password}@',),
    "anonymise: {key_file: addresses.key}": ("anonymise: {key}",),
    "key: client.key, ca": ('key: "-----BEGIN PRIVATE KEY-----{password}", ca',),
    "http: ": ("http: u:{password}@",),
}


@dataclass
class Planted:
    directory: Path
    key: str
    password: str
    needles: dict[str, bytes]
    ports: dict[str, int]

    def write(self, expression: str = "udp", old: str = "", new: str = "") -> Path:
        path = self.directory / "c.yaml"
        text = CONFIG.format(**self.ports, expression=expression)
        assert old in text
        path.write_text(text.replace(old, new, 1) if old else text)
        return path

    def searched(self, what: str, content: bytes | str) -> None:
        found = content.encode() if isinstance(content, str) else content
        assert [name for name, needle in self.needles.items() if needle in found] == [], what


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    key, password = secrets.token_hex(32), "Canary" + secrets.token_hex(12)
    (tmp_path / "addresses.key").write_text(key)
    (tmp_path / "password").write_text(password + "\n")
    make_certificate(tmp_path / "client.pem")
    (tmp_path / "client.pem").write_text((tmp_path / "client.pem").read_text().partition("-----BEGIN PRIVATE")[0])
    for name in ("addresses.key", "password", "client.key"):
        (tmp_path / name).chmod(0o600)
    private = "".join((tmp_path / "client.key").read_text().splitlines()[1:-1])
    needles = {
        "key": key.encode(),
        "raw key": bytes.fromhex(key),
        "AES key": bytes.fromhex(key)[:16],
        "part of the key": key[:24].encode(),  # words that are found are shown cut
        "password": password.encode(),
        "private key": private[40:90].encode(),
        "raw private key": base64.b64decode(private)[36:68],  # the number itself, RFC 5915
    }
    return Planted(tmp_path, key, password, needles, {"http": free_port(), "port": free_port(), "nobody": free_port()})


@contextlib.contextmanager
def running(planted: Planted) -> Iterator[Broker]:
    """In the directory, where core files would go, with no limit to their size."""
    name, log = unique_name(), planted.directory / "log"
    words = [*COMMAND, "run", "--config", str(planted.write()), "--name", name]

    def no_limit() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    with log.open("w") as told, (planted.directory / "out").open("w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=told, text=True, cwd=planted.directory, preexec_fn=no_limit)
    try:
        yield Broker(name, process, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        prepare.clear(name)
        pipeline_directory(name).with_name(f"tapmesh-{name}.lock").unlink(missing_ok=True)
        numbers_path(name).unlink(missing_ok=True)


def pids(broker: Broker) -> list[int]:
    return [broker.process.pid, *(pid for module in MODULES for pid in find(broker.name, module))]


def get(planted: Planted, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{planted.ports['http']}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def in_memory(pid: int, needle: bytes) -> bool:
    """In what it may write to and has for itself: what a core file has if nobody forbids it."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            if " rw-p " in line:
                with contextlib.suppress(OSError):
                    memory.seek(begin)
                    if needle in memory.read(end - begin):
                        return True
    return False


def test_no_secret_is_seen_by_others(planted: Planted) -> None:
    with running(planted) as broker:
        broker.wait_up()
        until(lambda: broker.events("export_lost"), "the exporter to be refused")
        (exporter,) = [pid for pid, kind in find(broker.name, "broker.flows").items() if kind == "export"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"\x00" * 60, ("127.0.0.1", planted.ports["port"]))

        # A reload that is taken, one that is not, and one with a secret in a wrong place.
        old = planted.write()
        before = old.read_text()
        new = planted.directory / "new.yaml"
        new.write_text(planted.write("tcp").read_text())
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: broker.events("reloaded"), "a reload")
        for n, (written, mistaken) in enumerate([(o, m) for o, all_of_them in MISTAKES.items() for m in all_of_them]):
            planted.write("tcp", written, mistaken.replace("{key}", planted.key).replace("{password}", planted.password))
            told = tapmesh("check", planted.directory / "c.yaml")
            refused = told.returncode != 0
            planted.searched(f"check: {mistaken}", told.stdout + told.stderr)
            seen = len(broker.events("reload_refused"))
            if refused and n % 3 == 0:
                broker.process.send_signal(signal.SIGHUP)
                until(lambda seen=seen: len(broker.events("reload_refused")) > seen, "a refusal")  # type: ignore[misc]
        old.write_text(before)
        compared = tapmesh("diff", old, new)
        assert compared.returncode == 1, compared.stderr
        planted.searched("diff", compared.stdout + compared.stderr)

        status = tapmesh("status", "--name", broker.name, "--json")
        json.loads(status.stdout)
        planted.searched("status", status.stdout + status.stderr)
        for path in ("/metrics", "/healthz", "/readyz"):
            planted.searched(path, get(planted, path))

        everybody = pids(broker)
        assert len(everybody) >= 8
        for pid in everybody:
            for what in ("cmdline", "environ", "comm", "status"):
                planted.searched(f"{what} of {pid}", Path(f"/proc/{pid}/{what}").read_bytes())
            dumped = Path(f"/proc/{pid}/coredump_filter").read_text().strip()
            assert int(dumped, 16) == 0 or "opener" in Path(f"/proc/{pid}/cmdline").read_text()  # which no dump is made of at all
        assert stat.S_IMODE(pipeline_directory(broker.name).stat().st_mode) == 0o700
        for path in pipeline_directory(broker.name).iterdir():
            if path.is_file():
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
                planted.searched(path.name, path.read_bytes())

        assert in_memory(exporter, planted.needles["AES key"])  # so a core file of it would show the key
        os.kill(exporter, signal.SIGSEGV)
        until(lambda: broker.events("companion_died"), "the exporter to die")
        broker.kill("send", number=signal.SIGSEGV)
        until(lambda: broker.events("worker_died"), "a worker to die")
        broker.stop()
    for path in planted.directory.rglob("*"):
        if path.is_file() and path.name not in ("addresses.key", "password", "client.key", "c.yaml", "new.yaml"):
            planted.searched(path.name, path.read_bytes())
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if re.fullmatch(r"core[.%a-z]*", pattern) and resource.getrlimit(resource.RLIMIT_CORE)[1]:
        assert list(planted.directory.glob("core*")), "no core file was searched"
