"""Whether somebody who answers requests on a Unix socket still does, asked now and then and never waited for."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

EVERY_S, PATIENCE_S = 2.0, 2.0


class Pulse:
    """`question`: a message of SOCK_SEQPACKET that is answered by one."""

    def __init__(self, path: Path, question: bytes, answer_bytes: int) -> None:
        self._path, self._question, self._answer_bytes = path, question, answer_bytes
        self._asked: socket.socket | None = None
        self._asked_s = self._next_s = 0.0

    def hangs(self) -> bool:
        """No answer for PATIENCE_S. Somebody who is not there does not hang."""
        now = time.monotonic()
        try:
            if self._asked is None:
                if now < self._next_s:
                    return False
                self._ask(now)
            assert self._asked is not None
            self._asked.recv(self._answer_bytes)
        except BlockingIOError:  # also when so many wait that one more cannot connect
            return self._asked is not None and now - self._asked_s > PATIENCE_S
        except OSError:
            pass
        self.close()
        self._next_s = now + EVERY_S
        return False

    def _ask(self, now: float) -> None:
        self._asked, self._asked_s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC), now
        self._asked.setblocking(False)
        self._asked.connect(os.fspath(self._path))
        self._asked.send(self._question)

    def close(self) -> None:
        if self._asked is not None:
            self._asked.close()
            self._asked = None
