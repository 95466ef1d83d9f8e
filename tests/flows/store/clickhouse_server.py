"""A real ClickHouse of the test's own, on loopback."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import until

NAME = "clickhouse.example"
"""In the certificate."""

_CONFIG = """<yandex>
<logger><level>warning</level><console>1</console></logger>
<http_port>{http}</http_port><https_port>{https}</https_port>
<openSSL><server><certificateFile>{place}/cert.pem</certificateFile><privateKeyFile>{place}/key.pem</privateKeyFile>
<verificationMode>none</verificationMode><loadDefaultCAFile>false</loadDefaultCAFile></server></openSSL>
<tcp_port>{tcp}</tcp_port><listen_host>127.0.0.1</listen_host>
<path>{place}/data/</path><tmp_path>{place}/tmp/</tmp_path>
<users_config>{place}/users.xml</users_config><default_profile>default</default_profile><default_database>default</default_database>
<mark_cache_size>5000000</mark_cache_size>
</yandex>"""
_USERS = """<yandex>
<profiles><default><max_memory_usage>500000000</max_memory_usage></default></profiles>
<users>
<default><password></password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota></default>
<tapmesh><password>it's secret</password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota></tapmesh>
</users>
<quotas><default/></quotas>
</yandex>"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Server:
    def __init__(self, place: Path) -> None:
        if shutil.which("clickhouse-server") is None:
            pytest.skip("clickhouse-server is not installed")
        self.place, self.port, self._tcp, https = place, free_port(), free_port(), free_port()
        self.url, self.tls_url, self.certificate = f"http://127.0.0.1:{self.port}", f"https://127.0.0.1:{https}", place / "cert.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tapmesh test"]
        command += ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", str(place / "key.pem"), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True)
        self.process: subprocess.Popen[bytes] | None = None
        (place / "users.xml").write_text(_USERS)
        (place / "config.xml").write_text(_CONFIG.format(http=self.port, https=https, tcp=self._tcp, place=place))

    def start(self) -> None:
        with (self.place / "log").open("ab") as log:
            command = ["clickhouse-server", f"--config-file={self.place}/config.xml"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.place)
        until(self._answers, f"clickhouse-server, see {self.place}/log")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.place / "log").read_text()
        with contextlib.suppress(OSError):
            return bool(self.ask("SELECT 1") == "1")
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ask(self, query: str) -> str:
        with urllib.request.urlopen(self.url, query.encode(), timeout=20) as answer:
            return str(answer.read().decode().strip())


@pytest.fixture
def clickhouse(tmp_path: Path) -> Iterator[Server]:
    place = tmp_path / "clickhouse"
    place.mkdir()
    server = Server(place)
    server.start()
    yield server
    server.kill()
