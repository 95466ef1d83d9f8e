"""One reader of a stream: a TCP connection, encrypted or not, that takes whole records and never blocks.

| step | waits for | becomes |
|---|---|---|
| connecting | the connection to stand | greeting |
| greeting | the other end's part of the TLS handshake; without TLS nothing | beginning |
| beginning, full | what is pending to be taken by the kernel | ready |
| ready | records | full, when the kernel has no room |

`pending` holds at most what has been begun: the rest of one record; or with TLS, which encrypts them together, of PIECE_BYTES of records
(of one, if that is longer).
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

import numpy as np

PIECE_BYTES = 64 * 1024
_CHUNK = 65_536
_CHUNKS = 8  # at a time: a reader that never stops talking takes nothing from the others


class GoneError(Exception):
    """The reader has gone; says how."""


class Connection:
    """`socket` is non-blocking. Whoever holds it calls it; OSError and GoneError: close it."""

    def __init__(self, opened: socket.socket, peer: str, context: ssl.SSLContext | None, *, dialled: bool, server_name: str) -> None:
        self.socket = opened
        self.peer = peer
        self.pending = b""
        self.held = 0  # frames of which something is pending
        self.step = "connecting" if dialled else "greeting"
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            name = server_name if dialled else None
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialled, server_hostname=name)

    @property
    def is_encrypted(self) -> bool:
        return self._tls is not None

    def advance(self, header: bytes) -> bool:
        """One step further, if it can be. True: ready for records."""
        if self.step == "connecting":
            if number := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, "")
            self.step = "greeting"
        if self.step == "greeting" and self._greeted():
            self.step = "beginning"
            self._queue(memoryview(header))
        self._flush()
        if self.step == "greeting" or self.pending:
            return False
        self.step = "ready"
        return True

    def _greeted(self) -> bool:
        if self._tls is None:
            return True
        self._read()
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self.pending += self._outgoing.read()
            self._flush()  # an alert too: so that the other end learns why
        return True

    def _read(self) -> None:
        """Take in what has come: of TLS what it needs, all else is nothing to us."""
        for _ in range(_CHUNKS):
            try:
                data = self.socket.recv(_CHUNK)
            except BlockingIOError:
                return
            if not data:
                raise GoneError("closed by the reader")
            if self._tls is not None:
                self._incoming.write(data)

    def look(self) -> None:
        """GoneError if the reader has closed."""
        self._read()
        if self._tls is not None and self._incoming.pending:
            try:
                while self._tls.read(_CHUNK):
                    pass
                raise GoneError("closed by the reader")
            except ssl.SSLWantReadError:
                self.pending += self._outgoing.read()

    def offer(self, records: memoryview, ends: Any) -> int:
        """How many of the records, that end at `ends`, it has taken; if not all, it is full."""
        if self._tls is not None:
            return self._offer_encrypted(records, ends)
        sent = self._send(records)
        if sent == len(records):
            return len(ends)
        self.step = "full"
        whole = int(np.searchsorted(ends, sent, side="right"))
        if sent > (int(ends[whole - 1]) if whole else 0):
            self.pending, self.held = bytes(records[sent : int(ends[whole])]), 1
            whole += 1
        return whole

    def _offer_encrypted(self, records: memoryview, ends: Any) -> int:
        taken = at = 0
        while taken < len(ends):
            last = max(int(np.searchsorted(ends, at + PIECE_BYTES, side="right")), taken + 1)
            self.held = last - taken
            self._queue(records[at : int(ends[last - 1])])
            self._flush()
            taken, at = last, int(ends[last - 1])
            if self.pending:
                self.step = "full"
                break
        return taken

    def _queue(self, data: memoryview) -> None:
        if self._tls is None:
            self.pending += bytes(data)
            return
        while len(data):
            data = data[self._tls.write(data) :]
        self.pending += self._outgoing.read()

    def _flush(self) -> None:
        if self.pending:
            self.pending = self.pending[self._send(memoryview(self.pending)) :]
        if not self.pending:
            self.held = 0

    def _send(self, data: memoryview) -> int:
        try:
            return self.socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def end(self) -> None:
        """Say that this is the end, as far as it can be said without waiting."""
        try:
            if self._tls is not None and self.step == "ready":
                try:
                    self._tls.unwrap()
                except ssl.SSLWantReadError:
                    self.pending += self._outgoing.read()
                self._flush()
            self.socket.shutdown(socket.SHUT_WR)
            self._read()  # what is unread would make the kernel answer with a reset
        except (OSError, GoneError):
            pass
        self.close()

    def close(self) -> None:
        self.socket.close()
