"""Ways to a collector that take what they can and never wait: UDP, TCP with or without TLS, a file.

| step | waits for | becomes |
|---|---|---|
| closed | `retry_ns` | connecting |
| connecting | the connection to stand; with TLS, then the other end's part of the handshake | open |
| open | nothing | closed, when the other end has gone |

OSError and GoneError of `send` and `look`: it is closed, and tried again after a time that doubles up to BACKOFF_MOST_NS.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import stat
from ipaddress import ip_address
from typing import Protocol

from broker.core.values import Tls

BACKOFF_LEAST_NS, BACKOFF_MOST_NS = 250_000_000, 30_000_000_000
CONNECT_NS = 10_000_000_000
STREAM_MESSAGE_BYTES = 65_535
_CHUNK = 65_536
_CHUNKS = 8  # at a time: a collector that never stops talking keeps nobody from exporting
_READ, _WRITE = select.POLLIN, select.POLLOUT


class GoneError(Exception):
    """The other end has gone; says how."""


class Transport(Protocol):
    most_bytes: int  # of a message
    is_stream: bool  # a message may be taken in parts
    is_new: bool  # once it is open: the other end knows nothing of what was begun

    def open(self, now_ns: int) -> None:
        """Begin to open."""

    def advance(self, now_ns: int) -> bool:
        """True once it is open."""

    def send(self, data: memoryview) -> int:
        """How many bytes it took; 0: none now."""

    def look(self, *, begun: bool) -> None:
        """See whether the other end is still there. `begun`: a message has gone in part."""

    def interests(self, *, wants_room: bool) -> list[tuple[int, int]]:
        """(file descriptor, events of poll(2)) that move it on."""

    def finish(self) -> None:
        """Say that this is the end, as far as it can be said without waiting, and close."""

    def close(self) -> None: ...


class Udp:
    """A datagram for each message. ECONNREFUSED comes late, for one that was sent before: who sends tries again."""

    is_stream = False
    is_new = True

    def __init__(self, address: str, port: int, mtu_bytes: int) -> None:
        self._to = (address, port)
        self._family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
        self._header_bytes = 28 if self._family == socket.AF_INET else 48
        self._mtu_bytes = self.most_bytes = mtu_bytes
        self._socket: socket.socket | None = None

    def open(self, now_ns: int) -> None:  # noqa: ARG002
        self._socket = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.connect(self._to)
        self.look(begun=False)

    def advance(self, now_ns: int) -> bool:  # noqa: ARG002
        return self._socket is not None

    def send(self, data: memoryview) -> int:
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def look(self, *, begun: bool) -> None:  # noqa: ARG002
        """Follow the path MTU, as far as the kernel has learnt it."""
        if self._socket is not None:
            level, option = (socket.IPPROTO_IP, 14) if self._family == socket.AF_INET else (socket.IPPROTO_IPV6, 24)  # IP_MTU, IPV6_MTU
            self.most_bytes = min(self._mtu_bytes, self._socket.getsockopt(level, option) - self._header_bytes)

    def interests(self, *, wants_room: bool) -> list[tuple[int, int]]:
        return [(self._socket.fileno(), _WRITE)] if self._socket is not None and wants_room else []

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Stream:
    """A TCP connection, encrypted if there is a context. What comes back is read and forgotten."""

    is_stream = True
    is_new = True
    most_bytes = STREAM_MESSAGE_BYTES

    def __init__(self, address: str, port: int, context: ssl.SSLContext | None = None, server_name: str = "") -> None:
        self._to = (address, port)
        self._context = context
        self._server_name = server_name or address
        self._socket: socket.socket | None = None
        self._step = "closed"
        self._until_ns = 0
        self._wants = _WRITE  # of the handshake

    def open(self, now_ns: int) -> None:
        family = socket.AF_INET if ip_address(self._to[0]).version == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._step, self._until_ns, self._wants = "connecting", now_ns + CONNECT_NS, _WRITE
        with contextlib.suppress(BlockingIOError):
            self._socket.connect(self._to)

    def advance(self, now_ns: int) -> bool:
        if self._step == "open" or self._socket is None:
            return self._step == "open"
        if now_ns > self._until_ns:
            raise GoneError("nobody answered in time")
        if self._step == "connecting":
            if not _ready(self._socket.fileno(), _WRITE):
                return False
            if number := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number))
            self._step = "greeting"
            if self._context is not None:
                self._socket = self._context.wrap_socket(self._socket, server_hostname=self._server_name, do_handshake_on_connect=False)
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.do_handshake()
            except ssl.SSLWantReadError:
                self._wants = _READ
                return False
            except ssl.SSLWantWriteError:
                self._wants = _WRITE
                return False
        self._step = "open"
        return True

    def send(self, data: memoryview) -> int:
        assert self._socket is not None
        try:
            return self._socket.send(data) if self._context else self._socket.send(data, socket.MSG_NOSIGNAL)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def look(self, *, begun: bool) -> None:  # noqa: ARG002
        if self._step != "open" or self._socket is None:
            return
        try:
            for _ in range(_CHUNKS):
                if not self._socket.recv(_CHUNK):
                    raise GoneError("closed by the collector")
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return

    def interests(self, *, wants_room: bool) -> list[tuple[int, int]]:
        if self._socket is None:
            return []
        if self._step != "open":
            return [(self._socket.fileno(), self._wants)]
        return [(self._socket.fileno(), _READ | (_WRITE if wants_room else 0))]

    def finish(self) -> None:
        if self._socket is not None and self._step == "open":
            with contextlib.suppress(OSError, GoneError):
                if isinstance(self._socket, ssl.SSLSocket):
                    with contextlib.suppress(ssl.SSLWantReadError):
                        self._socket.unwrap()
                self._socket.shutdown(socket.SHUT_WR)
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._step = "closed"


class File:
    """Appends to a file, a FIFO or standard output ("-"). A file that was renamed or removed is made anew, so that it can be rotated; one
    that had no room is the same as before, and a line that was begun goes on."""

    is_stream = True
    most_bytes = STREAM_MESSAGE_BYTES

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._is_file = False
        self._was: os.stat_result | None = None
        self.is_new = True

    def open(self, now_ns: int) -> None:  # noqa: ARG002
        if self._path == "-":
            self._fd = os.dup(1)
        else:
            # Without O_NONBLOCK a FIFO that nobody reads would hold us here.
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
        found = os.fstat(self._fd)
        self._is_file = stat.S_ISREG(found.st_mode)
        self.is_new = self._was is None or not os.path.samestat(self._was, found)
        self._was = found
        if self._is_file and self.is_new and self._path != "-":
            self._end_line()

    def _end_line(self) -> None:
        """Whoever wrote before us may have run out of room in the middle of a line."""
        with open(self._path, "rb") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                os.write(self._fd, b"\n")

    def advance(self, now_ns: int) -> bool:  # noqa: ARG002
        return self._fd >= 0

    def send(self, data: memoryview) -> int:
        if self._is_file:
            return os.write(self._fd, data)
        # Whoever shares standard output has it blocking: a pipe with room takes so much at once.
        try:
            return os.write(self._fd, data[: select.PIPE_BUF]) if _ready(self._fd, _WRITE) else 0
        except BlockingIOError:
            return 0

    def look(self, *, begun: bool) -> None:
        if self._is_file and not begun and self._path != "-":
            try:
                is_ours = os.path.samestat(os.stat(self._path), os.fstat(self._fd))
            except FileNotFoundError:
                is_ours = False
            if not is_ours:
                raise RotatedError

    def interests(self, *, wants_room: bool) -> list[tuple[int, int]]:
        return [(self._fd, _WRITE)] if self._fd >= 0 and wants_room and not self._is_file else []

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RotatedError(Exception):
    """The file is another one now."""


def _ready(fd: int, event: int) -> bool:
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(0))


def tls_context(tls: Tls) -> ssl.SSLContext:
    """OSError and ssl.SSLError: a file is missing or is no certificate or key."""
    context = ssl.create_default_context(cafile=tls.ca or None)
    if tls.cert:
        context.load_cert_chain(tls.cert, tls.key or None)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
