"""/metrics, /healthz and /readyz on one address, in threads of the supervisor. Knows nothing but three functions that it asks.

| path | 200 | 503 |
|---|---|---|
| /metrics | always | |
| /healthz | the data path is alive | in words, what is not |
| /readyz | every worker has come up and nobody is stopping us | in words, what is missing |

Whoever reaches the address may ask, so a request is bounded: its bytes, the time it takes to come, and how many are answered at once.
Who wants more is hung up on.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from broker.core.errors import TapmeshError
from broker.supervisor.exposition import CONTENT_TYPE

REQUEST_BYTES = 16_384
REQUEST_S = 5.0
ANSWER_S = 10.0  # so long it is waited for who does not read the answer
CONNECTIONS = 16

Complaints = Callable[[], list[str]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], family: int, metrics: Callable[[], str], health: Complaints, ready: Complaints) -> None:
        self.address_family = family
        self.metrics, self.health, self.ready = metrics, health, ready
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind looks its own name up in the DNS, which may take seconds and serves nothing here.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: it is the client that has gone."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = ANSWER_S
    server_version = "tapmesh"
    sys_version = ""

    def handle(self) -> None:
        """One request, once all of it is there."""
        self.rfile = io.BufferedReader(io.BytesIO(self._request()))
        self.handle_one_request()

    def _request(self) -> bytes:
        """As far as the end of its headers; empty if it is too long or too late. A body is not read."""
        content, end = bytearray(), time.monotonic() + REQUEST_S
        with contextlib.suppress(OSError):
            while not _is_whole(content) and len(content) < REQUEST_BYTES and (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                more = self.connection.recv(4096)
                if not more:
                    break
                content += more
        self.connection.settimeout(ANSWER_S)
        return bytes(content) if _is_whole(content) else b""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, CONTENT_TYPE, self.server.metrics())
        elif path in ("/healthz", "/readyz"):
            complaints = self.server.health() if path == "/healthz" else self.server.ready()
            self._answer(503 if complaints else 200, "text/plain; charset=utf-8", "\n".join(complaints or ["ok"]) + "\n")
        else:
            self._answer(404, "text/plain; charset=utf-8", "there are /metrics, /healthz and /readyz\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is BaseHTTPRequestHandler's
        """Nothing: a scrape is not a change of state."""


def _is_whole(content: bytearray) -> bool:
    """The line that ends the headers is there (RFC 9112 section 2.2: a lone LF will do)."""
    return b"\r\n\r\n" in content or b"\n\n" in content


def parse_address(text: str) -> tuple[str, int, int]:
    """`address:port` or `[address]:port` -> (address, port, family). TapmeshError in words."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        raise TapmeshError(f"http: {text!r}: expected ADDRESS:PORT, for example 127.0.0.1:9130 or [::1]:9130") from None
    if not colon or not 0 <= number <= 65535:
        raise TapmeshError(f"http: {text!r}: expected a port from 0 to 65535")
    return str(address), number, socket.AF_INET6 if address.version == 6 else socket.AF_INET


class HttpServer:
    """Serves from `start` to `close`."""

    def __init__(self, address: str, metrics: Callable[[], str], health: Complaints, ready: Complaints) -> None:
        host, port, family = parse_address(address)
        try:
            self._server = _Server((host, port), family, metrics, health, ready)
        except OSError as error:
            raise TapmeshError(f"http: cannot listen on {address}: {error.strerror}") from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
