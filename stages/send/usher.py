"""Brings readers to a stream and waits for the slow ones, in a thread beside the data path: dials or accepts, shakes hands, sends the
beginning of the file, and hands the connection over. One that is full comes back until the kernel has room again.

A connection belongs to one side at any time: it goes to and fro in two deques, and neither side ever waits for the other.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from typing import Any

from broker.core.model import Stream, Tool
from stages.send.connection import Connection, GoneError
from stages.send.egress import OPENING, TOOL_DOWN, Notices, Retry

MOST_READERS = 16
GREETING_S = 10.0
"""How long a connection may take to come about."""
LAST_S = 0.2
"""How long the end waits for readers that have not taken all."""
UNANSWERED_MS = 30_000
"""A reader that answers nothing for so long is gone (TCP_USER_TIMEOUT, RFC 5482)."""
_TICK_MS = 100
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h


class Usher:
    """`ready`: connections for the egress. `gone`: those that ended while they were with us."""

    def __init__(self, tool: Tool, header: bytes, lane: int, log: Any) -> None:
        assert tool.stream is not None
        self._stream: Stream = tool.stream
        self._header = header
        self._lane = lane
        self._notices = Notices(log, tool)
        self._retry = Retry()
        self._listener: socket.socket | None = None
        self._here: dict[int, Connection] = {}  # by file descriptor
        self._since: dict[int, float] = {}  # when those that are not ready yet came
        self._n = 0  # connections that are here or with the egress
        self._returned: deque[Connection] = deque()
        self._ended: deque[Connection] = deque()  # by the egress
        self.ready: deque[Connection] = deque()
        self.gone: deque[Connection] = deque()
        self.down = TOOL_DOWN  # the counter for frames that come while nobody reads
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="usher", daemon=True)
        self._thread.start()

    def take_back(self, connection: Connection) -> None:
        """It is full."""
        self._returned.append(connection)
        os.eventfd_write(self._bell, 1)

    def forget(self, connection: Connection) -> None:
        """It ended with the egress."""
        self._ended.append(connection)
        os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        """Ends all connections. Not longer than a little more than LAST_S."""
        self._stopping = True
        os.eventfd_write(self._bell, 1)
        self._thread.join(5 * LAST_S)
        if not self._thread.is_alive():
            os.close(self._bell)

    # ---- the thread

    def _run(self) -> None:
        while not self._stopping:
            self._open()
            self._wait()
            self._advance_all()
        self._end()

    def _open(self) -> None:
        """Listen, or dial, unless that is done or has just failed."""
        if not self._retry.due() or self._listener is not None or (self._stream.connect and self._n):
            return
        try:
            if self._stream.listen:
                self._listener = self._listen()
            else:
                self._dial()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; ValueError: no PEM in it
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else 0
        self.down = int(OPENING[number or 0])
        self._retry.failed()
        reason = os.strerror(number) if number and not getattr(error, "filename", None) else str(error)
        self._notices.warn("tool_down", reason, address=self._stream.listen or self._stream.connect)

    def _listen(self) -> socket.socket:
        self._context()  # what is wrong with the certificates is told now, and not to the first reader
        host, port = _end(self._stream.listen)
        opened = socket.socket(_family(host), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((host, port + self._lane if port else 0))
            opened.listen(MOST_READERS)
        except OSError:
            opened.close()
            raise
        self._retry.worked()
        address, port = opened.getsockname()[:2]
        self._notices.info("tool_opened", address=address, port=port)
        return opened

    def _dial(self) -> None:
        host, port = _end(self._stream.connect)
        context = self._context()
        opened = socket.socket(_family(host), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._set_options(opened)
            if (number := opened.connect_ex((host, port))) not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
        except OSError:
            opened.close()
            raise
        name = self._stream.tls.server_name if self._stream.tls else ""
        self._enter(Connection(opened, self._stream.connect, context, dialled=True, server_name=name or host))

    def _context(self) -> ssl.SSLContext | None:
        tls = self._stream.tls
        if tls is None:
            return None
        dials = bool(self._stream.connect)
        purpose = ssl.Purpose.SERVER_AUTH if dials else ssl.Purpose.CLIENT_AUTH
        context = ssl.create_default_context(purpose, cafile=tls.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if dials and not tls.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if not dials and tls.ca:
            context.verify_mode = ssl.CERT_REQUIRED
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key or None)
        return context

    def _set_options(self, opened: socket.socket) -> None:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MS)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        half = self._stream.buffer_bytes // 2  # the kernel doubles it (socket(7))
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, half)
        except PermissionError:  # needs CAP_NET_ADMIN; else net.core.wmem_max is the limit
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, half)

    def _enter(self, connection: Connection) -> None:
        self._n += 1
        self._here[connection.socket.fileno()] = connection
        self._since[connection.socket.fileno()] = time.monotonic()

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        if self._listener is not None:
            poller.register(self._listener, select.POLLIN)
        for fd, connection in self._here.items():
            out = select.POLLOUT if connection.pending or connection.step != "greeting" else 0
            poller.register(fd, out | (select.POLLIN if connection.step == "greeting" else 0))
        idle = not self._since and (self._listener is not None or self._n)
        events = dict(poller.poll(None if idle else _TICK_MS))
        if self._bell in events:
            os.eventfd_read(self._bell)
        while self._ended:
            self._ended.popleft()
            self._n -= 1
        while self._returned:
            connection = self._returned.popleft()
            self._here[connection.socket.fileno()] = connection
        if self._listener is not None and self._listener.fileno() in events:
            self._accept(self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            opened, address = listener.accept()
        except OSError:  # it has gone again, or there are no file descriptors left
            return
        peer = f"{address[0]}:{address[1]}"
        if self._n >= MOST_READERS:
            opened.close()
            self._notices.warn("reader_refused", f"there are {MOST_READERS} already", peer=peer)
            return
        try:
            opened.setblocking(False)
            self._set_options(opened)
            self._enter(Connection(opened, peer, self._context(), dialled=False, server_name=""))
        except (OSError, ValueError) as error:
            opened.close()
            self._notices.warn("reader_refused", str(error), peer=peer)

    def _advance_all(self) -> None:
        now = time.monotonic()
        for fd, connection in list(self._here.items()):
            try:
                begun = fd in self._since
                if connection.advance(self._header):
                    del self._here[fd]
                    self._since.pop(fd, None)
                    if begun:
                        self._retry.worked()
                        self.down = TOOL_DOWN
                        self._notices.info("reader_joined", peer=connection.peer, tls=connection.is_encrypted)
                    self.ready.append(connection)
                elif begun and now - self._since[fd] > GREETING_S:
                    raise GoneError(f"not there after {GREETING_S:.0f} s")
            except (OSError, GoneError) as error:
                self._lose(fd, connection, error)

    def _lose(self, fd: int, connection: Connection, error: Exception) -> None:
        begun = self._since.pop(fd, None) is not None
        del self._here[fd]
        connection.close()
        self._n -= 1
        if not begun:
            self.gone.append(connection)
        if self._stream.connect:
            self._failed(error)
        else:
            self._notices.warn("reader_left", _in_words(error), peer=connection.peer)

    def _end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        deadline = time.monotonic() + LAST_S
        while self._returned:
            connection = self._returned.popleft()
            self._here[connection.socket.fileno()] = connection
        while self._here:
            self._advance_all()
            while self.ready:
                self.ready.popleft().end()
            if not self._here or time.monotonic() > deadline:
                break
            poller = select.poll()
            for fd in self._here:
                poller.register(fd, select.POLLOUT)
            poller.poll(LAST_S * 1000 / 4)
        while self.ready:
            self.ready.popleft().end()
        for connection in self._here.values():
            connection.close()


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno:
        return os.strerror(error.errno)
    return str(error)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6


def _end(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)
